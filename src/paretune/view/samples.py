"""Responses in pairs: before and after of one evaluation, or two policies on the same prompts; filters."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from paretune.core.goals import HIGHER, Goal
from paretune.report.formatting import finite_or_none
from paretune.view.folders import Folder
from paretune.view.reading import Evaluation, TableCache, read_evaluations

PAGE_SIZE = 20
Row = TypeVar("Row")
Arm = Literal["before", "after"]
ARMS: tuple[Arm, ...] = ("before", "after")
VERDICTS = ("better", "worse", "same", "not scored")
ORDERS = ("file", "gain", "loss", "longest", "shortest", "kl")
KL_COLUMN = "kl"


@dataclass(frozen=True, slots=True)
class Response:
    """A response of one policy."""

    text: str
    num_tokens: int | None
    truncated: bool
    scores: Mapping[str, float | None]
    kl: float | None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses to one prompt."""

    prompt: str
    messages: tuple[tuple[str, str], ...]
    """(role, text) of the prompt; () where the file does not tell the turns of a conversation apart."""
    category: str
    first: Response
    second: Response
    sample_index: int = 0

    def change(self, objective: str) -> float | None:
        """Score of the second response minus that of the first; None if one is missing."""
        first, second = self.first.scores.get(objective), self.second.scores.get(objective)
        return None if first is None or second is None else second - first

    def gain(self, objective: str, goal: Goal) -> float | None:
        """The change in the direction of the goal: positive = the second response is better."""
        first, second = self.first.scores.get(objective), self.second.scores.get(objective)
        return None if first is None or second is None else goal.orient(second) - goal.orient(first)


@dataclass(frozen=True, slots=True)
class Source:
    """The responses of one policy in one evaluation."""

    folder: Folder
    evaluation: Evaluation
    arm: Arm

    @property
    def key(self) -> str:
        """Its value in forms: run, evaluation and arm."""
        return json.dumps([self.folder.key, self.evaluation.name, self.arm])

    @property
    def title(self) -> str:
        """Its name on the pages."""
        name = "" if self.evaluation.name == "final" else f", {self.evaluation.name}"
        return f"{self.folder.key}{name}: {self.arm}"


def sources(folders: Iterable[Folder]) -> list[Source]:
    """Everything that can be set side by side: the trained policies first."""
    found = [
        Source(folder, evaluation, arm)
        for folder in folders
        for evaluation in read_evaluations(folder)
        for arm in ("after", "before")
    ]
    return sorted(found, key=lambda source: source.arm == "before")


def pairs_of_evaluation(tables: TableCache, folder: Folder, evaluation: Evaluation) -> tuple[list[Pair], str]:
    """The pairs of an evaluation, and why there are none."""
    rows, problem = tables.read(folder, evaluation)
    names = objective_names(rows, evaluation)
    return [
        _pair(row, _response(row, "before", names), _response(row, "after", names)) for row in rows
    ], problem


def pairs_of_sources(tables: TableCache, first: Source, second: Source) -> tuple[list[Pair], str]:
    """The responses of two policies to the prompts that both have."""
    tables_read = [tables.read(source.folder, source.evaluation) for source in (first, second)]
    for (_, problem), source in zip(tables_read, (first, second), strict=True):
        if problem:
            return [], f"{source.title}: {problem}"
    by_prompt: dict[tuple[str, int], Mapping[str, Any]] = {}
    for row in tables_read[1][0]:
        by_prompt.setdefault(_prompt_key(row), row)
    names = [
        objective_names(rows, source.evaluation)
        for (rows, _), source in zip(tables_read, (first, second), strict=True)
    ]
    pairs = []
    for row in tables_read[0][0]:
        other = by_prompt.get(_prompt_key(row))
        if other is not None:
            responses = _response(row, first.arm, names[0]), _response(other, second.arm, names[1])
            pairs.append(_pair(row, *responses))
    return pairs, "" if pairs else "The two have no prompt in common."


def objective_names(rows: Sequence[Mapping[str, Any]], evaluation: Evaluation) -> list[str]:
    """The objectives of an evaluation; from the table where its eval.json cannot be read."""
    if evaluation.objectives:
        return list(evaluation.objectives)
    return [key.removeprefix("after/") for key in (rows[0] if rows else ()) if key.startswith("after/")]


