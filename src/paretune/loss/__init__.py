"""Losses: from advantages or rewards to one number, `(per-token loss * batch.loss_weights).sum()`.

The mathematics is in pure functions of tensors; the frozen dataclasses read their arguments from a batch.

    base        Loss, WeightedLoss
    policy      policy gradients: probability ratio, clipped surrogate and variants
    kl          KL to the reference, estimated or over the full vocabulary
    pairwise    pairs of responses: DPO and relatives, TDPO, MODPO
    listwise    ranked groups of responses: PRO; helpers for all losses on groups
    auxiliary   critic losses, entropy bonus, supervised losses
"""
