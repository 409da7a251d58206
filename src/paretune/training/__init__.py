"""Supervised training and what both training loops share: optimizer, checkpoints, guards, micro-batches."""
