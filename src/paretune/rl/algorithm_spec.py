"""The algorithm spec: everything that makes one algorithm different from another, and nothing else."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

from jaxtyping import Bool, Float
from torch import Tensor

from paretune.core.errors import WiringError
from paretune.core.reductions import LossAggregationMode, token_weights
from paretune.core.requirements import Requirements
from paretune.credit.base import CreditStep, chain, flatten_steps
from paretune.data.prompt_formats import PromptFormat, ScorerView
from paretune.loss.base import WeightedLoss, required_outputs
from paretune.models.model_passes import ModelPass, OldLogprobs
from paretune.rollout.sampler import RolloutSource

CONFIDENCE_OBJECTIVE = "confidence"
"""Name of the objective for verbalized confidence, if the prompt format asks for it."""
EMPTY_CHAIN = chain()
"""The chain without steps."""
LABEL_WIDTH = 16
"""Columns of the labels of `describe`; the longest is "loss_aggregation"."""


@dataclass(frozen=True)
class LossAggregation:
    """The weight of each response token in every loss: the one place where denominators are computed.

    "token_mean": all tokens alike (DAPO). "seq_mean_token_mean": all responses alike (GRPO).
    "seq_mean_token_sum": the mean over responses of sums over tokens (RLOO). "seq_mean_token_sum_norm": every
    token 1 / (norm_length * rows) (Dr. GRPO). Responses without a score keep their share of the denominator,
    and so do those without a token unless `empty_rows` is "exclude", as in verl.

    Reads: response_mask. Writes: loss_weights.

    Source: the three normalizations compared in Liu et al. 2025 (arXiv:2503.20783) and Yu et al. 2025
    (arXiv:2503.14476).
    """

    mode: LossAggregationMode = "token_mean"
    norm_length: int = 1
    empty_rows: Literal["include", "exclude"] = "include"

    def __post_init__(self) -> None:
        modes = get_args(LossAggregationMode)
        for name, choices in (("mode", modes), ("empty_rows", ("include", "exclude"))):
            value = getattr(self, name)
            if value not in choices:
                raise WiringError(
                    f'LossAggregation got {name}="{value}"; fix: write one of {", ".join(choices)}'
                )

    def __call__(self, response_mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """The weight of every token, over all the rows of an optimizer step."""
        return token_weights(response_mask, self.mode, self.norm_length, self.empty_rows)


@dataclass(frozen=True, kw_only=True)
class CriticConfig:
    """Initialization and learning rate of the critic. The losses decide if there is one.

    Source: Ouyang et al. 2022, appendix C (arXiv:2203.02155), initializes it from the reward model; Zheng et
    al. 2023, section 5.3 (arXiv:2307.04964), trains it alone first.
    """

    init_from: Literal["policy", "reward"] = "policy"
    """Model whose body it gets; the reward model also brings its heads, weighted as the algorithm does."""
    warmup_steps: int = 0
    """Training steps at the beginning that train only the critic; the policy warms up after them."""
    lr_multiplier: float = 1.0
    """Its learning rate as a multiple of the policy's."""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0 or not self.lr_multiplier > 0:
            raise WiringError(
                f"the critic got warmup_steps={self.warmup_steps} and lr_multiplier={self.lr_multiplier}; "
                "warmup_steps must not be negative and lr_multiplier must be above 0"
            )


@dataclass(frozen=True, kw_only=True)
class AuxiliaryLm:
    """Auxiliary language-modeling loss on demonstrations, added to every optimizer step (ptx in InstructGPT).

    It preserves what the policy could do before the alignment.

    Source: Ouyang et al. 2022, eq. 2 (arXiv:2203.02155), the mix of pre-training gradients.
    """

    coefficient: float
    batch_size: int = 16
    """Demonstrations per optimizer step."""


@dataclass(frozen=True, kw_only=True)
class PretrainPhase:
    """Trains another policy from the initial one first; it is frozen then and available by its role."""

    role: str
    spec: "AlgorithmSpec"
    max_steps: int

    def describe(self) -> list[str]:
        """One line per part: the phase, then its algorithm as an indented block."""
        header = f"PretrainPhase(role={self.role!r}, max_steps={self.max_steps}), its algorithm:"
        return [header, *self.spec.describe()]


@dataclass(frozen=True, kw_only=True)
class WeightAverage:
    """A frozen model whose weights are a weighted mean of the initial policy's and a second model's.

    Source: Chegini et al. 2024, SALSA (arXiv:2411.01798), after Wortsman et al. 2022 (arXiv:2203.05482).
    """

    role: str
    other_path: str
    """Folder of the second model; "" trains one like the initial policy, with another seed."""
    fraction: float = 0.5
    """Weight of the second model."""

    def describe(self) -> list[str]:
        """One line."""
        return [repr(self)]


