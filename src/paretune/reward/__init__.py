"""Reward models and scorers: the model and its heads, losses, training, evaluation, checkpoints and baselines."""
