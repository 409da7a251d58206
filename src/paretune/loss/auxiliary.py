"""Critic losses, entropy bonus, and supervised losses on responses."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from paretune.core.batch import Batch, Outputs, require_scalar
from paretune.core.errors import WiringError
from paretune.loss.base import Loss
from paretune.loss.listwise import Reduction, group_weight, per_response, ranked_scored_rows


def squared_error(values: Float[Tensor, "*n"], returns: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """(V - R)^2 / 2."""
    return (values - returns).square() / 2


def clipped_squared_error(
    values: Float[Tensor, "*n"],
    old_values: Float[Tensor, "*n"],
    returns: Float[Tensor, "*n"],
    clip_range: float,
) -> Float[Tensor, "*n"]:
    """max((V - R)^2, (clip(V, old - clip_range, old + clip_range) - R)^2) / 2.

    A value that moved further than `clip_range` towards its return gets no gradient; one that moved away
    does.

    Source: the PPO implementation of OpenAI baselines, as in Huang et al. 2022, "The 37 implementation
    details of PPO", detail 9.
    """
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return torch.maximum(squared_error(values, returns), squared_error(clipped, returns))


@dataclass(frozen=True)
class SquaredValueLoss(Loss):
    """Half the squared error of the critic, summed over its heads.

    Reads: returns, loss_weights. Writes: nothing.

    Source: Schulman et al. 2017, eq. 9 (arXiv:1707.06347). Differs: the half.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"values"})

    def __call__(self, out: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss of these rows."""
        error = squared_error(require_values(out), batch.require("returns"))
        return (error.sum(-1) * batch.require("loss_weights")).sum()


@dataclass(frozen=True)
class ClippedValueLoss(Loss):
    """Half the clipped squared error of the critic, summed over its heads.

    Reads: returns, values, loss_weights. Writes: nothing.
    Logs: the share of values that were clipped.

    Source: as `clipped_squared_error`. Differs: the range is in the units of the return, as everywhere.
    """

    clip_range: float = 0.2
    requires: ClassVar[frozenset[str]] = frozenset({"values"})

    def __post_init__(self) -> None:
        if not self.clip_range > 0:
            raise WiringError(f"the clip_range of the value loss is {self.clip_range}; it must be > 0")

    def __call__(self, out: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss of these rows."""
        error = clipped_squared_error(
            require_values(out), batch.require("values"), batch.require("returns"), self.clip_range
        )
        return (error.sum(-1) * batch.require("loss_weights")).sum()

    def metrics(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, "B T"]]:
        """Share of clipped values, the mean over the heads."""
        values, returns = require_values(out).detach(), batch.require("returns")
        error = clipped_squared_error(values, batch.require("values"), returns, self.clip_range)
        # The clipped error is the larger one exactly where it has replaced the error of the value itself.
        return {"clip_fraction/value": (error > squared_error(values, returns)).to(values.dtype).mean(-1)}


def require_values(out: Outputs) -> Float[Tensor, "B T H"]:
    """The values of the critic.

    Raises:
        WiringError: The forward pass had no critic.
    """
    if out.values is None:
        raise WiringError(
            "a loss reads the critic's values, and the forward pass had no critic; "
            'fix: add "values" to the `requires` of the loss, or set Outputs.values'
        )
    return out.values


@dataclass(frozen=True)
class EntropyBonus(Loss):
    """Negative entropy of the policy: with a positive coefficient, a bonus for high entropy.

    Reads: loss_weights. Writes: nothing.

    Source: Williams and Peng 1991; Schulman et al. 2017, eq. 9 (arXiv:1707.06347). Differs: averaged by the
    loss aggregation of the algorithm, not always over tokens. The coefficient is sensitive: slightly too
    large, and the policy never converges.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def __call__(self, out: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss of these rows."""
        if out.entropy is None:
            raise WiringError(
                "a loss reads the policy's entropy, which the forward pass did not compute; "
                'fix: add "entropy" to the `requires` of the loss, or set Outputs.entropy'
            )
        return -(out.entropy * batch.require("loss_weights")).sum()


def entropy_target_distance(entropy: Float[Tensor, ""], target: float) -> Float[Tensor, ""]:
    """|H - target|, H the mean entropy of a whole batch in nats.

    Not a Loss: its gradient needs the mean over all rows first, so the losses of micro-batches do not add up
    to that of the batch.

    Source: MOSS-RLHF, where the target is 35 nats and the term off by default.
    """
    return (entropy - target).abs()


@dataclass(frozen=True)
class SftLoss(Loss):
    """Negative log-likelihood of every response in the batch: supervised fine-tuning.

    The average is that of the algorithm: LossAggregation("token_mean") is the mean over tokens,
    LossAggregation("seq_mean_token_sum") the mean over responses of sums over their tokens.

    Reads: loss_weights. Writes: nothing.

    Source: the cross-entropy of fine-tuning; on the best of the policy's own samples (BestOfN) that of
    Mukobi et al. 2023, SuperHF (arXiv:2310.16763), and Dong et al. 2023, RAFT (arXiv:2304.06767).
    """

    def __call__(self, out: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss of these rows."""
        return -(out.logprobs * batch.require("loss_weights")).sum()


@dataclass(frozen=True)
class BestOfNSft(Loss):
    """Negative log-likelihood of the best response of each group, with the weight of the whole group.

    Of equally good responses the first row is the best; a group without a score has loss 0.

    Reads: rewards, group, response_mask, loss_weights. Writes: nothing.

    Source: Song et al. 2023, PRO (arXiv:2306.17492), where the reduction is the sum.
    """

    reduction: Reduction = "mean"
    """Over the tokens of the response; with "mean" a response has the same weight at any length."""
    requires_full_groups: ClassVar[bool] = True

    def __call__(self, out: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss of these rows."""
        ranked = ranked_scored_rows(require_scalar(batch, "BestOfNSft"), batch.group)
        # The empty index keeps the dtype when no group has a score.
        best = torch.cat([batch.group.new_zeros(0), *(rows[:1] for rows in ranked)])
        logprobs = per_response(out.logprobs, batch.response_mask, self.reduction)
        return -(logprobs[best] * group_weight(batch)[best]).sum()
