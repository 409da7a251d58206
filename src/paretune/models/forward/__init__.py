"""The forward pass: log-probabilities, the LM head, packing, prefix sharing, attention, gradient checkpointing."""
