"""A recipe: everything that makes one algorithm different from another, and nothing else."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from jaxtyping import Bool, Float
from torch import Tensor

from paretune.credit.step import Step, chain, steps_of
from paretune.data.frame import Frame, View
from paretune.errors import WiringError
from paretune.loss.term import Term, wanted
from paretune.models.measure import Behaviour, Measure
from paretune.reduce import By, token_weights
from paretune.rollout.sample import Offline, Online

CONFIDENCE = "confidence"
"""The objective that a stated confidence is, where one is asked for."""
NOTHING = chain()
"""The chain without a step."""


@dataclass(frozen=True)
class Weigh:
    """How much each response token counts: the denominator of every loss, in one place.

    "token": all tokens alike (DAPO). "sequence": all responses alike (GRPO). "sequence_sum": the mean over
    responses of sums over tokens (RLOO). "constant": every token 1 / (length * rows) (Dr. GRPO). Responses
    without a score keep their share of the denominator, and so do those without a token unless `empty` says
    "skip", as in verl.

    Reads: respond. Writes: weight.

    Source: the three normalisations compared in Liu et al. 2025 (arXiv:2503.20783) and Yu et al. 2025
    (arXiv:2503.14476).
    """

    by: By = "token"
    length: int = 1
    empty: Literal["count", "skip"] = "count"

    def __call__(self, respond: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """The weight of every token, over all the rows of an optimiser step."""
        return token_weights(respond, self.by, self.length, self.empty)


@dataclass(frozen=True, kw_only=True)
class CriticStart:
    """How a critic begins, and how fast it learns. Whether there is one follows from the parts.

    Source: Ouyang et al. 2022, appendix C (arXiv:2203.02155), starts it from the reward model; Zheng et al.
    2023, section 5.3 (arXiv:2307.04964), lets it learn alone first.
    """

    of: Literal["policy", "reward"] = "policy"
    """Whose body it gets; that of the reward model also brings its heads, weighted as the recipe weights."""
    alone: int = 0
    """Training steps at the beginning in which only the critic learns; the policy warms up after them."""
    rate: float = 1.0
    """Its learning rate as a multiple of the policy's."""

    def __post_init__(self) -> None:
        if self.alone < 0 or not self.rate > 0:
            raise WiringError(
                f"the critic begins with alone={self.alone} and rate={self.rate}; alone must not be negative "
                "and rate must be above 0"
            )


@dataclass(frozen=True, kw_only=True)
class Aside:
    """A loss on demonstrations, added to every optimiser step: it keeps what the policy could say before.

    Source: Ouyang et al. 2022, eq. 2 (arXiv:2203.02155), the mix of pre-training gradients.
    """

    coefficient: float
    rows: int = 16
    """Demonstrations for each optimiser step."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A policy that another recipe makes of the start beforehand; frozen then, and named by its role."""

    role: str
    recipe: "Recipe"
    steps: int

    def explained(self) -> list[str]:
        """To be read: its recipe as a block of lines below its name."""
        return [f"Phase(role={self.role!r}, steps={self.steps}), its recipe:", *explained(self.recipe)]


