"""The losses of a pair, as functions of the implicit rewards of its two sides.

Losses on pairs: the better response of a group against the worse one (DPO and relatives, TDPO, MODPO).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from paretune.core.batch import Batch, Outputs
from paretune.core.errors import WiringError
from paretune.loss.base import Loss
from paretune.loss.kl import require_ref_policy_kl
from paretune.loss.listwise import (
    Pairs,
    Reduction,
    best_worst_pairs,
    group_weight,
    indicator,
    per_response,
    scalar_rewards,
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
"""A function of two implicit rewards; the names are TRL's. See `pair_loss`."""

SMOOTHED_LOSS_TYPES = ("sigmoid", "robust", "exo_pair")
"""Forms that know of labels which are wrong."""


def pair_loss(
    chosen_rewards: Float[Tensor, " P"],
    rejected_rewards: Float[Tensor, " P"],
    loss_type: PairLossType,
    beta: float,
    label_smoothing: float = 0.0,
) -> Float[Tensor, " P"]:
    """The loss of each pair, from the implicit rewards c and r of its two sides.

    With g = c - r, e the smoothing, s the logistic function and q = s(g):

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
        chosen_rewards: beta times the log-ratio of policy and reference, of the better response.
        rejected_rewards: The same of the worse response.
        loss_type: Which loss.
        beta: What the rewards were multiplied by; read by ipo and sppo_hard.
        label_smoothing: Probability that a label is wrong; read by sigmoid, robust and exo_pair.

    Source: DPO, Rafailov et al. 2023 (arXiv:2305.18290); with smoothing "conservative DPO", Mitchell 2023;
    Azar et al. 2023 (arXiv:2310.12036); Chowdhury et al. 2024 (arXiv:2403.00409); SLiC, Zhao et al. 2023
    (arXiv:2305.10425); EXO, Ji et al. 2024 (arXiv:2402.00856); NCA, Chen et al. 2024 (arXiv:2402.05369); BCO,
    Jung et al. 2024 (arXiv:2404.04656); SPPO, Wu et al. 2024 (arXiv:2405.00675); APO, D'Oosterlinck et al.
    2024 (arXiv:2408.06266); DiscoPOP, Lu et al. 2024 (arXiv:2406.08414). Differs: bco_pair has no shift of
    rewards, as in TRL.
    """
    gap = chosen_rewards - rejected_rewards
    right, wrong = F.logsigmoid(gap), F.logsigmoid(-gap)
    match loss_type:
        case "sigmoid":
            return -(1 - label_smoothing) * right - label_smoothing * wrong
        case "ipo":
            return ((gap - 0.5) / beta).square()
        case "robust":
            return (label_smoothing * wrong - (1 - label_smoothing) * right) / (1 - 2 * label_smoothing)
        case "hinge":
            return F.relu(1 - gap)
        case "exo_pair":
            sure, unsure = math.log1p(-label_smoothing), math.log(label_smoothing)
            return right.exp() * (right - sure) + wrong.exp() * (wrong - unsure)
        case "discopop":
            # One exponential: apart, exp(-g) overflows where the logistic factor is smallest.
            blend = (F.logsigmoid(20 * gap) - gap).exp()
            return blend - torch.sigmoid(-20 * gap) * right
    return _per_side_loss(chosen_rewards, rejected_rewards, loss_type, beta)


def _per_side_loss(
    chosen_rewards: Tensor, rejected_rewards: Tensor, loss_type: PairLossType, beta: float
) -> Tensor:
    """The forms that look at each side against 0."""
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
    """(reward - others) / weight: what is left to explain the preference once the others are accounted for.

    Source: Zhou et al. 2023, MODPO (arXiv:2310.03708).
    """
    return (reward - other_rewards) / weight


