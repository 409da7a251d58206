"""What makes one algorithm without a gradient different from another, and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from paretune.core.errors import WiringError
from paretune.credit.base import CreditStep, flatten_steps
from paretune.data.chat import PromptFormat, ScorerView
from paretune.models.lora import LoraSpec
from paretune.rl.algorithm_spec import EMPTY_CHAIN, PretrainPhase
from paretune.rl.evolution.search import SearchStrategy
from paretune.rollout.sampler import OnPolicy

ATTENTION_MODULES = r".*attn\.(q_proj|k_proj|v_proj|o_proj|out_proj|qkv_proj|c_attn|c_proj)"
"""The projections of attention, by the names that families of models give them."""


@dataclass(frozen=True, kw_only=True)
class EvolutionSpec:
    """fit an adapter -> ask for singular values -> source -> scores -> worth -> tell.

    A candidate's fitness is the mean of the signal over its responses.

    Source: Korotyshova et al. 2025, ESSA (arXiv:2507.04453).
    """

    name: str
    rollout: OnPolicy
    """How candidates respond; one response to each of a step's prompts, unless it says more."""
    reward_steps: CreditStep = EMPTY_CHAIN
    """Scores to one signal; what it remembers is learnt from the incumbent's responses alone."""
    credit: CreditStep = EMPTY_CHAIN
    """Nothing: candidates are compared, and not their tokens."""
    phases: tuple[PretrainPhase, ...]
    """How the adapter is fitted whose singular values are searched: one phase."""
    scorer_view: ScorerView = "whole"
    """What scorers are shown of a response."""
    strategy: SearchStrategy
    initial_sigma: float | None = None
    """First step size in mean singular values; None: such that candidates differ by one standard error."""
    singular_value_fraction: float = 1.0
    """Of the singular values of each factor, the largest that move."""
    random_numbers: Literal["common", "fresh"] = "common"
    """"common": all candidates of a generation meet the same prompts and the same chance."""
    kl_coef: float = 0.0
    """Price of one nat by which a response is likelier than under the start, in the units of the signal."""
    adapter: LoraSpec
    """Put on a policy that has none of its own."""
    base_precision: Literal["whole", "int8"] = "whole"
    """Precision of the frozen layers while candidates respond."""

    def __post_init__(self) -> None:
        if (
            not 0 < self.singular_value_fraction <= 1
            or self.kl_coef < 0
            or (self.initial_sigma is not None and not self.initial_sigma > 0)
        ):
            raise WiringError(
                f'"{self.name}" got share={self.singular_value_fraction:g}, kl={self.kl_coef:g} and sigma={self.initial_sigma}; '
                "the share must be in (0, 1], kl not negative and sigma above 0"
            )

    @property
    def adapter_phase(self) -> PretrainPhase:
        """How the adapter is fitted."""
        (phase,) = self.phases
        return phase

    @property
    def prompt_format(self) -> PromptFormat:
        """What is asked of the policy beside the prompt."""
        return self.rollout.prompt_format

    def scored_objectives(self, objectives: Sequence[str]) -> tuple[str, ...]:
        """As for a recipe."""
        return self.adapter_phase.spec.scored_objectives(objectives)

    def replace(self, **changes: Any) -> "EvolutionSpec":
        """The same with some fields replaced; the adapter is fitted to the same worth."""
        if "reward_steps" in changes:
            recipe = self.adapter_phase.spec.replace(reward_steps=changes["reward_steps"])
            changes = {"phases": (replace(self.adapter_phase, spec=recipe),), **changes}
        return replace(self, **changes)

    def describe(self) -> list[str]:
        """To be read: one line a part, in the order they act."""
        fitness = "mean signal" + (f" - {self.kl_coef:g} nats of KL" if self.kl_coef else "")
        parts: list[tuple[str, list[str]]] = [
            ("algorithm", [self.name]),
            ("before", self.adapter_phase.describe()),
            (
                "moves",
                [
                    f"share={self.singular_value_fraction:g} of the singular values of the adapter; body: {self.base_precision}"
                ],
            ),
            ("source", [repr(self.rollout)]),
            ("view", [] if self.scorer_view == "whole" else [self.scorer_view]),
            ("worth", [repr(step) for step in flatten_steps(self.reward_steps)]),
            ("fitness", [f"{fitness}; noise: {self.random_numbers}"]),
            ("search", [f"{self.strategy!r}, sigma={self.initial_sigma or 'calibrated'}"]),
        ]
        return [f"{'' if at else part:<10} {line}" for part, lines in parts for at, line in enumerate(lines)]
