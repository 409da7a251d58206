"""Supervised training, and the parts of all training loops: optimizer, checkpoints, guards, micro-batches."""
