"""Losses on pairs: the best response of a group against the worst (DPO and relatives, TDPO, MODPO)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from paretune.core.batch import Batch, Outputs, require_scalar
from paretune.core.errors import WiringError
from paretune.loss.base import Loss
from paretune.loss.kl import require_ref_policy_kl
from paretune.loss.listwise import (
    Pairs,
    Reduction,
    best_worst_pairs,
    group_weight,
    per_response,
    to_zero_one,
)

PairLossType = Literal[
    "sigmoid",
    "ipo",
    "robust",
    "hinge",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "discopop",
]
"""Functions of two implicit rewards, with the names of TRL. See `pair_loss`."""

SMOOTHED_LOSS_TYPES = ("sigmoid", "robust", "exo_pair")
"""Loss types that use `label_smoothing`."""


def pair_loss(
    chosen_rewards: Float[Tensor, " P"],
    rejected_rewards: Float[Tensor, " P"],
    loss_type: PairLossType,
    beta: float,
    label_smoothing: float = 0.0,
) -> Float[Tensor, " P"]:
    """The loss of each pair, from the implicit rewards c (chosen) and r (rejected).

    With g = c - r, e the label smoothing, s the logistic function and q = s(g):

        sigmoid    -(1 - e) log s(g) - e log s(-g)
        ipo        ((g - 1/2) / beta)^2
        robust     (-(1 - e) log s(g) + e log s(-g)) / (1 - 2e)
        hinge      max(0, 1 - g)
        exo_pair   q (log q - log(1 - e)) + (1 - q) (log(1 - q) - log e)
        nca_pair   -log s(c) - (log s(-c) + log s(-r)) / 2
        bco_pair   -log s(c) - log s(-r)
        sppo_hard  ((c - 1/2) / beta)^2 + ((r + 1/2) / beta)^2
        apo_zero   1 - s(c) + s(r)
        apo_down   s(c) + 1 - s(g)
        discopop   -(1 - m) log s(g) + m exp(-g), m = s(20 g)

    Args:
        chosen_rewards: beta times the log-ratio of policy to reference, of the chosen response.
        rejected_rewards: The same for the rejected response.
        loss_type: Which loss.
        beta: The factor in the rewards; used by ipo and sppo_hard.
        label_smoothing: Probability that a label is wrong; used by sigmoid, robust and exo_pair.

    Source: DPO, Rafailov et al. 2023 (arXiv:2305.18290); with smoothing "conservative DPO", Mitchell 2023;
    Azar et al. 2023 (arXiv:2310.12036); Chowdhury et al. 2024 (arXiv:2403.00409); SLiC, Zhao et al. 2023
    (arXiv:2305.10425); EXO, Ji et al. 2024 (arXiv:2402.00856); NCA, Chen et al. 2024 (arXiv:2402.05369); BCO,
    Jung et al. 2024 (arXiv:2404.04656); SPPO, Wu et al. 2024 (arXiv:2405.00675); APO, D'Oosterlinck et al.
    2024 (arXiv:2408.06266); DiscoPOP, Lu et al. 2024 (arXiv:2406.08414). Differs: bco_pair has no shift of
    rewards, as in TRL.
    """
    margin = chosen_rewards - rejected_rewards
    # log sigmoid(g) and log sigmoid(-g): the label is correct, the label is wrong.
    correct, wrong = F.logsigmoid(margin), F.logsigmoid(-margin)
    match loss_type:
        case "sigmoid":
            return -(1 - label_smoothing) * correct - label_smoothing * wrong
        case "ipo":
            return ((margin - 0.5) / beta).square()
        case "robust":
            return (label_smoothing * wrong - (1 - label_smoothing) * correct) / (1 - 2 * label_smoothing)
        case "hinge":
            return F.relu(1 - margin)
        case "exo_pair":
            log_correct, log_wrong = math.log1p(-label_smoothing), math.log(label_smoothing)
            return correct.exp() * (correct - log_correct) + wrong.exp() * (wrong - log_wrong)
        case "discopop":
            # One exponential: computed separately, exp(-g) overflows where the logistic factor is smallest.
            exponential = (F.logsigmoid(20 * margin) - margin).exp()
            return exponential - torch.sigmoid(-20 * margin) * correct
    return _per_side_loss(chosen_rewards, rejected_rewards, loss_type, beta)


def _per_side_loss(
    chosen_rewards: Tensor, rejected_rewards: Tensor, loss_type: PairLossType, beta: float
) -> Tensor:
    """Loss types that compare each side with 0 instead of the two sides with each other."""
    match loss_type:
        case "nca_pair":
            return (
                -F.logsigmoid(chosen_rewards)
                - (F.logsigmoid(-chosen_rewards) + F.logsigmoid(-rejected_rewards)) / 2
            )
        case "bco_pair":
            return -F.logsigmoid(chosen_rewards) - F.logsigmoid(-rejected_rewards)
        case "sppo_hard":
            return ((chosen_rewards - 0.5) / beta).square() + ((rejected_rewards + 0.5) / beta).square()
        case "apo_zero":
            return torch.sigmoid(-chosen_rewards) + torch.sigmoid(rejected_rewards)
    assert loss_type == "apo_down"
    return torch.sigmoid(chosen_rewards) + torch.sigmoid(rejected_rewards - chosen_rewards)


def modpo_reward(
    reward: Float[Tensor, " B"], other_rewards: Float[Tensor, " B"], weight: float
) -> Float[Tensor, " B"]:
    """(reward - others) / weight: the implicit reward of one objective, the others subtracted.

    Source: Zhou et al. 2023, MODPO (arXiv:2310.03708).
    """
    return (reward - other_rewards) / weight


@dataclass(frozen=True)
class ModpoMargin:
    """The margin of MODPO: several objectives in one loss on pairs, without sampling.

    Pairs are made by the objective `pair_objective`. The weighted rewards of the other objectives are
    subtracted from the implicit rewards, and the rest is divided by the weight of `pair_objective`:

        reward_y = (beta log-ratio_y - sum over the others of w_k reward_yk) / w_pair_objective

    The rewards of the others must be on the scale of beta times a log-ratio, a few units at most, and a small
    weight of `pair_objective` amplifies their noise. A response without a score in one of them is in no pair.

    Reads: rewards, one column per objective (no aggregator before).

    Source: Zhou et al. 2023, MODPO (arXiv:2310.03708).
    """

    pair_objective: str
    weights: Mapping[str, float]
    """Objective -> weight, including `pair_objective`; they need not add up to 1."""

    def __post_init__(self) -> None:
        if self.pair_objective not in self.weights or len(self.weights) < 2:
            raise WiringError(
                f'ModpoMargin makes pairs by "{self.pair_objective}" and has weights of '
                f"{', '.join(self.weights)}; fix: give a weight to that objective and to at least one more"
            )
        if not all(math.isfinite(weight) for weight in self.weights.values()):
            raise WiringError(f"ModpoMargin has weights that are not finite: {dict(self.weights)}")
        if not self.weights[self.pair_objective] > 0:
            raise WiringError(
                f'ModpoMargin divides by the weight of its pair_objective "{self.pair_objective}", which is '
                f"{self.weights[self.pair_objective]}; fix: set it above 0"
            )

    def split_rewards(self, batch: Batch) -> tuple[Float[Tensor, "B 1"], Float[Tensor, " B"]]:
        """The reward that pairs are made by, NaN where another is NaN; and the weighted sum of the others.

        Raises:
            WiringError: An aggregator came before, or an objective is unknown.
        """
        if batch.rewards.shape[-1] != len(batch.objectives):
            raise WiringError(
                "ModpoMargin needs one reward per objective, and an aggregator has made one of them; "
                "fix: leave the aggregator out of reward_steps"
            )
        for name in self.weights:
            batch.score_column(name)  # raises for unknown names
        others = {name: w for name, w in self.weights.items() if name != self.pair_objective and w != 0}
        columns = [batch.rewards[:, batch.objectives.index(name)] * w for name, w in others.items()]
        reward = batch.rewards[:, batch.objectives.index(self.pair_objective)]
        # The zeros make the sum of no columns, when all other weights are 0.
        other_rewards = torch.stack([torch.zeros_like(reward), *columns]).sum(0)
        return torch.where(other_rewards.isnan(), torch.nan, reward)[:, None], other_rewards


class PairLoss(Loss):
    """Base of losses on pairs: an implicit reward per response, and a loss of two of them."""

    requires_full_groups: ClassVar[bool] = True

    def make_pairs(self, batch: Batch) -> Pairs:
        """The best and the worst response of each group."""
        return best_worst_pairs(require_scalar(batch, type(self).__name__), batch.group)

    def implicit_rewards(
        self, out: Outputs, batch: Batch, pairs: Pairs
    ) -> tuple[Float[Tensor, " P"], Float[Tensor, " P"]]:
        """Implicit rewards of the chosen and of the rejected responses.

        Raises:
            WiringError: The subclass does not override this.
        """
        raise WiringError(f"{type(self).__name__} does not implement implicit_rewards")

    def per_pair_loss(
        self, chosen_rewards: Float[Tensor, " P"], rejected_rewards: Float[Tensor, " P"]
    ) -> Float[Tensor, " P"]:
        """The loss of each pair; that of DPO, unless overridden."""
        return pair_loss(chosen_rewards, rejected_rewards, "sigmoid", 1.0)

    def __call__(self, out: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss of these rows."""
        pairs = self.make_pairs(batch)
        losses = self.per_pair_loss(*self.implicit_rewards(out, batch, pairs))
        return (losses * group_weight(batch)[pairs.chosen]).sum()

    def group_metrics(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, " _"]]:
        """Log-probabilities, lengths and implicit rewards of both sides; groups without a pair."""
        pairs = self.make_pairs(batch)
        chosen, rejected = (x.detach() for x in self.implicit_rewards(out, batch, pairs))
        logprobs = per_response(out.logprobs.detach(), batch.response_mask, "sum")
        length = batch.response_mask.sum(-1).to(logprobs.dtype)
        return {
            "pairs/missing": to_zero_one(pairs.missing),
            "pairs/chosen/logprob": logprobs[pairs.chosen],
            "pairs/rejected/logprob": logprobs[pairs.rejected],
            "pairs/chosen/length": length[pairs.chosen],
            "pairs/rejected/length": length[pairs.rejected],
            "pairs/margin": chosen - rejected,
            "pairs/accuracy": to_zero_one(chosen > rejected),
        }


