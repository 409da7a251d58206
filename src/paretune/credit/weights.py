"""Weighted sums whose weights are not the same all the time, or not the same for all prompts."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from paretune.batch import Batch
from paretune.credit.aggregate import aggregation_metrics, require_unaggregated, weight_vector, weighted_sum
from paretune.credit.step import CreditStep, Metrics, State
from paretune.errors import WiringError

Weights = Mapping[str, float]


def row_weighted_sum(x: Float[Tensor, "B J"], weights: Float[Tensor, "B J"]) -> Float[Tensor, "B 1"]:
    """Sum over j of w_bj x_bj; what has no weight in a row is not looked at there. NaN weights give NaN."""
    used = (weights != 0).any(0)
    parts = torch.where(weights != 0, x * weights, 0.0)
    return parts[:, used].sum(-1, keepdim=True)


def interpolate_weights(schedule: tuple[tuple[int, Weights], ...], step: int) -> dict[str, float]:
    """Weights that move in straight lines from point to point, and stay before the first and after the last.

    An objective that a point does not name has the weight 0 there.
    """
    after = next((i for i, (at, _) in enumerate(schedule) if at > step), len(schedule))
    left, right = schedule[max(after - 1, 0)], schedule[min(after, len(schedule) - 1)]
    share = (step - left[0]) / (right[0] - left[0]) if right[0] > left[0] <= step else 0.0
    names = dict.fromkeys(name for _, weights in schedule for name in weights)
    return {
        name: (1 - share) * left[1].get(name, 0.0) + share * right[1].get(name, 0.0)
        if share
        else left[1].get(name, 0.0)
        for name in names
    }


@dataclass(frozen=True)
class ScheduledWeightedSum(CreditStep):
    """A weighted sum whose weights depend on the training step; with one point it is WeightedSum.

    Reads: rewards. Writes: rewards (J becomes 1). Remembers: the step.
    Reports: as WeightedSum; `state/weight/{objective}`.

    Source: ours; the weights of linear scalarisation in Li et al. 2025 (arXiv:2503.21819), in time.
    """

    schedule: tuple[tuple[int, Weights], ...]
    """(training step from 0, weights), in the order of the steps."""

    def __post_init__(self) -> None:
        steps = [step for step, _ in self.schedule]
        if not steps or steps != sorted(set(steps)):
            raise WiringError(
                f"ScheduledSum has the steps {steps}: name at least one, each later than the last"
            )

    def init_state(self) -> State:
        """The first step."""
        return 0

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """The sum with the weights of this step."""
        now = interpolate_weights(self.schedule, state)
        weights = weight_vector(now, batch, "ScheduledSum")
        total = weighted_sum(batch.rewards, weights)
        metrics = aggregation_metrics(batch, weights, total) | {
            f"state/weight/{name}": w for name, w in now.items()
        }
        return batch.replace(rewards=total), state + 1, metrics


@dataclass(frozen=True)
class PerCategoryWeightedSum(CreditStep):
    """A weighted sum with weights of its own for each kind of prompt.

    Reads: rewards, category, categories. Writes: rewards (J becomes 1). Reports: as WeightedSum.

    Source: ours. Attack and benign prompts want different things of the same four objectives.
    """

    weights: Mapping[str, Weights]
    """Kind -> weights."""
    default_weights: Weights = field(default_factory=dict)
    """Weights of every other kind."""

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """The sum with the weights of each row's kind."""
        rows = torch.stack([self._weights_for(kind, batch) for kind in batch.categories])[
            batch.require("category")
        ]
        total = row_weighted_sum(batch.rewards, rows)
        return batch.replace(rewards=total), state, aggregation_metrics(batch, rows, total)

    def _weights_for(self, category: str, batch: Batch) -> Float[Tensor, " J"]:
        found = self.weights.get(category, self.default_weights)
        if not found:
            known = ", ".join(self.weights)
            raise WiringError(
                f'KindSum has no weights for the kind "{category}", only for {known}; give `otherwise`'
            )
        return weight_vector(found, batch, "KindSum")


@dataclass(frozen=True)
class PreferenceWeightedSum(CreditStep):
    """A weighted sum with the weights that each prompt asks for: a preference-conditioned policy.

    All responses of a prompt must be asked for the same, or their signals are not comparable. A row whose
    preference is NaN is unscored.

    Reads: rewards, preference_weights. Writes: rewards (J becomes 1). Reports: as WeightedSum.

    Source: Yang et al. 2024 (RiC, arXiv:2402.10207) and Guo et al. 2024 (controllable preference
    optimisation, arXiv:2402.19085) condition policies on preferences. Differs: they put the preference into
    supervised data or pairs; here it weighs the scores of responses that the policy sampled.
    """

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """The sum with each row's own weights."""
        require_unaggregated(batch, "PreferenceSum")
        if batch.preference_weights is None:
            raise WiringError("PreferenceSum reads batch.preference: give each prompt its `preference`")
        total = row_weighted_sum(batch.rewards, batch.preference_weights)
        return (
            batch.replace(rewards=total),
            state,
            aggregation_metrics(batch, batch.preference_weights, total),
        )