def _prompt_key(row: Mapping[str, Any]) -> tuple[str, int]:
    return _text(row.get("prompt")), _index(row)


def _index(row: Mapping[str, Any]) -> int:
    index = row.get("sample_index")
    return index if isinstance(index, int) else 0


def _pair(row: Mapping[str, Any], first: Response, second: Response) -> Pair:
    prompt = _text(row.get("prompt"))
    return Pair(
        prompt=prompt,
        messages=_messages(row, prompt),
        category=_text(row.get("category")),
        first=first,
        second=second,
        sample_index=_index(row),
    )


def _messages(row: Mapping[str, Any], prompt: str) -> tuple[tuple[str, str], ...]:
    """The turns of a prompt; () for a text that may be several turns, one line each."""
    if "messages" in row:
        try:
            return tuple((turn["role"], turn["content"]) for turn in json.loads(row["messages"] or "[]"))
        except (ValueError, KeyError, TypeError, RecursionError):
            return ()
    starts = tuple(f"{role}: " for role in ("system", "user", "assistant", "tool", "developer"))
    is_conversation = prompt.startswith(starts) and any(f"\n{start}" in prompt for start in starts)
    return () if is_conversation else (("user", prompt),)


def _response(row: Mapping[str, Any], arm: Arm, names: Sequence[str]) -> Response:
    tokens = row.get(f"{arm}_tokens")
    return Response(
        text=_text(row.get(arm)),
        num_tokens=tokens if isinstance(tokens, int) else None,
        truncated=bool(row.get(f"{arm}_truncated")),
        scores={name: finite_or_none(row.get(f"{arm}/{name}")) for name in names},
        kl=finite_or_none(row.get(f"{arm}_{KL_COLUMN}", row.get(KL_COLUMN) if arm == "after" else None)),
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


@dataclass(frozen=True, slots=True)
class Filters:
    """What a reader asked for."""

    objective: str = ""
    """Objective of `verdict`, `min_change`, `max_change` and the orders; "" = the first one."""
    verdict: str = ""
    min_change: float | None = None
    max_change: float | None = None
    category: str = ""
    min_tokens: float | None = None
    max_tokens: float | None = None
    min_kl: float | None = None
    text: str = ""
    order: str = "file"
    problems: tuple[str, ...] = ()
    """What could not be read, one line each."""

    @property
    def is_set(self) -> bool:
        """Whether any filter leaves rows out."""
        return bool(self.verdict or self.category or self.text) or any(
            value is not None
            for value in (self.min_change, self.max_change, self.min_tokens, self.max_tokens, self.min_kl)
        )


def parse_number(text: str, problems: list[str]) -> float | None:
    """The number in a field; None for an empty field, and for one that is added to the problems."""
    plain = text.strip().replace("−", "-").replace(",", ".")
    try:
        value = float(plain) if plain else None
    except ValueError:
        value = math.nan
    if value is None or math.isfinite(value):
        return value
    problems.append(f"“{text.strip()}” is not a number")
    return None


def whole_number(text: str | None, default: int) -> int:
    """The number from 0 that a page wrote into an address; the default for anything else."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else default


def page_of(rows: Sequence[Row], query: Mapping[str, str]) -> tuple[Sequence[Row], dict[str, int]]:
    """The rows of the page that a query asks for, or of the nearest one, and what its links show."""
    num_pages = max(1, -(-len(rows) // PAGE_SIZE))
    page = min(max(whole_number(query.get("page"), 1), 1), num_pages)
    shown = rows[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]
    return shown, {"num_selected": len(rows), "page": page, "num_pages": num_pages}


def parse_filters(query: Mapping[str, str], objectives: Sequence[str]) -> Filters:
    """The filters of a query; what cannot be read is left out, and said."""
    problems: list[str] = []

    def number(key: str) -> float | None:
        return parse_number(query.get(key, ""), problems)

    def choice(key: str, allowed: Sequence[str], default: str) -> str:
        value = query.get(key, "")
        if value and value not in allowed:
            problems.append(f"“{value}” is not one of {', '.join(allowed)}")
        return value if value in allowed else default

    filters = Filters(
        objective=choice("objective", objectives, objectives[0] if objectives else ""),
        verdict=choice("verdict", VERDICTS, ""),
        min_change=number("min_change"),
        max_change=number("max_change"),
        category=query.get("category", ""),
        min_tokens=number("min_tokens"),
        max_tokens=number("max_tokens"),
        min_kl=number("min_kl"),
        text=query.get("text", "").strip(),
        order=choice("order", ORDERS, "file"),
    )
    return replace(filters, problems=tuple(problems))


def select(pairs: Sequence[Pair], filters: Filters, goal: Goal = HIGHER) -> list[Pair]:
    """The pairs that pass, in the order asked for; those without the number of an order come last."""
    conditions = list(_conditions(filters, goal))
    selected = [pair for pair in pairs if all(condition(pair) for condition in conditions)]

    def gain(pair: Pair) -> float | None:
        return pair.gain(filters.objective, goal)

    keys: dict[str, Callable[[Pair], float | None]] = {
        "gain": lambda pair: _negated(gain(pair)),
        "loss": gain,
        "longest": lambda pair: _negated(pair.second.num_tokens),
        "shortest": lambda pair: pair.second.num_tokens,
        "kl": lambda pair: _negated(pair.second.kl),
    }
    if filters.order in keys:
        key = keys[filters.order]
        selected.sort(key=lambda pair: math.inf if (value := key(pair)) is None else value)
    return selected


def _negated(value: float | None) -> float | None:
    return None if value is None else -value


def _conditions(filters: Filters, goal: Goal) -> Iterable[Callable[[Pair], bool]]:
    if filters.verdict:
        yield lambda pair: pair_verdict(pair.gain(filters.objective, goal)) == filters.verdict
    if filters.category:
        yield lambda pair: pair.category == filters.category
    if filters.text:
        words = filters.text.casefold()
        yield lambda pair: any(
            words in text.casefold() for text in (pair.prompt, pair.first.text, pair.second.text)
        )
    ranges: tuple[tuple[float | None, float | None, Callable[[Pair], float | None]], ...] = (
        (filters.min_change, filters.max_change, lambda pair: pair.change(filters.objective)),
        (filters.min_tokens, filters.max_tokens, lambda pair: pair.second.num_tokens),
        (filters.min_kl, None, lambda pair: pair.second.kl),
    )
    for low, high, value in ranges:
        if low is not None or high is not None:
            yield _within(low, high, value)


def _within(
    low: float | None, high: float | None, value: Callable[[Pair], float | None]
) -> Callable[[Pair], bool]:
    def passes(pair: Pair) -> bool:
        number = value(pair)
        return number is not None and (low is None or number >= low) and (high is None or number <= high)

    return passes


def pair_verdict(gain: float | None) -> str:
    """The word for the gain of one row: no verdict on the policy, which needs many."""
    if gain is None:
        return "not scored"
    return "same" if gain == 0 else "better" if gain > 0 else "worse"


@dataclass(frozen=True, slots=True)
class Summary:
    """Two policies by one objective, over the prompts that both have."""

    objective: str
    num_scored: int
    first: float | None
    second: float | None
    change: float | None
    num_higher: int = 0
    num_equal: int = 0
    num_lower: int = 0


def summarize(pairs: Sequence[Pair]) -> list[Summary]:
    """Means over the prompts that both score, per objective that both have."""
    names = list(pairs[0].first.scores) if pairs else []
    summaries = []
    for name in names:
        scored = [
            (pair.first.scores[name], pair.second.scores.get(name))
            for pair in pairs
            if pair.change(name) is not None
        ]
        known = [(a, b) for a, b in scored if a is not None and b is not None]
        if not known:
            continue
        first, second = (sum(values) / len(known) for values in zip(*known, strict=True))
        summaries.append(
            Summary(
                name,
                len(known),
                first,
                second,
                second - first,
                sum(b > a for a, b in known),
                sum(b == a for a, b in known),
                sum(b < a for a, b in known),
            )
        )
    return summaries