@dataclass(frozen=True)
class ModpoMargin:
    """The other objectives of a preference: several objectives in one loss on pairs, without sampling.

    Pairs are made by the objective `pair_objective`. What the responses are worth by the others, each times its
    weight, is taken off their implicit rewards, and the rest divided by the weight of `pair_objective`:

        reward_y = (beta log-ratio_y - sum over the others of w_k signal_yk) / w_preferred

    The signals of the others have to be on the scale of beta times a log-ratio, a few units at most, and a
    small weight of `pair_objective` multiplies their noise. A response that one of them did not score is in no
    pair.

    Reads: rewards, its objectives still apart (no aggregator before).

    Source: Zhou et al. 2023, MODPO (arXiv:2310.03708).
    """

    pair_objective: str
    weights: Mapping[str, float]
    """Objective -> weight, `pair_objective` among them; they need not add up to 1."""

    def __post_init__(self) -> None:
        if self.pair_objective not in self.weights or len(self.weights) < 2:
            raise WiringError(
                f'Margin makes pairs by "{self.pair_objective}" and has weights of {", ".join(self.weights)}; '
                "fix: give a weight to that objective and to at least one more"
            )
        if not all(math.isfinite(weight) for weight in self.weights.values()):
            raise WiringError(f"Margin has weights that are not finite: {dict(self.weights)}")
        if not self.weights[self.pair_objective] > 0:
            raise WiringError(
                f'the weight of "{self.pair_objective}", by which Margin makes pairs, is '
                f"{self.weights[self.pair_objective]}; it divides and must be > 0"
            )

    def split_rewards(self, batch: Batch) -> tuple[Float[Tensor, "B 1"], Float[Tensor, " B"]]:
        """What pairs are made by, NaN where an other is unknown; and the weighted sum of the others.

        Raises:
            WiringError: An aggregator came before, or there is no objective of a name.
        """
        if batch.rewards.shape[-1] != len(batch.objectives):
            raise WiringError(
                "Margin reads the objectives apart, and an aggregator has made one signal of them; "
                "fix: leave the aggregator out of the recipe's worth"
            )
        for name in self.weights:
            batch.score_column(name)  # refuses names that are not there
        rest = {name: w for name, w in self.weights.items() if name != self.pair_objective and w != 0}
        columns = [batch.rewards[:, batch.objectives.index(name)] * w for name, w in rest.items()]
        by = batch.rewards[:, batch.objectives.index(self.pair_objective)]
        others = torch.stack([torch.zeros_like(by), *columns]).sum(0)
        return torch.where(others.isnan(), torch.nan, by)[:, None], others


