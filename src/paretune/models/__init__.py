"""Models: loading and saving, LoRA adapters, merging, quantization, critics, forward passes and FLOP counts.

Policies and reward models are ordinary Hugging Face models. `load` and `save` read and write folders that
other tools can read. `forward` computes log-probabilities and values: it holds the package's only one-token
shift and the float32 LM head. `model_passes` writes the results of frozen and current models into a batch.
`lora` adds adapters to a model and disables them for the reference policy, `lora_svd` tunes their singular
values only, `quantize` runs frozen linear layers in int8, and `merge` averages weights.
"""
