"""Room 5, scores to advantages: a chain of small steps (batch, state, rng) -> (batch, state, metrics).

Order is the algorithm: aggregate and then normalise within the group is GRPO, the other way round is GDPO.
`step.py` is the frame, `aggregate.py` makes one objective of many, `advantage.py` says who did better.
"""
