"""Losses on pairs: the better response of a group against the worse one (DPO and relatives, TDPO, MODPO)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from paretune.batch import Batch, Outputs
from paretune.errors import WiringError
from paretune.loss.exact import drift_of
from paretune.loss.group import (
    Pairs,
    Reduction,
    best_and_worst,
    group_weight,
    one_signal,
    per_response,
    share,
)
from paretune.loss.pair import SMOOTHED, Form, pair_loss
from paretune.loss.term import Loss


def margin_reward(
    reward: Float[Tensor, " B"], others: Float[Tensor, " B"], weight: float
) -> Float[Tensor, " B"]:
    """(reward - others) / weight: what is left to explain the preference once the others are accounted for.

    Source: Zhou et al. 2023, MODPO (arXiv:2310.03708).
    """
    return (reward - others) / weight


@dataclass(frozen=True)
class Margin:
    """The other objectives of a preference: several objectives in one loss on pairs, without sampling.

    Pairs are made by the objective `preferred`. What the responses are worth by the others, each times its
    weight, is taken off their implicit rewards, and the rest divided by the weight of `preferred`:

        reward_y = (beta log-ratio_y - sum over the others of w_k signal_yk) / w_preferred

    The signals of the others have to be on the scale of beta times a log-ratio, a few units at most, and a
    small weight of `preferred` multiplies their noise. A response that one of them did not score is in no
    pair.

    Reads: signal, its objectives still apart (no aggregator before).

    Source: Zhou et al. 2023, MODPO (arXiv:2310.03708).
    """

    preferred: str
    weights: Mapping[str, float]
    """Objective -> weight, `preferred` among them; they need not add up to 1."""

    def __post_init__(self) -> None:
        if self.preferred not in self.weights or len(self.weights) < 2:
            raise WiringError(
                f'Margin makes pairs by "{self.preferred}" and has weights of {", ".join(self.weights)}; '
                "fix: give a weight to that objective and to at least one more"
            )
        if not all(math.isfinite(weight) for weight in self.weights.values()):
            raise WiringError(f"Margin has weights that are not finite: {dict(self.weights)}")
        if not self.weights[self.preferred] > 0:
            raise WiringError(
                f'the weight of "{self.preferred}", by which Margin makes pairs, is '
                f"{self.weights[self.preferred]}; it divides and must be > 0"
            )

    def apart(self, batch: Batch) -> tuple[Float[Tensor, "B 1"], Float[Tensor, " B"]]:
        """What pairs are made by, NaN where an other is unknown; and the weighted sum of the others.

        Raises:
            WiringError: An aggregator came before, or there is no objective of a name.
        """
        if batch.signal.shape[-1] != len(batch.objectives):
            raise WiringError(
                "Margin reads the objectives apart, and an aggregator has made one signal of them; "
                "fix: leave the aggregator out of the recipe's worth"
            )
        for name in self.weights:
            batch.column(name)  # refuses names that are not there
        rest = {name: w for name, w in self.weights.items() if name != self.preferred and w != 0}
        columns = [batch.signal[:, batch.objectives.index(name)] * w for name, w in rest.items()]
        by = batch.signal[:, batch.objectives.index(self.preferred)]
        others = torch.stack([torch.zeros_like(by), *columns]).sum(0)
        return torch.where(others.isnan(), torch.nan, by)[:, None], others


class PairLoss(Loss):
    """What losses on pairs share: an implicit reward of every response, and a loss of two of them."""

    by_group: ClassVar[bool] = True

    def pairs(self, batch: Batch) -> Pairs:
        """Who is compared with whom: the best and the worst of each group."""
        return best_and_worst(one_signal(batch), batch.group)

    def rewards(
        self, out: Outputs, batch: Batch, pairs: Pairs
    ) -> tuple[Float[Tensor, " P"], Float[Tensor, " P"]]:
        """Implicit rewards of the chosen and of the rejected responses.

        Raises:
            WiringError: The subclass does not override this.
        """
        raise WiringError(f"{type(self).__name__} does not say what the implicit reward of a response is")

    def per_pair(self, chosen: Float[Tensor, " P"], rejected: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        """The loss of each pair: that of DPO, unless the subclass overrides it."""
        return pair_loss(chosen, rejected, "sigmoid", 1.0)

    def __call__(self, out: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss of these rows."""
        pairs = self.pairs(batch)
        each = self.per_pair(*self.rewards(out, batch, pairs))
        return (each * group_weight(batch)[pairs.chosen]).sum()

    def watch_groups(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, " _"]]:
        """Log-probabilities, lengths and implicit rewards of both sides; groups without a pair."""
        pairs = self.pairs(batch)
        chosen, rejected = (x.detach() for x in self.rewards(out, batch, pairs))
        logp = per_response(out.logp.detach(), batch.respond, "sum")
        length = batch.respond.sum(-1).to(logp.dtype)
        return {
            "pairs/none": share(pairs.lacking),
            "pairs/chosen/logp": logp[pairs.chosen],
            "pairs/rejected/logp": logp[pairs.rejected],
            "pairs/chosen/length": length[pairs.chosen],
            "pairs/rejected/length": length[pairs.rejected],
            "pairs/margin": chosen - rejected,
            "pairs/accuracy": share(chosen > rejected),
        }


