"""Room 5, scores to advantages: a chain of small steps (batch, state, rng) -> (batch, state, metrics).

Order is the algorithm: aggregate and then normalise within the group is GRPO, the other way round is GDPO.
`step.py` is the frame; `threshold.py` and `missing.py` see to the scores; `aggregate.py` makes one objective
of many, `weights.py` and `adaptive.py` do so with weights that differ or move, `worst.py`, `order.py` and
`constraint.py` (with `dual.py`) in other ways; `advantage.py` says who did better within a prompt,
`whiten.py` and `running.py` against the batch and the past, `gae.py` token by token; `penalty.py` holds what
is paid beside the score, `dense.py` where on a response, `confidence.py` what is paid for knowing oneself;
`importance.py` says how far the sampler is trusted, `select.py`, `keep.py` and `resample.py` what is left
out, `published.py` holds habits of other libraries by name.
"""