@dataclass(frozen=True)
class Dpo(PairLoss):
    """Direct preference optimization and its relatives, on the best and the worst response of each group.

    A stored pair is a group of two. In a larger group, such as sampled responses, the best and the worst by
    reward are the pair, so any aggregator of objectives can come before it. Groups without a pair have loss 0
    and keep their weight in the denominator; they are counted.

    Reads: rewards, group, response_mask, loss_weights; ref_logprobs unless `reference` is "none". Writes:
    nothing.
    Logs: pairs/missing, log-probabilities and lengths of both sides, implicit reward margin and accuracy.

    Source: as `pair_loss`; reference "none" with reduction "mean" and without a target margin is the basis of
    SimPO, Meng et al. 2024 (arXiv:2405.14734). Differs: the mean is over groups, by their weights.
    """

    beta: float = 0.1
    """Strength of the implicit KL penalty to the reference: reward = beta log-ratio."""
    loss_type: PairLossType = "sigmoid"
    label_smoothing: float = 0.0
    """Probability that a preference label is flipped; for sigmoid (cDPO), robust and exo_pair."""
    reduction: Reduction = "sum"
    """Of the tokens' log-ratios: the sum is the log-ratio of the response, the mean is TRL's for ipo."""
    reference: Literal["frozen", "none"] = "frozen"
    margin: ModpoMargin | None = None
    """Other objectives (MODPO); with it, rewards have one column per objective, without it one column."""

    def __post_init__(self) -> None:
        _check_beta(self.beta)
        if not 0 <= self.label_smoothing < 0.5:
            raise WiringError(
                f"label_smoothing is {self.label_smoothing}; it is the probability of a flipped preference "
                "label "
                "and must be in [0, 0.5)"
            )
        if self.label_smoothing and self.loss_type not in SMOOTHED_LOSS_TYPES:
            raise WiringError(
                f'loss_type "{self.loss_type}" has no label smoothing, and label_smoothing is '
                f"{self.label_smoothing}; fix: leave it out, or loss_type {', '.join(SMOOTHED_LOSS_TYPES)}"
            )
        if self.loss_type == "exo_pair" and not self.label_smoothing:
            raise WiringError(
                'loss_type "exo_pair" takes the log of label_smoothing, which is 0; fix: '
                "label_smoothing=0.001"
            )

    def make_pairs(self, batch: Batch) -> Pairs:
        """The best and the worst of each group, by the reward or by the objective of the margin."""
        if self.margin is None:
            return super().make_pairs(batch)
        return best_worst_pairs(self.margin.split_rewards(batch)[0], batch.group)

    def implicit_rewards(
        self, out: Outputs, batch: Batch, pairs: Pairs
    ) -> tuple[Float[Tensor, " P"], Float[Tensor, " P"]]:
        """Beta times the log-ratio, minus the margin if there is one."""
        log_ratio = out.logprobs if self.reference == "none" else out.logprobs - batch.require("ref_logprobs")
        reward = self.beta * per_response(log_ratio, batch.response_mask, self.reduction)
        if self.margin is not None:
            weight = self.margin.weights[self.margin.pair_objective]
            reward = modpo_reward(reward, self.margin.split_rewards(batch)[1].to(reward.dtype), weight)
        return reward[pairs.chosen], reward[pairs.rejected]

    def per_pair_loss(
        self, chosen_rewards: Float[Tensor, " P"], rejected_rewards: Float[Tensor, " P"]
    ) -> Float[Tensor, " P"]:
        """The loss of `loss_type`."""
        return pair_loss(chosen_rewards, rejected_rewards, self.loss_type, self.beta, self.label_smoothing)


