"""Rubrics of LLM judges: criteria with ordered levels or points, their classes, and the scores of both."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from paretune.core.errors import DataError
from paretune.core.types import PositiveFloat
from paretune.data.records import Prompt

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
MAX_POINTS = 1e6
"""Largest points of a level: scores are 32-bit numbers, in which differences of 1 are lost beyond 2^24."""
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
_Text = Annotated[str, StringConstraints(min_length=1)]
LevelName = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Answer = str | int
"""What a judge answers for one criterion: the name of a level, or points."""


@dataclass(frozen=True, slots=True)
class RubricProblem:
    """One mistake of a rubric that its schema cannot express."""

    path: tuple[str | int, ...]
    """Keys from the top of the rubric, or of the criterion."""
    problem: str
    fix: str = ""


class _Section(BaseModel):
    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        ignored_types=(cached_property,),
    )


class Level(_Section):
    """One level of a criterion."""

    points: float
    text: str = ""
    """When it applies, for the judge to read."""


class PointsRange(_Section):
    """Whole points that a judge may give, both ends included."""

    min: int
    max: int


class Criterion(_Section):
    """One question about a response, with the answers that a judge may give."""

    text: _Text
    """What the judge is asked."""
    levels: dict[LevelName, float | Level] = {}
    """Level -> its points, or `{points, text}`; from worst to best, or from best to worst."""
    points: PointsRange | None = None
    """Whole points instead of levels."""
    weight: PositiveFloat = 1.0
    """Weight in the mean of its class."""
    class_name: Annotated[str, Field(alias="class")] = ""
    """The objective that it is a part of; empty: the criterion is an objective of its own."""

    @cached_property
    def level_points(self) -> dict[str, float]:
        """Level -> its points; empty if the judge gives points itself."""
        return {n: v.points if isinstance(v, Level) else float(v) for n, v in self.levels.items()}

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and most points."""
        if self.points is not None:
            return float(self.points.min), float(self.points.max)
        return min(self.level_points.values()), max(self.level_points.values())

    def points_of(self, answer: Answer) -> float:
        """The points of a valid answer, in the units of the rubric."""
        return float(answer) if self.points is not None else self.level_points[str(answer)]

    def normalized(self, answer: Answer) -> float:
        """The points of a valid answer, scaled to [0, 1]."""
        low, high = self.bounds
        return (self.points_of(answer) - low) / (high - low)

    def answer_schema(self) -> dict[str, Any]:
        """JSON Schema of an answer."""
        if self.points is not None:
            return {"type": "integer", "minimum": self.points.min, "maximum": self.points.max}
        return {"type": "string", "enum": list(self.levels)}

    def description(self) -> str:
        """The question and its possible answers, for the judge."""
        if self.points is not None:
            return f"{self.text} Whole points from {self.points.min} to {self.points.max}."
        texts = (
            f'"{name}": {value.text}' if isinstance(value, Level) and value.text else f'"{name}"'
            for name, value in self.levels.items()
        )
        return f"{self.text} Levels: {'; '.join(texts)}."

    def problems(self) -> Iterator[RubricProblem]:
        """Mistakes of this criterion; paths begin at it."""
        if not self.text.strip():
            yield RubricProblem(("text",), "is empty", "write what the judge is asked")
        if self.class_name and not re.fullmatch(NAME_PATTERN, self.class_name):
            fix = "use letters, digits, - and _, at most 64 characters, starting with a letter or digit"
            yield RubricProblem(("class",), "cannot be the name of an objective", fix)
        if bool(self.levels) == (self.points is not None):
            problem = (
                "levels and points exclude each other" if self.levels else "has neither levels nor points"
            )
            fix = "write one of them, such as levels: {poor: 0, good: 1} or points: {min: 1, max: 5}"
            yield RubricProblem((), problem, fix)
        elif self.points is not None and self.points.min >= self.points.max:
            yield RubricProblem(("points", "max"), f"is not above min, which is {self.points.min}")
        elif self.levels:
            yield from self._level_problems()
        if (self.levels or self.points is not None) and max(map(abs, self.bounds)) > MAX_POINTS:
            key = "levels" if self.levels else "points"
            yield RubricProblem((key,), f"has points beyond {MAX_POINTS:,.0f}", "write smaller points")
        if not self.class_name and self.weight != 1.0:
            yield RubricProblem(("weight",), "has no effect without class", "remove it, or name a class")

    def _level_problems(self) -> Iterator[RubricProblem]:
        values = list(self.level_points.values())
        pairs = list(pairwise(values))
        if not pairs:
            yield RubricProblem(("levels",), "has a single level", "write at least two")
        elif not (all(a < b for a, b in pairs) or all(a > b for a, b in pairs)):
            problem = "the points neither rise nor fall from level to level"
            yield RubricProblem(("levels",), problem, "list the levels in the order of their points")
        lowered = [name.strip().casefold() for name in self.levels]
        if len(set(lowered)) < len(lowered):
            yield RubricProblem(("levels",), "two levels differ in case or spaces alone", "rename one")


