"""Critic-free policy gradients: the same parts in different orders."""

from collections.abc import Mapping, Sequence

from paretune.bounds import Count, NotNegative, Positive, Share
from paretune.credit.advantage import GroupNormalise, Spread
from paretune.credit.aggregate import Gate, WeightedSum
from paretune.credit.step import Step, chain
from paretune.errors import WiringError
from paretune.learn.recipe import Recipe, Weigh
from paretune.loss.kl import KlToReference
from paretune.loss.policy import Clipped
from paretune.loss.term import Term
from paretune.models.measure import Behaviour, Reference
from paretune.rollout.sample import Online

Gates = Sequence[tuple[str, str, float, float]]
"""(objective, on, at_least, otherwise): below `at_least` of `on`, `otherwise` stands for the score."""


def grpo(
    weights: Mapping[str, float],
    *,
    gates: Gates = (),
    n: int = 8,
    max_new: Count = 256,
    temperature: Positive = 1.0,
    clip: Share = 0.2,
    kl: NotNegative = 0.04,
    minibatch: Count | None = None,
    epochs: Count = 1,
) -> Recipe:
    """Gate, aggregate, then compare within the group.

    Args:
        weights: Weight of each objective; an objective without one is scored and logged only.
        gates: (objective, on, at_least, otherwise): below `at_least` of `on`, the score is `otherwise`.
        n: Responses to each prompt.
        max_new: Longest response, in tokens.
        temperature: Of sampling, and of every log-probability.
        clip: How far the probability ratio may go from 1 before its gradient is cut off.
        kl: Coefficient of the divergence from the reference; with 0 it is measured and not charged.
        minibatch: Rows of one optimiser step; None: all that were sampled.
        epochs: Passes over the sampled responses.

    Raises:
        WiringError: `n` is 1: a response without others has nobody to be compared with.

    Source: Shao et al. 2024, eq. 3 (arXiv:2402.03300), on the combined reward of Li et al. 2025
    (arXiv:2503.21819). Differs: the gates; the KL term has the value of k3 and the gradient of k2; the old
    log-probabilities are those the sampler recorded.
    """
    if n < 2:
        raise WiringError(f"algorithm.n is {n}: grpo compares the responses to a prompt; fix: 2 or more")
    penalty = (Term(kl, KlToReference()),) if kl else ()
    return Recipe(
        name="grpo",
        source=Online(n=n, max_new=max_new, temperature=temperature),
        worth=chain(*gated(weights, gates)),
        measure=(Behaviour(by="sampler"), Reference()),
        credit=chain(GroupNormalise("std"), Spread()),
        losses=(Term(1.0, Clipped(clip, clip)), *penalty),
        weigh=Weigh("sequence"),
        epochs=epochs,
        minibatch=minibatch,
    )


def gated(weights: Mapping[str, float], gates: Gates) -> tuple[Step, ...]:
    """The gates, and then the weighted sum."""
    return (*(Gate(*gate) for gate in gates), WeightedSum(weights))
