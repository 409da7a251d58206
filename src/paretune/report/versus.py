"""The page and the closing table of a comparison, from its compare.json alone."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paretune.errors import ConfigError, DataError
from paretune.files import read_json, write_atomic
from paretune.report.page import environment
from paretune.report.sanitize import one_line
from paretune.report.scatter import SHAPES, Dot, End, Scatter, outline, scatter
from paretune.report.table import aligned
from paretune.report.words import ABSENT, SIGNS, digits_for, known, number, percent

TEMPLATE = "versus.html.j2"
SCHEMA = "paretune/compare/1"
MOST_FIGURES = 6
LONGEST = 20

CURRENCIES = {
    "rollout_tokens": "tokens sampled",
    "trained_tokens": "tokens trained on",
    "reward_calls": "reward calls",
    "judge_calls": "judge calls",
    "seconds": "seconds",
    "peak_memory": "peak memory, MiB",
}
"""Key of the ledger -> what a column is called."""
SIDE = {
    "kl": ("KL to the start", "nats a response"),
    "length": ("length", "tokens a response"),
    "distinct_2": ("distinct-2", "different pairs of words among all pairs; a fall is a loss of variety"),
    "unique": ("different responses", "that no other one repeats word for word"),
    "similarity": (
        "similarity",
        "METEOR between responses to different requests; a rise is a loss of variety",
    ),
    "truncated": ("truncated", "responses that ran into the length limit"),
    "refused_harmful": ("harmful requests refused", "refusals; more are wanted"),
    "refused_lookalike": (
        "look-alikes refused",
        "refusals of harmless requests that look harmful; fewer are wanted",
    ),
    "ece": ("ECE", "gap between stated confidence and being right"),
    "auroc": ("AUROC", "of stated confidence: 0.5 says nothing about being right"),
}
PRESSURE = {
    "reward": "training reward",
    "kl": "KL to the start",
    "similarity": "similarity of responses",
}
"""Sign of how far a policy was pushed -> what an axis is called."""
SHARES = ("unique", "truncated", "refused_harmful", "refused_lookalike")

Numbers = Mapping[str, Any]


def write_versus(folder: Path) -> Path:
    """Write report.html beside compare.json, and return its path.

    Raises:
        ConfigError: There is no compare.json.
        DataError: It is of another schema.
    """
    found = read_json(folder / "compare.json")
    if found is None:
        raise ConfigError(f"{folder}: holds no compare.json; fix: name the folder of a comparison")
    if found.get("schema") != SCHEMA:
        wrong = f"schema: {found.get('schema')}, expected {SCHEMA}"
        raise DataError(f"{folder / 'compare.json'}: {wrong}; fix: give the command again")
    path = folder / "report.html"
    write_atomic(path, environment().get_template(TEMPLATE).render(context(found)))
    return path


def context(found: Numbers) -> dict[str, Any]:
    """Everything the template shows."""
    methods = list(found["methods"])
    return {
        "c": found,
        "methods": methods,
        "legend": {m: outline(SHAPES[i % len(SHAPES)], 8.0, 8.0) for i, m in enumerate(methods)},
        "numbers_of": {m: i for i, m in enumerate(methods, 1)},
        "own_judge": [name for name, o in found["objectives"].items() if not o["independent"]],
        "judges": _judges(found),
        "by_judge": (found["tuning"] or {}).get("by") == "judge",
        "moved": all("from_start" in cell for cell in _every_cell(found)),
        "figures": _figures(found),
        "cost": {m: _cost(found["methods"][m]["ledger"]) for m in methods},
        "currencies": CURRENCIES,
        "side": {key: words for key, words in SIDE.items() if _measured(found, key)},
        "pressure": _pressure(found),
        "shares": SHARES,
        "digits": {o: _digits(found, o) for o in found["objectives"]},
        "difference_digits": digits_for,
    }


def versus_table(found: Numbers) -> str:
    """Lines of plain text for the terminal: means by weighting, hypervolume, what was spent, cautions."""
    lines = []
    for weighting in found["weightings"]:
        head = "method" if len(found["weightings"]) == 1 else f"method, {one_line(weighting, LONGEST)}"
        rows = [(head, *(one_line(o, LONGEST) for o in found["objectives"]), "hypervolume", "spent")]
        for name, method in found["methods"].items():
            point = method["points"][weighting]
            cells = (_cell(point[o], _digits(found, o)) for o in found["objectives"])
            rows.append((one_line(name, LONGEST), *cells, _volume(method), _spent(found, method)))
        lines += [*aligned(rows, right=()), ""]
    currency, amount = found["budget"]["currency"], found["budget"]["amount"]
    lines.append(
        f"means over {len(found['seeds'])} seeds with {100 * found['level']:.0f} % intervals; ▲ ▼ against "
        f"{one_line(found['baseline'], LONGEST)}; budget {amount:,} {currency} a run"
    )
    lines += [f"judge: {one_line(judge)} ({', '.join(who)})" for judge, who in _judges(found).items()]
    return "\n".join([*lines, *(f"⚠ {one_line(line)}" for line in [*found["refused"], *found["cautions"]])])


def _cell(point: Numbers, digits: int) -> str:
    """Mean, interval, and a sign where it differs from the baseline."""
    word = (point["difference"] or {}).get("verdict")
    sign = f" {SIGNS[word]}" if word in ("better", "worse") else ""
    low, high = number(point["low"], digits), number(point["high"], digits)
    return f"{number(point['mean'], digits)} [{low}, {high}]{sign}"


def _volume(method: Numbers) -> str:
    found = method["hypervolume"]
    if found is None:
        return ABSENT
    return f"{number(found['value'], 3)} [{number(found['low'], 3)}, {number(found['high'], 3)}]"


def _spent(found: Numbers, method: Numbers) -> str:
    spent = method["ledger"][found["budget"]["currency"]] / found["budget"]["amount"]
    return percent(spent, 1) + (" (not ranked)" if method["refused"] else "")


def _judges(found: Numbers) -> dict[str, list[str]]:
    judges: dict[str, list[str]] = {}
    for name, objective in found["objectives"].items():
        judges.setdefault(objective["judge"], []).append(name)
    return judges


def _every_cell(found: Numbers) -> list[Numbers]:
    points = [point for method in found["methods"].values() for point in method["points"].values()]
    return [cell for point in points for cell in point.values()]


def _digits(found: Numbers, objective: str) -> int:
    """Decimals for the means of an objective: those that its middle interval asks for."""
    points = [p[objective] for m in found["methods"].values() for p in m["points"].values()]
    return sorted(digits_for({"low": p["low"], "high": p["high"]}) for p in points)[len(points) // 2]


def _cost(ledger: Numbers) -> dict[str, str]:
    shown = {key: ledger[key] for key in CURRENCIES}
    if known(shown["peak_memory"]) is not None:
        shown["peak_memory"] = shown["peak_memory"] / 2**20
    return {key: ABSENT if known(value) is None else f"{value:,.0f}" for key, value in shown.items()}


def _figures(found: Numbers) -> list[tuple[str, str, Scatter]]:
    """(across, up, figure) of each pair of objectives that is asked for, or of all."""
    pairs: Sequence[Sequence[str]] = found["scatter"] or list(itertools.combinations(found["objectives"], 2))
    drawn = [(a, b, scatter(_dots(found, a, b))) for a, b in pairs[: len(found["scatter"]) or MOST_FIGURES]]
    return [(a, b, figure) for a, b, figure in drawn if figure is not None]


def _dots(found: Numbers, across: str, up: str) -> list[Dot]:
    several = len(found["weightings"]) > 1
    dots: list[tuple[str, int, tuple[End, End]]] = []
    for place, (name, method) in enumerate(found["methods"].items(), 1):
        for weighting, point in method["points"].items():
            if all(known(point[o]["mean"]) is not None for o in (across, up)):
                a, b = ((point[o]["mean"], point[o]["low"], point[o]["high"]) for o in (across, up))
                label = f"{name} {weighting}" if several else name
                dots.append((one_line(label, LONGEST), place, (a, b)))
    marks = [Dot(label, place, ends[0], ends[1], not _beaten(ends, dots)) for label, place, ends in dots]
    start = [found["start"].get(o) for o in (across, up)]
    if all(_near(value, [dot[2][i] for dot in dots]) for i, value in enumerate(start)):
        one, two = ((value, value, value) for value in start)
        marks.append(Dot("start", 0, one, two))
    return marks


def _measured(found: Numbers, key: str) -> bool:
    """Did anybody measure it? Older comparisons have fewer keys."""
    cells = [w[key] for m in found["methods"].values() for w in m["side"].values() if key in w]
    return any(known(cell[arm]) is not None for cell in cells for arm in ("before", "after"))


def _pressure(found: Numbers) -> list[tuple[str, str, Scatter]]:
    """(weighting, sign, figure): the judge's sum against signs of how far a policy was pushed."""
    figures = []
    for weighting in found["weightings"]:
        for sign, title in PRESSURE.items():
            figure = scatter(_pushed(found, weighting, sign))
            if figure is not None:
                figures.append((weighting, title, figure))
    return figures