class PairLoss(Loss):
    """What losses on pairs share: an implicit reward of every response, and a loss of two of them."""

    requires_full_groups: ClassVar[bool] = True

    def make_pairs(self, batch: Batch) -> Pairs:
        """Who is compared with whom: the best and the worst of each group."""
        return best_worst_pairs(scalar_rewards(batch), batch.group)

    def implicit_rewards(
        self, out: Outputs, batch: Batch, pairs: Pairs
    ) -> tuple[Float[Tensor, " P"], Float[Tensor, " P"]]:
        """Implicit rewards of the chosen and of the rejected responses.

        Raises:
            WiringError: The subclass does not override this.
        """
        raise WiringError(f"{type(self).__name__} does not say what the implicit reward of a response is")

    def per_pair_loss(
        self, chosen_rewards: Float[Tensor, " P"], rejected_rewards: Float[Tensor, " P"]
    ) -> Float[Tensor, " P"]:
        """The loss of each pair: that of DPO, unless the subclass overrides it."""
        return pair_loss(chosen_rewards, rejected_rewards, "sigmoid", 1.0)

    def __call__(self, out: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss of these rows."""
        pairs = self.make_pairs(batch)
        each = self.per_pair_loss(*self.implicit_rewards(out, batch, pairs))
        return (each * group_weight(batch)[pairs.chosen]).sum()

    def group_metrics(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, " _"]]:
        """Log-probabilities, lengths and implicit rewards of both sides; groups without a pair."""
        pairs = self.make_pairs(batch)
        chosen, rejected = (x.detach() for x in self.implicit_rewards(out, batch, pairs))
        logp = per_response(out.logprobs.detach(), batch.response_mask, "sum")
        length = batch.response_mask.sum(-1).to(logp.dtype)
        return {
            "pairs/missing": indicator(pairs.missing),
            "pairs/chosen/logprob": logp[pairs.chosen],
            "pairs/rejected/logprob": logp[pairs.rejected],
            "pairs/chosen/length": length[pairs.chosen],
            "pairs/rejected/length": length[pairs.rejected],
            "pairs/margin": chosen - rejected,
            "pairs/accuracy": indicator(chosen > rejected),
        }


@dataclass(frozen=True)
class Dpo(PairLoss):
    """Direct preference optimisation and its relatives, on the best and the worst response of each group.

    A stored pair is a group of two. In a larger group, as of responses that were just sampled, the best and
    the worst by signal are the pair, so that any aggregator of objectives may stand before it. Groups without
    a better and a worse response teach nothing and keep their share of the denominator; they are counted.

    Reads: rewards, group, response_mask, loss_weights; ref_logprobs unless `reference` is "none". Writes: nothing.
    Logs: pairs/none, log-probabilities and lengths of both sides, implicit reward margin and accuracy.

    Source: as `pair_loss`; reference "none" with reduction "mean" and no margin of its own is what SimPO
    builds on, Meng et al. 2024 (arXiv:2405.14734). Differs: the mean is over groups, by their weights.
    """

    beta: float = 0.1
    """How dear it is to leave the reference: reward = beta log-ratio."""
    loss_type: PairLossType = "sigmoid"
    label_smoothing: float = 0.0
    """Probability that a preference is the wrong way round; sigmoid (cDPO), robust and exo_pair only."""
    reduction: Reduction = "sum"
    """Of the tokens' log-ratios: the sum is the log-ratio of the response, the mean is TRL's for ipo."""
    reference: Literal["frozen", "none"] = "frozen"
    margin: ModpoMargin | None = None
    """Other objectives (MODPO); the signal is then of all objectives, and of one without."""

    def __post_init__(self) -> None:
        _check_beta(self.beta)
        if not 0 <= self.label_smoothing < 0.5:
            raise WiringError(
                f"the label smoothing is {self.label_smoothing}; it is the share of preferences that are the wrong "
                "way round, and lies in [0, 0.5)"
            )
        if self.label_smoothing and self.loss_type not in SMOOTHED_LOSS_TYPES:
            raise WiringError(
                f'the form "{self.loss_type}" of Dpo knows no smoothing, and it is {self.label_smoothing}; '
                f"fix: leave it out, or one of the forms {', '.join(SMOOTHED_LOSS_TYPES)}"
            )
        if self.loss_type == "exo_pair" and not self.label_smoothing:
            raise WiringError('the form "exo_pair" of Dpo takes the log of its smoothing; fix: 0.001 or so')

    def make_pairs(self, batch: Batch) -> Pairs:
        """The best and the worst of each group, by the signal or by the preferred objective."""
        by = scalar_rewards(batch) if self.margin is None else self.margin.split_rewards(batch)[0]
        return best_worst_pairs(by, batch.group)

    def implicit_rewards(
        self, out: Outputs, batch: Batch, pairs: Pairs
    ) -> tuple[Float[Tensor, " P"], Float[Tensor, " P"]]:
        """Beta times the log-ratio, corrected by the margin where there is one."""
        gap = out.logprobs if self.reference == "none" else out.logprobs - batch.require("ref_logprobs")
        reward = self.beta * per_response(gap, batch.response_mask, self.reduction)
        if self.margin is not None:
            weight = self.margin.weights[self.margin.pair_objective]
            reward = modpo_reward(reward, self.margin.split_rewards(batch)[1].to(reward.dtype), weight)
        return reward[pairs.chosen], reward[pairs.rejected]

    def per_pair_loss(
        self, chosen_rewards: Float[Tensor, " P"], rejected_rewards: Float[Tensor, " P"]
    ) -> Float[Tensor, " P"]:
        """The loss of the form."""
        return pair_loss(chosen_rewards, rejected_rewards, self.loss_type, self.beta, self.label_smoothing)


@dataclass(frozen=True)
class Tdpo(PairLoss):
    """DPO that also weighs how far each side has drifted from the reference, token by token.

    With the log-ratio m of a response and its drift D, the sum over its tokens of the exact
    KL(reference || policy):

        form 1   -log s(beta ((m_w - m_l) - (D_l - D_w)))
        form 2   -log s(beta ((m_w - m_l) - alpha (D_l - sg[D_w])))

    Form 1 pushes the drift of the chosen response up; form 2 leaves it alone.

    Reads: rewards, group, response_mask, loss_weights, ref_logprobs. Writes: nothing.
    Logs: as Dpo; the drift of both sides.

    Source: Zeng et al. 2024, TDPO (arXiv:2404.11999). Differs: the logged margin and accuracy are
    those of the loss's own argument; theirs leave out alpha.
    """

    variant: Literal[1, 2] = 2
    beta: float = 0.1
    alpha: float | None = None
    """Share of the drift that counts in form 2; None: 0.5. Form 1 has no such share."""
    requires: ClassVar[frozenset[str]] = frozenset({"kl_reference_policy"})

    def __post_init__(self) -> None:
        _check_beta(self.beta)
        if self.variant == 1 and self.alpha is not None:
            raise WiringError(f"Tdpo of form 1 knows no alpha, and it is {self.alpha}; fix: form=2")
        if self.alpha is not None and not self.alpha >= 0:
            raise WiringError(f"the alpha of Tdpo is {self.alpha}; it must not be negative")

    def implicit_rewards(
        self, out: Outputs, batch: Batch, pairs: Pairs
    ) -> tuple[Float[Tensor, " P"], Float[Tensor, " P"]]:
        """Beta times log-ratio plus drift."""
        gap = per_response(out.logprobs - batch.require("ref_logprobs"), batch.response_mask, "sum")
        drift = per_response(require_ref_policy_kl(out), batch.response_mask, "sum")
        alpha = 1.0 if self.variant == 1 else 0.5 if self.alpha is None else self.alpha
        aside = drift if self.variant == 1 else drift.detach()
        chosen = self.beta * (gap + alpha * aside)[pairs.chosen]
        return chosen, self.beta * (gap + alpha * drift)[pairs.rejected]

    def group_metrics(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, " _"]]:
        """What all losses on pairs show, and the drift of both sides."""
        pairs, drift = (
            self.make_pairs(batch),
            per_response(require_ref_policy_kl(out).detach(), batch.response_mask, "sum"),
        )
        sides = {"pairs/chosen/kl": drift[pairs.chosen], "pairs/rejected/kl": drift[pairs.rejected]}
        return {**super().group_metrics(out, batch), **sides}


def _check_beta(beta: float) -> None:
    if not (beta > 0 and math.isfinite(beta)):
        raise WiringError(f"the beta of a loss on pairs is {beta}; it must be > 0")