@dataclass(frozen=True)
class Dpo(PairLoss):
    """Direct preference optimisation and its relatives, on the best and the worst response of each group.

    A stored pair is a group of two. In a larger group, as of responses that were just sampled, the best and
    the worst by signal are the pair, so that any aggregator of objectives may stand before it. Groups without
    a better and a worse response teach nothing and keep their share of the denominator; they are counted.

    Reads: signal, group, respond, weight; reference_logp unless `reference` is "none". Writes: nothing.
    Logs: pairs/none, log-probabilities and lengths of both sides, implicit reward margin and accuracy.

    Source: as `pair_loss`; reference "none" with reduction "mean" and no margin of its own is what SimPO
    builds on, Meng et al. 2024 (arXiv:2405.14734). Differs: the mean is over groups, by their weights.
    """

    beta: float = 0.1
    """How dear it is to leave the reference: reward = beta log-ratio."""
    form: Form = "sigmoid"
    smoothing: float = 0.0
    """Probability that a preference is the wrong way round; sigmoid (cDPO), robust and exo_pair only."""
    reduction: Reduction = "sum"
    """Of the tokens' log-ratios: the sum is the log-ratio of the response, the mean is TRL's for ipo."""
    reference: Literal["frozen", "none"] = "frozen"
    margin: Margin | None = None
    """Other objectives (MODPO); the signal is then of all objectives, and of one without."""

    def __post_init__(self) -> None:
        _positive(self.beta)
        if not 0 <= self.smoothing < 0.5:
            raise WiringError(
                f"the label smoothing is {self.smoothing}; it is the share of preferences that are the wrong "
                "way round, and lies in [0, 0.5)"
            )
        if self.smoothing and self.form not in SMOOTHED:
            raise WiringError(
                f'the form "{self.form}" of Dpo knows no smoothing, and it is {self.smoothing}; '
                f"fix: leave it out, or one of the forms {', '.join(SMOOTHED)}"
            )
        if self.form == "exo_pair" and not self.smoothing:
            raise WiringError('the form "exo_pair" of Dpo takes the log of its smoothing; fix: 0.001 or so')

    def pairs(self, batch: Batch) -> Pairs:
        """The best and the worst of each group, by the signal or by the preferred objective."""
        by = one_signal(batch) if self.margin is None else self.margin.apart(batch)[0]
        return best_and_worst(by, batch.group)

    def rewards(
        self, out: Outputs, batch: Batch, pairs: Pairs
    ) -> tuple[Float[Tensor, " P"], Float[Tensor, " P"]]:
        """Beta times the log-ratio, corrected by the margin where there is one."""
        gap = out.logp if self.reference == "none" else out.logp - batch.need("reference_logp")
        reward = self.beta * per_response(gap, batch.respond, self.reduction)
        if self.margin is not None:
            weight = self.margin.weights[self.margin.preferred]
            reward = margin_reward(reward, self.margin.apart(batch)[1].to(reward.dtype), weight)
        return reward[pairs.chosen], reward[pairs.rejected]

    def per_pair(self, chosen: Float[Tensor, " P"], rejected: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        """The loss of the form."""
        return pair_loss(chosen, rejected, self.form, self.beta, self.smoothing)


@dataclass(frozen=True)
class Tdpo(PairLoss):
    """DPO that also weighs how far each side has drifted from the reference, token by token.

    With the log-ratio m of a response and its drift D, the sum over its tokens of the exact
    KL(reference || policy):

        form 1   -log s(beta ((m_w - m_l) - (D_l - D_w)))
        form 2   -log s(beta ((m_w - m_l) - alpha (D_l - sg[D_w])))

    Form 1 pushes the drift of the chosen response up; form 2 leaves it alone.

    Reads: signal, group, respond, weight, reference_logp. Writes: nothing.
    Logs: as Dpo; the drift of both sides.

    Source: Zeng et al. 2024, TDPO (arXiv:2404.11999). Differs: the logged margin and accuracy are
    those of the loss's own argument; theirs leave out alpha.
    """

    form: Literal[1, 2] = 2
    beta: float = 0.1
    alpha: float | None = None
    """Share of the drift that counts in form 2; None: 0.5. Form 1 has no such share."""
    wants: ClassVar[frozenset[str]] = frozenset({"kl_reference_policy"})

    def __post_init__(self) -> None:
        _positive(self.beta)
        if self.form == 1 and self.alpha is not None:
            raise WiringError(f"Tdpo of form 1 knows no alpha, and it is {self.alpha}; fix: form=2")
        if self.alpha is not None and not self.alpha >= 0:
            raise WiringError(f"the alpha of Tdpo is {self.alpha}; it must not be negative")

    def rewards(
        self, out: Outputs, batch: Batch, pairs: Pairs
    ) -> tuple[Float[Tensor, " P"], Float[Tensor, " P"]]:
        """Beta times log-ratio plus drift."""
        gap = per_response(out.logp - batch.need("reference_logp"), batch.respond, "sum")
        drift = per_response(drift_of(out), batch.respond, "sum")
        alpha = 1.0 if self.form == 1 else 0.5 if self.alpha is None else self.alpha
        aside = drift if self.form == 1 else drift.detach()
        chosen = self.beta * (gap + alpha * aside)[pairs.chosen]
        return chosen, self.beta * (gap + alpha * drift)[pairs.rejected]

    def watch_groups(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, " _"]]:
        """What all losses on pairs show, and the drift of both sides."""
        pairs, drift = self.pairs(batch), per_response(drift_of(out).detach(), batch.respond, "sum")
        sides = {"pairs/chosen/kl": drift[pairs.chosen], "pairs/rejected/kl": drift[pairs.rejected]}
        return {**super().watch_groups(out, batch), **sides}


def _positive(beta: float) -> None:
    if not (beta > 0 and math.isfinite(beta)):
        raise WiringError(f"the beta of a loss on pairs is {beta}; it must be > 0")
