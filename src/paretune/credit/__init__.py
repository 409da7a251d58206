"""Credit assignment: from scores to advantages.

A chain of steps (batch, state, rng) -> (batch, state, metrics).

The order of the steps is the algorithm: aggregating objectives and then normalizing within the group is GRPO,
the other order is GDPO.

    base                 CreditStep, Chain
    score_transforms     per objective, before aggregation: missing scores, thresholds, invalid formats
    aggregation          J objectives to one: weighted sums, gates, lexicographic order
    scalarization        other aggregators: minimum, Chebyshev, hypervolume-guided weighting
    constraints          Lagrange multipliers
    normalization        baselines and scales: within the group, over the batch, over the past
    returns              per token: GAE, returns, redistribution of token rewards
    shaping              penalties, bounds, terminal reward, confidence
    selection            drop, mask or resample responses
    importance_sampling  factors on the policy loss of single tokens
"""
