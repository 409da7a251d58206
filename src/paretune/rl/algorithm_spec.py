"""A recipe: everything that makes one algorithm different from another, and nothing else."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from jaxtyping import Bool, Float
from torch import Tensor

from paretune.core.errors import WiringError
from paretune.core.reductions import LossAggregationMode, token_weights
from paretune.credit.base import CreditStep, chain, flatten_steps
from paretune.data.chat import PromptFormat, ScorerView
from paretune.loss.base import WeightedLoss, required_outputs
from paretune.models.model_passes import ModelPass, OldLogprobs
from paretune.rollout.sampler import OnPolicy, StoredResponses

CONFIDENCE_OBJECTIVE = "confidence"
"""The objective that a stated confidence is, where one is asked for."""
EMPTY_CHAIN = chain()
"""The chain without a step."""


@dataclass(frozen=True)
class LossAggregation:
    """How much each response token counts: the denominator of every loss, in one place.

    "token": all tokens alike (DAPO). "sequence": all responses alike (GRPO). "sequence_sum": the mean over
    responses of sums over tokens (RLOO). "constant": every token 1 / (length * rows) (Dr. GRPO). Responses
    without a score keep their share of the denominator, and so do those without a token unless `empty_rows` says
    "skip", as in verl.

    Reads: response_mask. Writes: loss_weights.

    Source: the three normalisations compared in Liu et al. 2025 (arXiv:2503.20783) and Yu et al. 2025
    (arXiv:2503.14476).
    """

    mode: LossAggregationMode = "token"
    norm_length: int = 1
    empty_rows: Literal["count", "skip"] = "count"

    def __call__(self, response_mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """The weight of every token, over all the rows of an optimiser step."""
        return token_weights(response_mask, self.mode, self.norm_length, self.empty_rows)


@dataclass(frozen=True, kw_only=True)
class CriticConfig:
    """How a critic begins, and how fast it learns. Whether there is one follows from the parts.

    Source: Ouyang et al. 2022, appendix C (arXiv:2203.02155), starts it from the reward model; Zheng et al.
    2023, section 5.3 (arXiv:2307.04964), lets it learn alone first.
    """

    init_from: Literal["policy", "reward"] = "policy"
    """Whose body it gets; that of the reward model also brings its heads, weighted as the recipe weights."""
    warmup_steps: int = 0
    """Training steps at the beginning in which only the critic learns; the policy warms up after them."""
    lr_multiplier: float = 1.0
    """Its learning rate as a multiple of the policy's."""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0 or not self.lr_multiplier > 0:
            raise WiringError(
                f"the critic begins with alone={self.warmup_steps} and rate={self.lr_multiplier}; alone must not be negative "
                "and rate must be above 0"
            )


@dataclass(frozen=True, kw_only=True)
class AuxiliaryLm:
    """A loss on demonstrations, added to every optimiser step: it keeps what the policy could say before.

    Source: Ouyang et al. 2022, eq. 2 (arXiv:2203.02155), the mix of pre-training gradients.
    """

    coefficient: float
    batch_size: int = 16
    """Demonstrations for each optimiser step."""


@dataclass(frozen=True, kw_only=True)
class PretrainPhase:
    """A policy that another recipe makes of the start beforehand; frozen then, and named by its role."""

    role: str
    spec: "AlgorithmSpec"
    max_steps: int

    def describe(self) -> list[str]:
        """To be read: its recipe as a block of lines below its name."""
        return [f"Phase(role={self.role!r}, steps={self.max_steps}), its recipe:", *describe(self.spec)]


@dataclass(frozen=True, kw_only=True)
class WeightAverage:
    """A frozen model whose weights are the mean of others': of the start, and of one more like it.

    Source: Chegini et al. 2024, SALSA (arXiv:2411.01798), after Wortsman et al. 2022 (arXiv:2203.05482).
    """

    role: str
    other_path: str
    """Folder of the second model; "" makes one as the start was made, with another seed."""
    fraction: float = 0.5
    """Of the second model."""


