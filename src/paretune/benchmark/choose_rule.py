"""The rule of `paretune choose`: constraints on objectives, then what is best of the points that meet them.

safety >= 0.8, then actionability
toxicity <= 0.1 by mean, politeness not worse by 0.05, then most actionability + meaningfulness
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from paretune.config.issues import closest_match
from paretune.core.errors import ConfigError, format_issue
from paretune.core.goals import Goal

Kind = Literal[">=", "<=", "not worse"]

EXAMPLE = '"safety >= 0.8, then actionability"'
_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]*"
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_BOUND = re.compile(rf"^({_NAME})\s*(>=|<=|≥|≤)\s*({_NUMBER})(\s+by\s+mean)?$")
_NOT_WORSE = re.compile(rf"^({_NAME})\s+(?:is\s+)?not\s+worse(?:\s+by\s+({_NUMBER}))?(\s+by\s+mean)?$")
_BEST = re.compile(rf"^(?:then\s+)?(?:(best|most|highest|least|lowest)\s+)?({_NAME}(?:\s*\+\s*{_NAME})*)$")
_KINDS: dict[str, Kind] = {">=": ">=", "≥": ">=", "<=": "<=", "≤": "<="}
_GOAL_WORDS = {"most": "higher", "highest": "higher", "least": "lower", "lowest": "lower"}


@dataclass(frozen=True)
class Constraint:
    """A condition that a point must meet."""

    objective: str
    kind: Kind
    value: float | None
    """The bound, in the units of the score; of "not worse" the largest loss, None: the recipe's margin."""
    by_mean: bool = False
    """The mean must meet it; else the bound of its interval that is on the wrong side."""

    @property
    def words(self) -> str:
        """The condition as text."""
        if self.kind == "not worse":
            text = f"{self.objective} not worse" + ("" if self.value is None else f" by {self.value:g}")
        else:
            text = f"{self.objective} {self.kind} {self.value:g}"
        return text + (" by mean" if self.by_mean else "")


@dataclass(frozen=True)
class Rule:
    """Constraints, and the objectives whose sum is then made best."""

    constraints: tuple[Constraint, ...]
    best: tuple[str, ...]
    """Several count alike: in standard deviations of the initial policy's scores."""

    @property
    def objectives(self) -> tuple[str, ...]:
        """All objectives of the rule, each once."""
        return tuple(dict.fromkeys([*(each.objective for each in self.constraints), *self.best]))


def parse_rule(text: str, goals: Mapping[str, Goal]) -> Rule:
    """The rule that a text states.

    Args:
        text: Constraints separated by commas, and after "then" one objective, or several joined by +.
        goals: Objective -> its goal, of all that the points are judged by.

    Raises:
        ConfigError: One line per part that is no rule, with the place of the part.
    """
    parts = [(match.start() + 1, match[0].strip()) for match in re.finditer(r"[^,]+", text)]
    parts = [(column, part) for column, part in parts if part]
    if not parts:
        raise ConfigError(_issue(1, "is empty", f"write it like {EXAMPLE}"))
    lines, constraints = [], []
    for column, part in parts[:-1]:
        constraint = _constraint(part)
        if constraint is None:
            lines.append(_issue(column, f'"{part}" is no constraint', _constraint_fix(part)))
        else:
            lines += _unknown(column, [constraint.objective], goals)
            constraints.append(constraint)
    column, last = parts[-1]
    match = None if last == "then" else _BEST.match(last)
    best = tuple(re.split(r"\s*\+\s*", match[2])) if match else ()
    if match is None:
        problem = f'"{last}" does not say what is best'
        lines.append(_issue(column, problem, f'end with "then NAME", as in {EXAMPLE}'))
    else:
        lines += _unknown(column, best, goals) or _wrong_direction(column, match[1], best, goals)
    if lines:
        raise ConfigError("\n".join(lines))
    return Rule(tuple(constraints), best)


def _constraint(part: str) -> Constraint | None:
    if match := _BOUND.match(part):
        return Constraint(match[1], _KINDS[match[2]], float(match[3]), bool(match[4]))
    if match := _NOT_WORSE.match(part):
        margin = None if match[2] is None else abs(float(match[2]))
        return Constraint(match[1], "not worse", margin, bool(match[3]))
    return None


def _constraint_fix(part: str) -> str:
    if part.startswith("then "):
        return "put what is best last"
    if re.search(r"[<>]", part):
        return 'write >= or <= and a number, as in "safety >= 0.8" or "toxicity <= 0.1 by mean"'
    return 'write "NAME >= 0.8", "NAME <= 0.8" or "NAME not worse by 0.05"'


def _unknown(column: int, names: Sequence[str], goals: Mapping[str, Goal]) -> list[str]:
    return [
        _issue(
            column,
            f'"{name}" is not an objective here',
            f"write one of {', '.join(goals)}",
            closest_match(name, goals),
        )
        for name in names
        if name not in goals
    ]


def _wrong_direction(
    column: int, word: str | None, best: Sequence[str], goals: Mapping[str, Goal]
) -> list[str]:
    """A mistake, not a wish: "most toxicity" of an objective where lower is better."""
    expected = _GOAL_WORDS.get(word or "")
    return [
        _issue(column, f'"{word} {name}": {goals[name].words}', f'write "then best {name}"')
        for name in best
        if expected is not None and goals[name].kind != expected
    ]


def _issue(column: int, problem: str, fix: str, suggestion: str = "") -> str:
    return format_issue("(rule)", 1, column, "", problem, suggestion=suggestion, fix=fix)
