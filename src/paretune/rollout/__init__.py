"""Rollouts: prompts in, sampled responses with their exact log-probabilities out.

`sampler` has the rollout sources of an algorithm spec (on-policy, frozen policy, stored responses), the
`Sampler` protocol and the sampler on the training weights. `decoding` is the token loop, with continuous
batching over a KV cache that shares prompts, or static batching for other models. Token ids are the record of
a response; text is decoded for scorers only.

`vllm` samples by vLLM instead: `vllm_engine` is the engine in this process, `vllm_server` are servers over
HTTP, `vllm_weights` writes the weights for them, and `vllm_extension` loads them there. `synced` calls the
optional methods of samplers whose engine holds a copy of the weights.
"""