@dataclass(frozen=True, kw_only=True)
class AlgorithmSpec:
    """rollout -> scores -> reward_steps -> model_passes -> credit -> losses.

    There are two chains of credit steps because selection must come before the expensive forward passes of
    `model_passes`, and everything that reads their outputs after them.
    """

    name: str
    rollout: RolloutSource
    phases: tuple[PretrainPhase | WeightAverage, ...] = ()
    """Models that have to be made first."""
    scorer_view: ScorerView = "full"
    """The part of a response that scorers see; the policy is credited for all of it."""
    reward_steps: CreditStep = EMPTY_CHAIN
    """Steps before the model passes: aggregation, shaping, selection."""
    model_passes: tuple[ModelPass, ...] = (OldLogprobs(),)
    """Forward passes without gradient on the selected rows."""
    credit: CreditStep = EMPTY_CHAIN
    """Steps after the model passes: KL penalty, normalization, advantages."""
    losses: tuple[WeightedLoss, ...]
    loss_aggregation: LossAggregation = LossAggregation()
    num_iterations: int = 1
    """Passes over the rollouts of a step (PPO epochs)."""
    minibatch_size: int | None = None
    """Rows per optimizer step; None: all."""
    critic: CriticConfig = CriticConfig()
    auxiliary_lm: AuxiliaryLm | None = None
    gradient_free: ClassVar[Literal[False]] = False
    candidates_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.num_iterations < 1 or (self.minibatch_size is not None and self.minibatch_size < 1):
            raise WiringError(
                f'algorithm "{self.name}": num_iterations is {self.num_iterations} and minibatch_size '
                f"{self.minibatch_size}; both must be at least 1"
            )

    def requires(self) -> frozenset[str]:
        """The outputs that the losses need of the forward pass besides log-probabilities."""
        return required_outputs(self.losses)

    def requirements(self, objectives: Sequence[str]) -> Requirements:
        """Requirements of the algorithm, from a dry run of a few milliseconds.

        Args:
            objectives: Names of the scored objectives.

        Raises:
            WiringError: The parts do not fit together.
        """
        from paretune.rl.validate import dry_run  # validate imports this module

        return dry_run(self, self.scored_objectives(objectives))

    def all_specs(self) -> "tuple[AlgorithmSpec, ...]":
        """This spec and those of its phases."""
        return (self, *phase_specs(self.phases))

    @property
    def uses_critic(self) -> bool:
        """Some loss trains value heads."""
        return "values" in self.requires()

    @property
    def critic_init_from(self) -> Literal["policy", "reward"] | None:
        """The model that the critic starts from; None: there is no critic."""
        return self.critic.init_from if self.uses_critic else None

    def losses_at(self, step: int) -> tuple[WeightedLoss, ...]:
        """The losses of a training step: only those of the critic during its warm-up."""
        if step >= self.critic.warmup_steps:
            return self.losses
        return tuple(term for term in self.losses if term.loss.requires == {"values"})

    def requires_full_groups(self) -> bool:
        """Some loss compares the responses to a prompt, so that a group must not be split."""
        return any(term.loss.requires_full_groups for term in self.losses)

    @property
    def temperature(self) -> float:
        """Temperature of all log-probabilities: that of sampling."""
        return self.rollout.temperature

    @property
    def prompt_format(self) -> PromptFormat:
        """Format instruction appended to the prompts."""
        return self.rollout.prompt_format

    def scored_objectives(self, objectives: Sequence[str]) -> tuple[str, ...]:
        """The objectives, and after them verbalized confidence if the prompt format asks for it."""
        stated = self.prompt_format == "confidence" and CONFIDENCE_OBJECTIVE not in objectives
        return (*objectives, CONFIDENCE_OBJECTIVE) if stated else tuple(objectives)

    def replace(self, **changes: Any) -> "AlgorithmSpec":
        """The same spec with some fields replaced."""
        return replace(self, **changes)

    def describe(self) -> list[str]:
        """One line per part, in the order in which they act, with the field in front."""
        rows = "all rows" if self.minibatch_size is None else self.minibatch_size
        return format_parts(
            [
                ("algorithm", [self.name]),
                ("phases", [line for phase in self.phases for line in phase.describe()]),
                ("rollout", [repr(self.rollout)]),
                ("scorer_view", [] if self.scorer_view == "full" else [self.scorer_view]),
                ("reward_steps", [repr(step) for step in flatten_steps(self.reward_steps)]),
                ("model_passes", [repr(model_pass) for model_pass in self.model_passes]),
                ("credit", [repr(step) for step in flatten_steps(self.credit)]),
                ("losses", [f"{term.coefficient:g} x {term.loss!r}" for term in self.losses]),
                ("loss_aggregation", [repr(self.loss_aggregation)]),
                ("updates", [f"num_iterations={self.num_iterations}, minibatch_size={rows}"]),
                ("critic", [repr(self.critic)] if self.uses_critic else []),
                ("auxiliary_lm", [] if self.auxiliary_lm is None else [repr(self.auxiliary_lm)]),
            ]
        )


def format_parts(parts: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Lines with the label of their part in front of the first; parts without lines are left out."""
    return [
        f"{'' if index else label:<{LABEL_WIDTH}} {line}"
        for label, lines in parts
        for index, line in enumerate(lines)
    ]


def map_phases(
    phases: Sequence[PretrainPhase | WeightAverage], transform: Callable[[AlgorithmSpec], AlgorithmSpec]
) -> tuple[PretrainPhase | WeightAverage, ...]:
    """The phases, with the spec of each that trains transformed."""
    return tuple(
        replace(phase, spec=transform(phase.spec)) if isinstance(phase, PretrainPhase) else phase
        for phase in phases
    )


def phase_specs(phases: Sequence[PretrainPhase | WeightAverage]) -> list[AlgorithmSpec]:
    """The specs of the phases that train."""
    return [phase.spec for phase in phases if isinstance(phase, PretrainPhase)]
