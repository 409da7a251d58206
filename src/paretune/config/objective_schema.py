"""Schema of an objective: its goal, its weight in the training reward, its gate and its constraint."""

import re
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from paretune.config.data_schema import Name, NonEmptyStr, Section
from paretune.core.goals import Goal, GoalKind
from paretune.core.types import NonNegativeInt

_THRESHOLD_PATTERN = re.compile(
    r"^\s*([A-Za-z0-9][A-Za-z0-9_-]*)\s*(>=|<=)\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*$"
)
Comparison = Literal[">=", "<="]
GateFields = tuple[str, str, float, float] | tuple[str, str, float, float, Comparison]
"""(objective, gating objective, threshold, fallback score), and the comparison if it is not >=."""


class ScoreThreshold(NamedTuple):
    """A condition on the score of an objective, as it was given."""

    objective: str
    comparison: Comparison
    threshold: float


def parse_threshold(expression: str | None) -> ScoreThreshold | None:
    """The parts of an expression such as "safety >= 0.5" or "toxicity <= 0.2"; None if it is not one."""
    match = _THRESHOLD_PATTERN.match(expression or "")
    if match is None:
        return None
    try:
        return ScoreThreshold(match[1], "<=" if match[2] == "<=" else ">=", float(match[3]))
    except ValueError:  # several decimal points
        return None


def parse_correctness_threshold(expression: str | None) -> tuple[str, float] | None:
    """(objective, lowest correct score) of an expression such as "quality >= 0.5"; None if it is not one."""
    parsed = parse_threshold(expression)
    if parsed is None or parsed.comparison != ">=":
        return None
    return parsed.objective, parsed.threshold


SchedulePoint = Annotated[tuple[NonNegativeInt, float], Field(strict=False)]
"""(training step, weight)."""


class ObjectiveSection(Section):
    """One objective: which of its scores are good, and its contribution to the training reward."""

    goal: GoalKind | None = None
    """Which scores are good: higher ones, lower ones, or those near `target`. Training and verdicts follow
    the goal; pages show the original scores. null: target if `target` is set, else higher."""
    target: float | None = None
    """The best score, with goal target: the reward falls with the distance to it."""
    weight: float = 1.0
    """Weight in the training reward; never negative: use `goal` if lower scores are better."""
    weight_schedule: Annotated[tuple[SchedulePoint, ...], Field(strict=False)] = ()
    """[[step, weight], ...]: a piecewise linear weight, instead of `weight`."""
    by_category: dict[NonEmptyStr, float] = Field(default_factory=dict)
    """Weight on the prompts of a category; `weight` is for all others."""
    normalize: Literal["none", "std"] = "none"
    """std: divide the weight by the standard deviation of the objective's labels, so that objectives on
    different scales count alike."""
    gate: str | None = None
    """A gate such as "safety >= 0.5" or "toxicity <= 0.2", on the original score; if it fails,
    `gate_fallback` replaces the objective's score."""
    gate_fallback: float | None = None
    """Score where the gate fails, in the units of the objective's label; null: the worst label of its
    training data (the lowest; the highest with goal lower; the farthest with a target)."""
    cap: float | None = None
    """Scores better than it count as this score."""
    at_least: float | None = None
    """Level of a constraint; in a lexicographic order, the level from which the next objective decides."""
    at_most: float | None = None
    """The same for an objective with goal lower."""
    constraint: Literal["mean", "rate", "quantile"] = "mean"
    """The statistic that must reach `at_least` (or `at_most`): the mean score, the rate of responses that
    score `constraint_param` or better, or the `constraint_param`-quantile, counted from the worst score. A
    rate always has `at_least`."""
    constraint_param: float | None = None
    scorer: Name | None = None
    """The scorer in `scorers` that scores it; null: the one with this objective, or the reward model. One
    that scores a single objective may have another name."""
    scored_text: Literal["response", "thinking"] = "response"
    """With a thinking policy: "thinking" scores the thinking, which the other objectives do not see."""
    scores_from: Name | None = None
    """With scored_text: thinking, the reward head that scores it."""

    @property
    def parsed_gate(self) -> ScoreThreshold | None:
        """Gating objective, comparison and threshold; None without a gate."""
        return parse_threshold(self.gate)

    @property
    def direction(self) -> Goal:
        """Its goal, with the target."""
        kind = self.goal or ("higher" if self.target is None else "target")
        if kind == "target" and self.target is not None:
            return Goal(kind, self.target)
        # A missing target is reported by `goal_issues`; until then the other checks need some goal.
        return Goal("lower" if kind == "lower" else "higher")

    @property
    def bound(self) -> float | None:
        """`at_least` or `at_most`."""
        return self.at_least if self.at_most is None else self.at_most
