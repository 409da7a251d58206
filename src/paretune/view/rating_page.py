"""What the rating page shows, and what becomes of an answer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paretune.core.goals import HIGHER, Goal
from paretune.view.folders import Folder
from paretune.view.ratings import (
    CHOICES,
    MODES,
    OVERALL,
    Item,
    Mode,
    RatingsFile,
    Scale,
    comparison_counts,
    comparison_row,
    items,
    rating_row,
    recipe_lines,
)
from paretune.view.reading import TableCache
from paretune.view.sample_page import chosen_sources
from paretune.view.samples import Source, pairs_of_sources, sources, whole_number

UNDO = "undo"
ScaleOf = Callable[[str], Scale]


def rating_context(
    tables: TableCache,
    folders: Mapping[str, Folder],
    ratings: RatingsFile,
    query: Mapping[str, str],
    seed: int,
    scale_of: ScaleOf,
) -> dict[str, Any]:
    """The page with the next response, or pair of responses, that has no answer yet."""
    known = sources(folders.values())
    first, second = chosen_sources(known, query, same_run=True)
    mode, objectives = _mode(query), _objectives(first, second)
    objective = _objective(query, objectives)
    context: dict[str, Any] = {
        "title": "Rate",
        "sources": known,
        "first": first,
        "second": second,
        "mode": mode,
        "objectives": objectives,
        "objective": objective,
        "item": None,
        "reading_problem": "",
    }
    if first is None or second is None:
        return context
    waiting, left_out, problem = _items(tables, (first, second), mode, objective, seed)
    rows = ratings.rows()
    answered = {row.get("id") for row in rows}
    position = next_position(waiting, answered, whole_number(query.get("at"), 0))
    names = (first.title, second.title)
    return {
        **context,
        "reading_problem": problem,
        "item": None if position is None else waiting[position],
        "position": position,
        "num_items": len(waiting),
        "num_answered": sum(item.id in answered for item in waiting),
        "left_out": left_out,
        "scales": [(name, scale_of(name), _goal(name, (first, second))) for name in objectives],
        "can_undo": ratings.last_row is not None,
        "counts": comparison_counts(rows, objective, names) if mode == "pairs" else {},
        "recipe": recipe_lines(ratings.path.absolute(), rows) if rows else "",
        "fixed": {"a": first.key, "b": second.key, "mode": mode, "objective": objective},
    }


def handle_answer(
    tables: TableCache,
    folders: Mapping[str, Folder],
    ratings: RatingsFile,
    fields: Mapping[str, str],
    seed: int,
    scale_of: ScaleOf,
) -> tuple[dict[str, Any], str]:
    """Write an answer; the query of the page that comes next, and what is wrong with the answer.

    Raises:
        ResourceError: It cannot be written.
    """
    query: dict[str, Any] = {
        key: fields[key] for key in ("a", "b", "mode", "objective", "at") if key in fields
    }
    if fields.get("choice") == UNDO:
        return query, "" if ratings.undo() else "There is nothing to undo."
    first, second = chosen_sources(sources(folders.values()), fields)
    if first is None or second is None:
        return query, "One of these runs no longer exists."
    mode, objectives = _mode(fields), _objectives(first, second)
    objective = _objective(fields, objectives)
    if objective != fields.get("objective"):
        return query, "There is no such objective."
    waiting, _, _ = _items(tables, (first, second), mode, objective, seed)
    position = next((i for i, item in enumerate(waiting) if item.id == fields.get("id")), None)
    if position is None:
        return query, "These responses have changed in the meantime; rate the ones below."
    item = waiting[position]
    if mode == "pairs":
        choice = fields.get("choice", "")
        if choice not in CHOICES:
            return query, "Choose 1, 2 or =."
        row = comparison_row(item, choice, objective)
    else:
        scores, problem = _scores(fields, objectives, scale_of)
        if problem:
            return query, problem
        row = rating_row(item, scores)
    # Twice the same form, such as after "back": the first answer stays.
    if item.id not in {row.get("id") for row in ratings.rows()}:
        ratings.append(row)
    return query | {"at": position}, ""


def _scores(
    fields: Mapping[str, str], objectives: Sequence[str], scale_of: ScaleOf
) -> tuple[dict[str, int], str]:
    scores = {}
    for i, name in enumerate(objectives):
        text, scale = fields.get(f"score-{i}", ""), scale_of(name)
        if not text:
            continue
        if text not in map(str, scale.values):
            return {}, f"{name}: give a number from {scale.low} to {scale.high}."
        scores[name] = int(text)
    return scores, "" if scores else "Give a number for at least one objective."


def next_position(waiting: Sequence[Item], answered: set[Any], start: int) -> int | None:
    """The first item without an answer from `start` on, or else before it; None if all have one."""
    order = [*range(start, len(waiting)), *range(min(start, len(waiting)))]
    return next((i for i in order if waiting[i].id not in answered), None)


def _items(
    tables: TableCache, pair: tuple[Source, Source], mode: Mode, objective: str, seed: int
) -> tuple[list[Item], dict[str, int], str]:
    pairs, problem = pairs_of_sources(tables, *pair)
    waiting, left_out = items(pairs, pair, mode, objective, seed)
    return waiting, left_out, problem


def _mode(query: Mapping[str, str]) -> Mode:
    return next((mode for mode in MODES if mode == query.get("mode")), MODES[0])


def _objectives(first: Source | None, second: Source | None) -> list[str]:
    if first is None or second is None:
        return []
    return list(dict.fromkeys([*first.evaluation.objectives, *second.evaluation.objectives]))


def _goal(objective: str, pair: tuple[Source, Source]) -> Goal:
    evaluations = [source.evaluation for source in pair if objective in source.evaluation.objectives]
    return evaluations[0].goal(objective) if evaluations else HIGHER


def _objective(query: Mapping[str, str], objectives: Sequence[str]) -> str:
    names = [*objectives, OVERALL]
    return query["objective"] if query.get("objective") in names else names[0]