@dataclass(frozen=True)
class Tdpo(PairLoss):
    """DPO with the token-level forward KL of both sides in the implicit reward.

    With the log-ratio m of a response and D, the sum over its tokens of the full KL(reference || policy):

        variant 1   -log s(beta ((m_w - m_l) - (D_l - D_w)))
        variant 2   -log s(beta ((m_w - m_l) - alpha (D_l - sg[D_w])))

    Variant 1 increases the KL of the chosen response; variant 2 has no gradient in it.

    Reads: rewards, group, response_mask, loss_weights, ref_logprobs. Writes: nothing.
    Logs: as Dpo; the KL of both sides.

    Source: Zeng et al. 2024, TDPO (arXiv:2404.11999). Differs: the logged margin and accuracy are
    those of the argument of the loss; theirs leave out alpha.
    """

    variant: Literal[1, 2] = 2
    beta: float = 0.1
    alpha: float | None = None
    """Coefficient of the KL in variant 2; None: 0.5. Variant 1 has no alpha."""
    requires: ClassVar[frozenset[str]] = frozenset({"ref_policy_kl"})

    def __post_init__(self) -> None:
        _check_beta(self.beta)
        if self.variant == 1 and self.alpha is not None:
            raise WiringError(f"variant 1 of Tdpo has no alpha, and alpha is {self.alpha}; fix: variant=2")
        if self.alpha is not None and not self.alpha >= 0:
            raise WiringError(f"alpha of Tdpo is {self.alpha}; it must not be negative")

    def implicit_rewards(
        self, out: Outputs, batch: Batch, pairs: Pairs
    ) -> tuple[Float[Tensor, " P"], Float[Tensor, " P"]]:
        """Beta times (log-ratio + alpha * KL)."""
        log_ratio = per_response(out.logprobs - batch.require("ref_logprobs"), batch.response_mask, "sum")
        kl = per_response(require_ref_policy_kl(out), batch.response_mask, "sum")
        alpha = 1.0 if self.variant == 1 else 0.5 if self.alpha is None else self.alpha
        chosen_kl = kl if self.variant == 1 else kl.detach()
        chosen = self.beta * (log_ratio + alpha * chosen_kl)[pairs.chosen]
        return chosen, self.beta * (log_ratio + alpha * kl)[pairs.rejected]

    def group_metrics(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, " _"]]:
        """The metrics of all losses on pairs, and the KL of both sides."""
        pairs = self.make_pairs(batch)
        kl = per_response(require_ref_policy_kl(out).detach(), batch.response_mask, "sum")
        kl_metrics = {"pairs/chosen/kl": kl[pairs.chosen], "pairs/rejected/kl": kl[pairs.rejected]}
        return {**super().group_metrics(out, batch), **kl_metrics}


def _check_beta(beta: float) -> None:
    if not (beta > 0 and math.isfinite(beta)):
        raise WiringError(f"beta of a loss on pairs is {beta}; it must be > 0 and finite")