class Rubric(_Section):
    """Criteria by name; an objective is a criterion without a class, or a class."""

    criteria: dict[Name, Criterion] = {}
    classes: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    """Classes that only criteria of prompts belong to; the others are known from `criteria`."""

    @cached_property
    def objectives(self) -> tuple[str, ...]:
        """Names of the scores, in the order of the file."""
        return tuple(dict.fromkeys([*(c.class_name or n for n, c in self.criteria.items()), *self.classes]))

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """All classes."""
        used = (c.class_name for c in self.criteria.values() if c.class_name)
        return tuple(dict.fromkeys([*used, *self.classes]))

    @property
    def empty_classes(self) -> tuple[str, ...]:
        """Classes that no criterion of the rubric belongs to, so that only prompts can give them any."""
        used = {criterion.class_name for criterion in self.criteria.values()}
        return tuple(name for name in self.classes if name not in used)

    def problems(self) -> Iterator[RubricProblem]:
        """Mistakes of the whole rubric; paths begin at its top."""
        for name, criterion in self.criteria.items():
            for each in criterion.problems():
                yield RubricProblem(("criteria", name, *each.path), each.problem, each.fix)
            if not criterion.class_name and name in self.class_names:
                yield RubricProblem(("criteria", name), "is the name of a class too", "rename one of them")
        if not self.objectives:
            yield RubricProblem((), "has no criteria and no classes", "write criteria")

    def criteria_of(self, prompt: Prompt, column: str | None) -> dict[str, Criterion]:
        """The criteria by which responses to a prompt are rated.

        Args:
            prompt: Its column holds a list: names of criteria of this rubric, or criteria of its own as
                objects. A prompt without a value there is rated by all criteria of the rubric.
            column: Name of that column; None: all prompts are rated by all criteria of the rubric.

        Raises:
            DataError: The column holds something else, or a criterion that is not valid.
        """
        value = prompt.columns.get(column) if column is not None else None
        if isinstance(value, str) and value.lstrip().startswith("["):  # a list in a cell of a CSV file
            with suppress(ValueError, RecursionError):
                value = json.loads(value)
        if value is None or value == "":
            return dict(self.criteria)
        if not isinstance(value, list | tuple):
            raise _criteria_error(prompt, column, f"{_shorten(value)} is not a list of criteria")
        criteria: dict[str, Criterion] = {}
        for number, item in enumerate(value, 1):
            name, criterion = self._criterion_of(prompt, column, number, item)
            if name in criteria:
                raise _criteria_error(prompt, column, f'two criteria have the name "{name}"')
            criteria[name] = criterion
        return criteria

    def _criterion_of(
        self, prompt: Prompt, column: str | None, number: int, item: Any
    ) -> tuple[str, Criterion]:
        if isinstance(item, str):
            if item not in self.criteria:
                fix = f"one of {', '.join(self.criteria)}" if self.criteria else "write an object"
                raise _criteria_error(
                    prompt, column, f'"{_shorten(item)}" is no criterion of the rubric', fix
                )
            return item, self.criteria[item]
        if not isinstance(item, Mapping):
            raise _criteria_error(prompt, column, f"item {number} is neither a name nor an object")
        # Parquet gives every object the keys of all of them, with null for those that it lacks.
        values = {key: entry for key, entry in item.items() if entry is not None}
        name = str(values.pop("name", f"criterion_{number}"))
        try:
            criterion = Criterion.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise _criteria_error(prompt, column, f"item {number}: {where}: {first['msg']}") from error
        for each in criterion.problems():
            where = ".".join(map(str, each.path))
            problem = f"item {number}: {f'{where}: ' if where else ''}{each.problem}"
            raise _criteria_error(prompt, column, problem, each.fix)
        if criterion.class_name not in self.class_names:
            known = ", ".join(self.class_names) or "none; add `classes` to the rubric"
            problem = f'item {number}: class "{_shorten(criterion.class_name)}" is not in the rubric'
            raise _criteria_error(prompt, column, problem, f"one of {known}")
        return name, criterion

    def scores(self, criteria: Mapping[str, Criterion], answers: Mapping[str, Answer]) -> list[float]:
        """The score of each objective; NaN for an objective that none of the criteria belongs to.

        A criterion without class: its points. A class: the mean of its criteria, each scaled to [0, 1],
        weighted by `weight`.
        """
        return [self._score(objective, criteria, answers) for objective in self.objectives]

    def _score(
        self, objective: str, criteria: Mapping[str, Criterion], answers: Mapping[str, Answer]
    ) -> float:
        if objective not in self.class_names:
            return criteria[objective].points_of(answers[objective]) if objective in criteria else math.nan
        parts = [
            (c.weight, c.normalized(answers[n])) for n, c in criteria.items() if c.class_name == objective
        ]
        total = math.fsum(weight for weight, _ in parts)
        return math.fsum(weight * value for weight, value in parts) / total if parts else math.nan


def check_prompt_criteria(rubric: Rubric, prompts: Sequence[Prompt], column: str | None) -> None:
    """Read the criteria of all prompts.

    Raises:
        DataError: A prompt has criteria that are not valid, or no prompt has the column.
    """
    if column is None:
        return
    if prompts and all(column not in prompt.columns for prompt in prompts):
        raise DataError(f'criteria_column: no prompt has a column "{column}"; fix: correct or remove it')
    for prompt in prompts:
        rubric.criteria_of(prompt, column)


def _criteria_error(prompt: Prompt, column: str | None, problem: str, fix: str = "") -> DataError:
    return DataError(f"{prompt.id or 'a prompt'}: {column}: {problem}{f'; fix: {fix}' if fix else ''}")


def _shorten(value: object) -> str:
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))
    return text if len(text) <= 60 else text[:57] + "..."
