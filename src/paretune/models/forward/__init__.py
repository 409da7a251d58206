"""Forward passes: log-probabilities, LM head, packing, prefix sharing, attention, gradient checkpointing."""