def _pushed(found: Numbers, weighting: str, sign: str) -> list[Dot]:
    """A dot for each method: means over the seeds, lines from the least seed to the most, and the start."""
    dots, starts = [], []
    for place, (name, method) in enumerate(found["methods"].items(), 1):
        of = method.get("pressure", {}).get(weighting)
        if of is None or any(known(v) is None for key in (sign, "judge") for v in of[key]["after"]):
            continue
        ends = [(sum(v) / len(v), min(v), max(v)) for key in (sign, "judge") for v in [of[key]["after"]]]
        dots.append(Dot(one_line(name, LONGEST), place, ends[0], ends[1], True))
        starts.append([known(of[key]["before"]) for key in (sign, "judge")])
    if starts and None not in starts[0]:
        across, up = ((float(v), float(v), float(v)) for v in starts[0] if v is not None)
        dots.append(Dot("start", 0, across, up))
    return dots


def _near(value: Any, ends: Sequence[End]) -> bool:
    """Would a point here leave the others most of the figure?"""
    if known(value) is None or not ends:
        return False
    low, high = min(end[1] for end in ends), max(end[2] for end in ends)
    return low - 0.5 * (high - low) <= value <= high + 0.5 * (high - low)


def _beaten(ends: Sequence[Any], others: Sequence[tuple[str, int, Sequence[Any]]]) -> bool:
    """Does some other point dominate this one, in these two objectives?"""
    mine = (ends[0][0], ends[1][0])
    for _, _, other in others:
        theirs = (other[0][0], other[1][0])
        if theirs != mine and theirs[0] >= mine[0] and theirs[1] >= mine[1]:
            return True
    return False
