"""Evaluation of a policy before and after training.

Both policies answer the same prompts with the same seeds; judges that are independent of the training reward
score both. `statistics` turns paired differences into simultaneous confidence intervals and a verdict by a
fixed rule. `confidence`, `text_metrics` and `reward_filtering` measure the calibration of stated confidence,
the diversity of responses and the reliability of the training reward. Missing judgments stay missing and are
counted.
"""
