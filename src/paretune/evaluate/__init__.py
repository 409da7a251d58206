"""Room 9: how good, how surely, at what price.

The policy before and after answers the same prompts with the same seeds; judges that are not the training
reward score both; `statistics` turns paired differences into simultaneous intervals and a verdict whose
words follow a rule. `calibration`, `similarity` and `filtration` say whether stated confidence, the variety
of responses and the training reward can be trusted. What nobody could score stays missing and is counted.
"""