@dataclass(frozen=True, kw_only=True)
class AlgorithmSpec:
    """source -> scores -> worth -> measure -> credit -> losses.

    There are two chains because selection must come before the expensive forward passes of `model_passes`, and
    what needs their answers after.
    """

    name: str
    rollout: OnPolicy | StoredResponses
    phases: tuple[PretrainPhase | WeightAverage, ...] = ()
    """Models that have to be made first."""
    scorer_view: ScorerView = "whole"
    """What scorers are shown of a response; the policy is credited for all of it."""
    reward_steps: CreditStep = EMPTY_CHAIN
    """Before models are asked: aggregate, shape, select."""
    model_passes: tuple[ModelPass, ...] = (OldLogprobs(),)
    """What old and frozen models say of the rows that are left."""
    credit: CreditStep = EMPTY_CHAIN
    """After models were asked: penalise, normalise, estimate advantages."""
    losses: tuple[WeightedLoss, ...]
    loss_aggregation: LossAggregation = LossAggregation()
    num_iterations: int = 1
    minibatch_size: int | None = None
    """Rows of one optimiser step; None: all."""
    critic: CriticConfig = CriticConfig()
    auxiliary_lm: AuxiliaryLm | None = None

    def __post_init__(self) -> None:
        if self.num_iterations < 1 or (self.minibatch_size is not None and self.minibatch_size < 1):
            raise WiringError(
                f'recipe "{self.name}": epochs is {self.num_iterations} and minibatch {self.minibatch_size}; '
                "both must be at least 1"
            )

    def requires(self) -> frozenset[str]:
        """What the losses want of the forward pass beside log-probabilities."""
        return required_outputs(self.losses)

    def losses_at(self, step: int) -> tuple[WeightedLoss, ...]:
        """The losses of a training step: those of the critic alone while it learns alone."""
        if step >= self.critic.warmup_steps:
            return self.losses
        return tuple(term for term in self.losses if term.loss.requires == {"values"})

    def requires_full_groups(self) -> bool:
        """Must the rows of a prompt stay together?"""
        return any(term.loss.requires_full_groups for term in self.losses)

    def temperature(self) -> float:
        """At which temperature log-probabilities are taken: that of sampling."""
        return self.rollout.temperature if isinstance(self.rollout, OnPolicy) else 1.0

    @property
    def prompt_format(self) -> PromptFormat:
        """What is asked of the policy beside the prompt."""
        return self.rollout.prompt_format if isinstance(self.rollout, OnPolicy) else ""

    def scored_objectives(self, objectives: Sequence[str]) -> tuple[str, ...]:
        """The objectives, and behind them what the frame lets a response say of itself."""
        own = (
            (CONFIDENCE_OBJECTIVE,)
            if self.prompt_format == "confidence" and CONFIDENCE_OBJECTIVE not in objectives
            else ()
        )
        return (*objectives, *own)

    def replace(self, **changes: Any) -> "AlgorithmSpec":
        """The same recipe with some fields replaced."""
        return replace(self, **changes)


def map_phases(
    phases: Sequence[PretrainPhase | WeightAverage], transform: Callable[[AlgorithmSpec], AlgorithmSpec]
) -> tuple[PretrainPhase | WeightAverage, ...]:
    """The models that are made first, with every phase's recipe changed."""
    return tuple(
        replace(made, spec=transform(made.spec)) if isinstance(made, PretrainPhase) else made
        for made in phases
    )


def phase_specs(phases: Sequence[PretrainPhase | WeightAverage]) -> list[AlgorithmSpec]:
    """The recipes of the phases among the models that are made first."""
    return [made.spec for made in phases if isinstance(made, PretrainPhase)]


def describe(spec: AlgorithmSpec) -> list[str]:
    """The recipe to be read: one line a part, in the order they act, what they belong to in front."""
    rows = spec.minibatch_size
    parts: list[tuple[str, list[str]]] = [
        ("algorithm", [spec.name]),
        ("before", [line for made in spec.phases for line in _describe_phase(made)]),
        ("source", [repr(spec.rollout)]),
        ("view", [] if spec.scorer_view == "whole" else [spec.scorer_view]),
        ("worth", [repr(step) for step in flatten_steps(spec.reward_steps)]),
        ("measure", [repr(measure) for measure in spec.model_passes]),
        ("credit", [repr(step) for step in flatten_steps(spec.credit)]),
        ("losses", [f"{term.coefficient:g} x {term.loss!r}" for term in spec.losses]),
        ("weigh", [repr(spec.loss_aggregation)]),
        ("updates", [f"epochs={spec.num_iterations}, minibatch={'all rows' if rows is None else rows}"]),
        ("critic", [repr(spec.critic)] if "values" in spec.requires() else []),
        ("aside", [] if spec.auxiliary_lm is None else [repr(spec.auxiliary_lm)]),
    ]
    return [f"{'' if at else part:<10} {line}" for part, lines in parts for at, line in enumerate(lines)]


def _describe_phase(phase: PretrainPhase | WeightAverage) -> list[str]:
    return phase.describe() if isinstance(phase, PretrainPhase) else [repr(phase)]
