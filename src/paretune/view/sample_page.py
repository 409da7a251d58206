"""What the pages of samples show: the pairs that pass the filters, a page at a time."""

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.exceptions import HTTPException

from paretune.core.goals import HIGHER, Goal
from paretune.report.formatting import decimals_for, format_number, format_signed
from paretune.view.folders import Folder
from paretune.view.reading import Evaluation, TableCache, read_evaluations
from paretune.view.samples import (
    ORDERS,
    VERDICTS,
    Filters,
    Pair,
    Source,
    Summary,
    page_of,
    pair_verdict,
    pairs_of_evaluation,
    pairs_of_sources,
    parse_filters,
    select,
    sources,
    summarize,
)

MAX_TEXT_CHARS = 6000
ORDER_NAMES = {
    "file": "as in the file",
    "gain": "largest gain first",
    "loss": "largest loss first",
    "longest": "longest response first",
    "shortest": "shortest response first",
    "kl": "largest KL first",
}


def samples_context(tables: TableCache, folder: Folder, query: Mapping[str, str]) -> dict[str, Any]:
    """The page of the responses before and after a training.

    Raises:
        HTTPException: The run has no such evaluation.
    """
    evaluations = read_evaluations(folder)
    if not evaluations:
        return {"title": folder.key, "folder": folder, "evaluations": [], "problem": "", "evaluation": None}
    chosen = query.get("evaluation") or evaluations[0].name
    evaluation = next((each for each in evaluations if each.name == chosen), None)
    if evaluation is None:
        raise HTTPException(404, "There is no such evaluation.")
    pairs, problem = pairs_of_evaluation(tables, folder, evaluation)
    before, after = Source(folder, evaluation, "before"), Source(folder, evaluation, "after")
    return {
        "title": folder.key,
        "folder": folder,
        "evaluations": evaluations,
        "evaluation": evaluation,
        "problem": problem,
        "address": "/samples",
        "fixed": {"run": folder.key, "evaluation": evaluation.name},
        "names": ("before", "after"),
        "rate_query": {"a": before.key, "b": after.key},
        **_listing(pairs, query, [evaluation]),
    }


def compare_context(
    tables: TableCache, folders: Mapping[str, Folder], query: Mapping[str, str]
) -> dict[str, Any]:
    """The page of two policies on the same prompts."""
    known = sources(folders.values())
    first, second = chosen_sources(known, query)
    context: dict[str, Any] = {
        "title": "Side by side",
        "sources": known,
        "first": first,
        "second": second,
        "problem": "",
    }
    if first is None or second is None:
        return context
    pairs, problem = pairs_of_sources(tables, first, second)
    entries = [source.evaluation for source in (first, second)]
    return {
        **context,
        "problem": problem,
        "address": "/compare",
        "fixed": {"a": first.key, "b": second.key},
        "names": (first.title, second.title),
        "rate_query": {"a": first.key, "b": second.key},
        "summary": [_summary_row(row, _decimals(row.objective, entries)) for row in summarize(pairs)],
        **_listing(pairs, query, entries),
    }


def chosen_sources(
    known: Sequence[Source], query: Mapping[str, str], *, same_run: bool = False
) -> tuple[Source | None, Source | None]:
    """The two that a request names; by default the trained policies of two runs, or one before and after.

    Args:
        known: All of them.
        query: The request, with `a` and `b`.
        same_run: By default one policy before and after even if there are two runs.
    """
    by_key = {source.key: source for source in known}
    if "a" in query or "b" in query:
        return by_key.get(query.get("a", "")), by_key.get(query.get("b", ""))
    trained = [source for source in known if source.arm == "after"]
    if not trained:
        return None, None
    others = (source for source in trained if source.folder.key != trained[0].folder.key)
    if not same_run and (other := next(others, None)) is not None:
        return trained[0], other
    return Source(trained[0].folder, trained[0].evaluation, "before"), trained[0]


def _listing(
    pairs: Sequence[Pair], query: Mapping[str, str], evaluations: Sequence[Evaluation]
) -> dict[str, Any]:
    names = list(pairs[0].second.scores) if pairs else []
    filters = parse_filters(query, names)
    goal = next((e.goal(filters.objective) for e in evaluations if filters.objective in e.objectives), HIGHER)
    shown, place = page_of(select(pairs, filters, goal), query)
    decimals = {name: _decimals(name, evaluations) for name in names}
    has_kl = any(pair.second.kl is not None for pair in pairs)
    return {
        "filters": filters,
        "filter_query": _filter_query(query, filters),
        "objectives": names,
        "categories": sorted({pair.category for pair in pairs if pair.category}),
        "goal": goal,
        "verdicts": VERDICTS,
        "orders": [(key, ORDER_NAMES[key]) for key in ORDERS if key != "kl" or has_kl],
        "has_kl": has_kl,
        "num_pairs": len(pairs),
        **place,
        "rows": [_row(pair, filters, goal, decimals) for pair in shown],
    }


def _filter_query(query: Mapping[str, str], filters: Filters) -> dict[str, str]:
    """The filters of a request, for links to its other pages."""
    return {key: value for key, value in query.items() if key in filters.__dataclass_fields__ and value}


def _row(pair: Pair, filters: Filters, goal: Goal, decimals: Mapping[str, int]) -> dict[str, Any]:
    scores = []
    for name, digits in decimals.items():
        first, second = pair.first.scores.get(name), pair.second.scores.get(name)
        change = format_signed(pair.change(name), digits)
        scores.append((name, format_number(first, digits), format_number(second, digits), change))
    return {
        "prompt": _cut(pair.prompt),
        "category": pair.category,
        "first": _cut(pair.first.text),
        "second": _cut(pair.second.text),
        "first_tokens": pair.first.num_tokens,
        "second_tokens": pair.second.num_tokens,
        "first_truncated": pair.first.truncated,
        "second_truncated": pair.second.truncated,
        "kl": pair.second.kl,
        "verdict": pair_verdict(pair.gain(filters.objective, goal)),
        "scores": scores,
    }


def _decimals(objective: str, evaluations: Sequence[Evaluation]) -> int:
    entries = (evaluation.objectives.get(objective) for evaluation in evaluations)
    return max((decimals_for(entry) for entry in entries if entry), default=2)


def _summary_row(row: Summary, decimals: int) -> dict[str, Any]:
    return {
        "objective": row.objective,
        "num_scored": row.num_scored,
        "first": format_number(row.first, decimals),
        "second": format_number(row.second, decimals),
        "change": format_signed(row.change, decimals),
        "counts": (row.num_higher, row.num_equal, row.num_lower),
    }


def _cut(text: str) -> str:
    excess = len(text) - MAX_TEXT_CHARS
    return text if excess <= 0 else f"{text[:MAX_TEXT_CHARS]}… [{excess:,} more characters in the file]"
