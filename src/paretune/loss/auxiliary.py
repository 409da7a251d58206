"""What a critic is fitted with: returns, head by head.

A reward for staying undecided.

Imitation: the likelihood of responses, of all that are left or of the best.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from paretune.core.batch import Batch, Outputs
from paretune.core.errors import WiringError
from paretune.loss.base import Loss
from paretune.loss.listwise import Reduction, group_weight, per_response, ranked_scored_rows, scalar_rewards


def squared_error(values: Float[Tensor, "*n"], returns: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """(V - R)^2 / 2."""
    return (values - returns).square() / 2


def clipped_squared_error(
    values: Float[Tensor, "*n"],
    old_values: Float[Tensor, "*n"],
    returns: Float[Tensor, "*n"],
    clip_range: float,
) -> Float[Tensor, "*n"]:
    """max((V - R)^2, (clip(V, old - clip, old + clip) - R)^2) / 2.

    A value that has moved further than `clip_range` towards its return is held back; one that moved away is not.

    Source: the PPO implementation of OpenAI baselines, as in Huang et al. 2022, "The 37 implementation
    details of PPO", detail 9.
    """
    held = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return torch.maximum(squared_error(values, returns), squared_error(held, returns))


@dataclass(frozen=True)
class SquaredValueLoss(Loss):
    """Half the squared error of the critic, summed over its heads.

    Reads: returns, loss_weights. Writes: nothing.

    Source: Schulman et al. 2017, eq. 9 (arXiv:1707.06347). Differs: the half.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"values"})

    def __call__(self, out: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss of these rows."""
        each = squared_error(require_values(out), batch.require("returns"))
        return (each.sum(-1) * batch.require("loss_weights")).sum()


@dataclass(frozen=True)
class ClippedValueLoss(Loss):
    """Half the squared error of the critic, summed over its heads, no value moving far in one training step.

    Reads: returns, values, loss_weights. Writes: nothing.
    Logs: the share of values that were held back.

    Source: as `clipped_error`. Differs: the range is in the units of the return, as everywhere.
    """

    clip_range: float = 0.2
    requires: ClassVar[frozenset[str]] = frozenset({"values"})

    def __post_init__(self) -> None:
        if not self.clip_range > 0:
            raise WiringError(f"the range of the clipped value loss is {self.clip_range}; it must be > 0")

    def __call__(self, out: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss of these rows."""
        each = clipped_squared_error(
            require_values(out), batch.require("values"), batch.require("returns"), self.clip_range
        )
        return (each.sum(-1) * batch.require("loss_weights")).sum()

    def metrics(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, "B T"]]:
        """Which values were held back; the mean over the heads."""
        values, returns = require_values(out).detach(), batch.require("returns")
        held = clipped_squared_error(values, batch.require("values"), returns, self.clip_range)
        return {"clip_fraction/value": (held > squared_error(values, returns)).to(values.dtype).mean(-1)}


def require_values(out: Outputs) -> Float[Tensor, "B T H"]:
    """The critic's answer.

    Raises:
        WiringError: The forward pass had no critic.
    """
    if out.values is None:
        raise WiringError("a loss reads the critic's values, and the forward pass had no critic")
    return out.values


@dataclass(frozen=True)
class EntropyBonus(Loss):
    """Minus the entropy of the policy: a positive coefficient keeps it from becoming certain too soon.

    Reads: loss_weights. Writes: nothing.

    Source: Williams and Peng 1991; Schulman et al. 2017, eq. 9 (arXiv:1707.06347). Differs: the mean is the
    recipe's, not always that over tokens. The coefficient is delicate: a little too much and the policy
    never settles.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def __call__(self, out: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss of these rows."""
        if out.entropy is None:
            raise WiringError("a loss reads the policy's entropy, which the forward pass did not give")
        return -(out.entropy * batch.require("loss_weights")).sum()


def entropy_target_distance(entropy: Float[Tensor, ""], target: float) -> Float[Tensor, ""]:
    """|H - target|, H the mean entropy of a whole batch in nats.

    Not a part: it needs the mean over all rows before any slope, so the losses of micro-batches do not add up
    to that of the batch.

    Source: MOSS-RLHF, where the target is 35 nats and the term off by default.
    """
    return (entropy - target).abs()


@dataclass(frozen=True)
class SftLoss(Loss):
    """Minus the log-probability of every response: supervised fine-tuning on the rows that are left.

    The mean is the recipe's: Weigh("token") is the token mean, Weigh("sequence_sum") the mean over responses
    of sums over their tokens.

    Reads: loss_weights. Writes: nothing.

    Source: the cross-entropy of fine-tuning; on the best of a policy's own samples (KeepBest) that of
    Mukobi et al. 2023, SuperHF (arXiv:2310.16763), and Dong et al. 2023, RAFT (arXiv:2304.06767).
    """

    def __call__(self, out: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss of these rows."""
        return -(out.logprobs * batch.require("loss_weights")).sum()


@dataclass(frozen=True)
class BestOfNSft(Loss):
    """Minus the log-probability of the best response of each group, which counts for its whole group.

    Of equally good ones the first row is the best; a group without a score teaches nothing.

    Reads: rewards, group, response_mask, loss_weights. Writes: nothing.

    Source: Song et al. 2023, PRO (arXiv:2306.17492), where the reduction is the sum.
    """

    reduction: Reduction = "mean"
    """Over the tokens of the response; after "mean", a response counts the same at any length."""
    requires_full_groups: ClassVar[bool] = True

    def __call__(self, out: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss of these rows."""
        lists = ranked_scored_rows(scalar_rewards(batch), batch.group)
        best = torch.cat([batch.group.new_zeros(0), *(rows[:1] for rows in lists)])
        logp = per_response(out.logprobs, batch.response_mask, self.reduction)
        return -(logp[best] * group_weight(batch)[best]).sum()
