"""Prompts in, responses out: sampled from the policy with the exact log-probabilities training will compare.

`sample` holds the sources a recipe can name, the protocol of a sampler, and the package's own sampler on the
training weights. Token ids are the record; text is made for scorers only.
"""
