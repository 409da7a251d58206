"""What makes one algorithm without a gradient different from another, and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from paretune.credit.step import Step, steps_of
from paretune.data.frame import Frame, View
from paretune.errors import WiringError
from paretune.learn.recipe import NOTHING, Phase
from paretune.learn.search import Search
from paretune.models.adapt import Lora
from paretune.rollout.sample import Online

ATTENTION = r".*attn\.(q_proj|k_proj|v_proj|o_proj|out_proj|qkv_proj|c_attn|c_proj)"
"""The projections of attention, by the names that families of models give them."""


@dataclass(frozen=True, kw_only=True)
class Evolution:
    """fit an adapter -> ask for singular values -> source -> scores -> worth -> tell.

    A candidate's fitness is the mean of the signal over its responses.

    Source: Korotyshova et al. 2025, ESSA (arXiv:2507.04453).
    """

    name: str
    source: Online
    """How candidates respond; one response to each of a step's prompts, unless it says more."""
    worth: Step = NOTHING
    """Scores to one signal; what it remembers is learnt from the incumbent's responses alone."""
    credit: Step = NOTHING
    """Nothing: candidates are compared, and not their tokens."""
    before: tuple[Phase, ...]
    """How the adapter is fitted whose singular values are searched: one phase."""
    view: View = "whole"
    """What scorers are shown of a response."""
    search: Search
    sigma: float | None = None
    """First step size in mean singular values; None: such that candidates differ by one standard error."""
    share: float = 1.0
    """Of the singular values of each factor, the largest that move."""
    noise: Literal["common", "fresh"] = "common"
    """"common": all candidates of a generation meet the same prompts and the same chance."""
    kl: float = 0.0
    """Price of one nat by which a response is likelier than under the start, in the units of the signal."""
    adapter: Lora
    """Put on a policy that has none of its own."""
    body: Literal["whole", "int8"] = "whole"
    """Precision of the frozen layers while candidates respond."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.kl < 0 or (self.sigma is not None and not self.sigma > 0):
            raise WiringError(
                f'"{self.name}" got share={self.share:g}, kl={self.kl:g} and sigma={self.sigma}; '
                "the share must be in (0, 1], kl not negative and sigma above 0"
            )

    @property
    def fitted(self) -> Phase:
        """How the adapter is fitted."""
        (phase,) = self.before
        return phase

    @property
    def frame(self) -> Frame:
        """What is asked of the policy beside the prompt."""
        return self.source.frame

    def scored(self, objectives: Sequence[str]) -> tuple[str, ...]:
        """As for a recipe."""
        return self.fitted.recipe.scored(objectives)

    def but(self, **changes: Any) -> "Evolution":
        """The same with some fields replaced; the adapter is fitted to the same worth."""
        if "worth" in changes:
            recipe = self.fitted.recipe.but(worth=changes["worth"])
            changes = {"before": (replace(self.fitted, recipe=recipe),), **changes}
        return replace(self, **changes)

    def explained(self) -> list[str]:
        """To be read: one line a part, in the order they act."""
        fitness = "mean signal" + (f" - {self.kl:g} nats of KL" if self.kl else "")
        parts: list[tuple[str, list[str]]] = [
            ("algorithm", [self.name]),
            ("before", self.fitted.explained()),
            ("moves", [f"share={self.share:g} of the singular values of the adapter; body: {self.body}"]),
            ("source", [repr(self.source)]),
            ("view", [] if self.view == "whole" else [self.view]),
            ("worth", [repr(step) for step in steps_of(self.worth)]),
            ("fitness", [f"{fitness}; noise: {self.noise}"]),
            ("search", [f"{self.search!r}, sigma={self.sigma or 'calibrated'}"]),
        ]
        return [f"{'' if at else part:<10} {line}" for part, lines in parts for at, line in enumerate(lines)]
