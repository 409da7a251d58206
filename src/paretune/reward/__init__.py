"""Reward models and scorers.

`scorers` holds the `Scorer` protocol; `model`, `losses`, `training` and `checkpoint` the reward model with
its heads; `evaluation` and `baselines` measure it on unseen prompts; `confidence_pairs` calibrates stated
confidence.
"""
