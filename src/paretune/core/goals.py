"""The direction of an objective: higher is better, lower is better, or best at a target."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from paretune.core.errors import WiringError

GoalKind = Literal["higher", "lower", "target"]
_Scores = TypeVar("_Scores")


@dataclass(frozen=True, slots=True)
class Goal:
    """Which scores of an objective are good.

    Scores are kept as they were given. Whatever compares them, and whatever adds them up, does so with
    *oriented* scores, where higher is better: the score itself, its negative, or its negative distance to
    the target.
    """

    kind: GoalKind = "higher"
    target: float | None = None
    """The best score; None unless `kind` is target."""

    def __post_init__(self) -> None:
        if (self.kind == "target") != (self.target is not None):
            problem = "has no target" if self.kind == "target" else f"takes no target, and got {self.target}"
            raise WiringError(f"goal {self.kind} {problem}; fix: give the best score with goal target")

    @classmethod
    def of(cls, value: "Goal | str | float | int | Mapping[str, Any] | None") -> "Goal":
        """The goal of "higher", "lower", a number (the target), or an entry with the keys `goal`, `target`.

        Raises:
            WiringError: It is none of these.
        """
        if isinstance(value, Goal):
            return value
        if isinstance(value, Mapping):
            goal = value.get("goal") or "higher"
            return cls.of(goal) if goal != "target" else cls("target", value.get("target"))
        if isinstance(value, int | float) and not isinstance(value, bool):
            return cls("target", float(value))
        if value is None:
            return HIGHER
        if value not in get_args(GoalKind) or value == "target":
            fix = 'fix: write "higher", "lower", or a number: the target'
            raise WiringError(f"{value!r} is no goal; {fix}")
        return cls("lower" if value == "lower" else "higher")

    def orient(self, scores: _Scores) -> _Scores:
        """Oriented scores, where higher is better; NaN stays NaN.

        Args:
            scores: A number, an array or a tensor, in the units of the objective.
        """
        raw: Any = scores
        if self.kind == "higher":
            oriented = raw
        elif self.kind == "lower":
            oriented = -raw
        else:
            oriented = -abs(raw - self.target)
        result: _Scores = oriented
        return result

    @property
    def words(self) -> str:
        """The direction in words."""
        if self.kind == "target":
            return f"best at {self.target:g}"
        return f"{self.kind} is better"

    @property
    def arrow(self) -> str:
        """The direction as a sign: "↑", "↓", or "→ 120" for a target."""
        return {"higher": "↑", "lower": "↓"}.get(self.kind) or f"→ {self.target:g}"

    def entry(self) -> dict[str, Any]:
        """The keys `goal` and `target` of files."""
        return {"goal": self.kind, "target": self.target}


HIGHER = Goal()
"""The goal of an objective that states none."""
