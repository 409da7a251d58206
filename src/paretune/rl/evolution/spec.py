"""The spec of a gradient-free algorithm: everything that distinguishes it from another, and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from paretune.core.errors import WiringError
from paretune.core.requirements import Requirements
from paretune.credit.base import CreditStep, flatten_steps
from paretune.data.prompt_formats import PromptFormat, ScorerView
from paretune.loss.base import WeightedLoss
from paretune.models.lora import LoraSpec
from paretune.rl.algorithm_spec import EMPTY_CHAIN, AlgorithmSpec, PretrainPhase, format_parts, phase_specs
from paretune.rl.evolution.search import SearchStrategy
from paretune.rollout.sampler import OnPolicy

ATTENTION_MODULES = r".*attn\.(q_proj|k_proj|v_proj|o_proj|out_proj|qkv_proj|c_attn|c_proj)"
"""The projections of attention, under the names of the model families of transformers."""


@dataclass(frozen=True, kw_only=True)
class EvolutionSpec:
    """train a LoRA adapter -> ask for singular values -> rollout -> scores -> reward_steps -> tell.

    The fitness of a candidate is the mean reward of its responses.

    Source: Korotyshova et al. 2025, ESSA (arXiv:2507.04453).
    """

    name: str
    rollout: OnPolicy
    """Sampling of the candidates; one response to each prompt of a step, unless it says more."""
    reward_steps: CreditStep = EMPTY_CHAIN
    """Scores to one reward; its state is updated by the responses of the incumbent alone."""
    credit: CreditStep = EMPTY_CHAIN
    """Empty: candidates are compared, not their tokens."""
    phases: tuple[PretrainPhase, ...]
    """The one phase that trains the adapter whose singular values are searched."""
    scorer_view: ScorerView = "full"
    """The part of a response that scorers see."""
    strategy: SearchStrategy
    initial_sigma: float | None = None
    """First step size in mean singular values; None: such that candidates differ by one standard error."""
    singular_value_fraction: float = 1.0
    """Fraction of the singular values of each factor that are searched, the largest first."""
    random_numbers: Literal["common", "independent"] = "common"
    """"common": all candidates of a generation get the same prompts and the same random numbers."""
    kl_coef: float = 0.0
    """Coefficient of the KL penalty to the initial policy, in rewards per nat."""
    adapter: LoraSpec
    """LoRA adapter for a policy without one."""
    base_precision: Literal["full", "int8"] = "full"
    """Precision of the frozen layers during the search."""
    gradient_free: ClassVar[Literal[True]] = True
    losses: ClassVar[tuple[WeightedLoss, ...]] = ()
    auxiliary_lm: ClassVar[None] = None
    uses_critic: ClassVar[bool] = False
    critic_init_from: ClassVar[None] = None

    def __post_init__(self) -> None:
        if (
            not 0 < self.singular_value_fraction <= 1
            or self.kl_coef < 0
            or (self.initial_sigma is not None and not self.initial_sigma > 0)
        ):
            raise WiringError(
                f'"{self.name}" got singular_value_fraction={self.singular_value_fraction:g}, '
                f"kl_coef={self.kl_coef:g} and initial_sigma={self.initial_sigma}; singular_value_fraction "
                "must be in (0, 1], kl_coef not negative and initial_sigma above 0"
            )

    def requirements(self, objectives: Sequence[str]) -> Requirements:
        """Requirements of the algorithm, from a dry run.

        Args:
            objectives: Names of the scored objectives.

        Raises:
            WiringError: The parts do not fit together.
            MissingDependencyError: The package of the search strategy is not installed.
        """
        from paretune.rl.validate import dry_run_evolution  # validate imports this module

        return dry_run_evolution(self, self.scored_objectives(objectives))

    def all_specs(self) -> "tuple[EvolutionSpec | AlgorithmSpec, ...]":
        """This spec and that of its phase."""
        return (self, *phase_specs(self.phases))

    @property
    def candidates_per_step(self) -> int:
        """Candidates that respond per step: the population and the incumbent."""
        return self.strategy.population_size + 1

    @property
    def adapter_phase(self) -> PretrainPhase:
        """The phase that trains the adapter."""
        (phase,) = self.phases
        return phase

    @property
    def temperature(self) -> float:
        """Sampling temperature."""
        return self.rollout.temperature

    @property
    def prompt_format(self) -> PromptFormat:
        """Format instruction appended to the prompts."""
        return self.rollout.prompt_format

    def scored_objectives(self, objectives: Sequence[str]) -> tuple[str, ...]:
        """As for an `AlgorithmSpec`."""
        return self.adapter_phase.spec.scored_objectives(objectives)

    def replace(self, **changes: Any) -> "EvolutionSpec":
        """The same spec with some fields replaced; new `reward_steps` also go to the adapter phase."""
        if "reward_steps" in changes:
            spec = self.adapter_phase.spec.replace(reward_steps=changes["reward_steps"])
            changes = {"phases": (replace(self.adapter_phase, spec=spec),), **changes}
        return replace(self, **changes)

    def describe(self) -> list[str]:
        """One line per part, in the order in which they act."""
        fitness = "mean reward" + (f" - {self.kl_coef:g} per nat of KL" if self.kl_coef else "")
        fraction = f"fraction={self.singular_value_fraction:g} of the adapter's singular values"
        return format_parts(
            [
                ("algorithm", [self.name]),
                ("phases", self.adapter_phase.describe()),
                ("search_space", [f"{fraction}; base_precision: {self.base_precision}"]),
                ("rollout", [repr(self.rollout)]),
                ("scorer_view", [] if self.scorer_view == "full" else [self.scorer_view]),
                ("reward_steps", [repr(step) for step in flatten_steps(self.reward_steps)]),
                ("fitness", [f"{fitness}; random_numbers: {self.random_numbers}"]),
                ("strategy", [f"{self.strategy!r}, initial_sigma={self.initial_sigma or 'calibrated'}"]),
            ]
        )