@dataclass(frozen=True, kw_only=True)
class Soup:
    """A frozen model whose weights are the mean of others': of the start, and of one more like it.

    Source: Chegini et al. 2024, SALSA (arXiv:2411.01798), after Wortsman et al. 2022 (arXiv:2203.05482).
    """

    role: str
    other: str
    """Folder of the second model; "" makes one as the start was made, with another seed."""
    share: float = 0.5
    """Of the second model."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """source -> scores -> worth -> measure -> credit -> losses.

    There are two chains because selection must come before the expensive forward passes of `measure`, and
    what needs their answers after.
    """

    name: str
    source: Online | Offline
    before: tuple[Phase | Soup, ...] = ()
    """Models that have to be made first."""
    view: View = "whole"
    """What scorers are shown of a response; the policy is credited for all of it."""
    worth: Step = NOTHING
    """Before models are asked: aggregate, shape, select."""
    measure: tuple[Measure, ...] = (Behaviour(),)
    """What old and frozen models say of the rows that are left."""
    credit: Step = NOTHING
    """After models were asked: penalise, normalise, estimate advantages."""
    losses: tuple[Term, ...]
    weigh: Weigh = Weigh()
    epochs: int = 1
    minibatch: int | None = None
    """Rows of one optimiser step; None: all."""
    critic: CriticStart = CriticStart()
    aside: Aside | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1 or (self.minibatch is not None and self.minibatch < 1):
            raise WiringError(
                f'recipe "{self.name}": epochs is {self.epochs} and minibatch {self.minibatch}; '
                "both must be at least 1"
            )

    def wants(self) -> frozenset[str]:
        """What the losses want of the forward pass beside log-probabilities."""
        return wanted(self.losses)

    def losses_at(self, step: int) -> tuple[Term, ...]:
        """The losses of a training step: those of the critic alone while it learns alone."""
        if step >= self.critic.alone:
            return self.losses
        return tuple(term for term in self.losses if term.loss.wants == {"values"})

    def by_group(self) -> bool:
        """Must the rows of a prompt stay together?"""
        return any(term.loss.by_group for term in self.losses)

    def temperature(self) -> float:
        """At which temperature log-probabilities are taken: that of sampling."""
        return self.source.temperature if isinstance(self.source, Online) else 1.0

    @property
    def frame(self) -> Frame:
        """What is asked of the policy beside the prompt."""
        return self.source.frame if isinstance(self.source, Online) else ""

    def scored(self, objectives: Sequence[str]) -> tuple[str, ...]:
        """The objectives, and behind them what the frame lets a response say of itself."""
        own = (CONFIDENCE,) if self.frame == "confidence" and CONFIDENCE not in objectives else ()
        return (*objectives, *own)

    def but(self, **changes: Any) -> "Recipe":
        """The same recipe with some fields replaced."""
        return replace(self, **changes)


def in_phases(before: Sequence[Phase | Soup], change: Callable[[Recipe], Recipe]) -> tuple[Phase | Soup, ...]:
    """The models that are made first, with every phase's recipe changed."""
    return tuple(
        replace(made, recipe=change(made.recipe)) if isinstance(made, Phase) else made for made in before
    )


def phase_recipes(before: Sequence[Phase | Soup]) -> list[Recipe]:
    """The recipes of the phases among the models that are made first."""
    return [made.recipe for made in before if isinstance(made, Phase)]


def explained(recipe: Recipe) -> list[str]:
    """The recipe to be read: one line a part, in the order they act, what they belong to in front."""
    rows = recipe.minibatch
    parts: list[tuple[str, list[str]]] = [
        ("algorithm", [recipe.name]),
        ("before", [line for made in recipe.before for line in _made(made)]),
        ("source", [repr(recipe.source)]),
        ("view", [] if recipe.view == "whole" else [recipe.view]),
        ("worth", [repr(step) for step in steps_of(recipe.worth)]),
        ("measure", [repr(measure) for measure in recipe.measure]),
        ("credit", [repr(step) for step in steps_of(recipe.credit)]),
        ("losses", [f"{term.coefficient:g} x {term.loss!r}" for term in recipe.losses]),
        ("weigh", [repr(recipe.weigh)]),
        ("updates", [f"epochs={recipe.epochs}, minibatch={'all rows' if rows is None else rows}"]),
        ("critic", [repr(recipe.critic)] if "values" in recipe.wants() else []),
        ("aside", [] if recipe.aside is None else [repr(recipe.aside)]),
    ]
    return [f"{'' if at else part:<10} {line}" for part, lines in parts for at, line in enumerate(lines)]


def _made(made: Phase | Soup) -> list[str]:
    return made.explained() if isinstance(made, Phase) else [repr(made)]
