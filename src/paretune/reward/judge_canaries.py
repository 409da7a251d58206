"""Canaries: responses with known answers, by which an LLM judge is checked before a run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretune.core.errors import DataError, format_issue, join_issues
from paretune.data.columns import ColumnNames, FieldError
from paretune.data.fields import extract_prompt_and_response
from paretune.data.formats import read_rows
from paretune.data.records import Prompt
from paretune.reward.judge_client import Reply
from paretune.reward.rubric import Answer, Rubric


@dataclass(frozen=True, slots=True)
class Canary:
    """A response with known answers."""

    location: str
    """file:line"""
    prompt: Prompt
    response: str
    answers: Mapping[str, tuple[Answer, ...]]
    """Criterion -> the answers that are right."""


def read_canaries(path: Path, rubric: Rubric) -> tuple[Canary, ...]:
    """Canaries of a JSON Lines file: prompt, response, and `answers` {criterion: answer or list of answers}.

    Raises:
        DataError: One line per mistake of the file.
    """
    issues: list[str] = []
    canaries = []
    for row in read_rows(path, issues):
        try:
            messages, response = extract_prompt_and_response(row.values, ColumnNames())
        except FieldError as error:
            issues.extend(error.render_all(row.location))
            continue
        problems = list(_answer_issues(row.values.get("answers"), rubric))
        issues += [format_issue(row.location, None, None, *each[:2], fix=each[2]) for each in problems]
        if not problems:
            answers = {
                name: tuple(value) if isinstance(value, list) else (value,)
                for name, value in row.values["answers"].items()
            }
            canaries.append(Canary(row.location, Prompt(messages=messages), response, answers))
    if not canaries and not issues:
        issues.append(format_issue(path, None, None, "", "is empty", fix="write one object per line"))
    if issues:
        raise DataError(join_issues(issues))
    return tuple(canaries)


def _answer_issues(answers: Any, rubric: Rubric) -> Iterator[tuple[str, str, str]]:
    """Key, problem and fix of each mistake in the known answers of a canary."""
    if not isinstance(answers, dict) or not answers:
        yield "answers", "is not an object of criterion: answer", 'such as {"politeness": "rude"}'
        return
    for name, value in answers.items():
        if name not in rubric.criteria:
            yield f"answers.{name}", "is no criterion of the rubric", f"one of {', '.join(rubric.criteria)}"
            continue
        criterion = rubric.criteria[name]
        for answer in value if isinstance(value, list) else [value]:
            if criterion.points is not None:
                low, high = criterion.points.min, criterion.points.max
                is_whole = isinstance(answer, int) and not isinstance(answer, bool)
                if not is_whole or not low <= answer <= high:
                    yield f"answers.{name}", f"{answer!r} is not a whole number from {low} to {high}", ""
            elif answer not in criterion.levels:
                yield f"answers.{name}", f"{answer!r} is no level", f"one of {', '.join(criterion.levels)}"


def canary_problem(canary: Canary, reply: Reply) -> str:
    """What is wrong with the answers to a canary, or ""."""
    if reply.answers is None:
        return f"{canary.location}: {reply.reason}"
    for name, known in canary.answers.items():
        if reply.answers[name] not in known:
            return f"{canary.location}: {name}: {reply.answers[name]}, not {' or '.join(map(str, known))}"
    return ""
