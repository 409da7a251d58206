"""From the evaluations of all runs to compare.json: means, differences, hypervolumes, ranks, and why not."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretune import __version__
from paretune.compare.cells import Cells, cells_of
from paretune.compare.change import from_start, to_baseline
from paretune.compare.ledger import CURRENCIES, TOLERANCE, Row, refusals
from paretune.compare.pressure import divergence, pressure
from paretune.config.contest import Contest, Entry
from paretune.errors import DataError
from paretune.evaluate.caution import few_prompts
from paretune.evaluate.hierarchy import percentiles
from paretune.files import read_json
from paretune.front import hypervolume, nondominated

SCHEMA = "paretune/compare/1"
PLAIN = ("length", "distinct_2", "unique", "similarity", "truncated")
STATED = ("ece", "auroc")
SIDE = ("kl", *PLAIN, "refused_harmful", "refused_lookalike", *STATED)
"""What a method may have paid for its objectives; of `unique` and `distinct_2` less is worse."""

Numbers = dict[str, Any]


def numbers_of(
    contest: Contest, entries: Sequence[Entry], ledger: Sequence[Row], tuned: Mapping[str, Any]
) -> Numbers:
    """Everything that compare.json says.

    Raises:
        DataError: Two runs of a seed were evaluated on different prompts.
    """
    said = contest.said
    evals = {(e.method, e.weighting, e.seed): _evaluation(e) for e in entries}
    cells = cells_of(contest, entries)
    runs = [row for row in ledger if row["kind"] == "run"]
    spent = {m: [row[said.budget.currency] for row in runs if row["method"] == m] for m in said.methods}
    refused = refusals(spent, said.budget.amount, said.budget.currency)
    found: Numbers = {
        "schema": SCHEMA,
        "version": __version__,
        "name": said.name,
        "recipe": said.recipe,
        "budget": said.budget.model_dump() | {"tolerance": TOLERANCE},
        "reference": said.reference,
        "baseline": said.first,
        "seeds": list(said.seeds),
        "weightings": {name: dict(weights) for name, weights in said.weightings.items()},
        "objectives": _judged(cells.objectives, evals.values()),
        "prompts": list(cells.prompts),
        "crossed": cells.crossed,
        "level": said.level,
        "draws": said.draws,
        "scatter": [list(pair) for pair in said.scatter],
        "tuning": _tuning(contest, tuned),
        "methods": {
            method: {
                "spent": {"least": min(spent[method]), "most": max(spent[method])},
                "refused": refused.get(method),
                "ledger": _mean_row([row for row in runs if row["method"] == method]),
                "tuning_ledger": _tuning_row(ledger, method),
                "side": {w: _side(contest, evals, method, w) for w in said.weightings},
            }
            for method in said.methods
        },
        "shared": [row for row in ledger if row["kind"] == "shared"],
        "start": _start(contest, cells),
        "refused": list(refused.values()),
    }
    points = _points(contest, cells, found, refused)
    pushed = pressure(contest, entries, evals)
    for method in said.methods:
        found["methods"][method] |= {"points": points[method], "pressure": pushed[method]}
    _hypervolumes(contest, cells, found, refused)
    found["cautions"] = _cautions(contest, found)
    return found


def _evaluation(entry: Entry) -> Numbers:
    folder = Path(entry.experiment.run.folder) / "eval" / "final"
    found = read_json(folder / "eval.json")
    if found is None:
        raise DataError(f"{folder}: holds no eval.json; fix: give the command again")
    return found


def _judged(objectives: Sequence[str], evals: Any) -> Numbers:
    """Objective -> who judges it, whether independently, and the largest share of missing judgments."""
    found = {}
    for name in objectives:
        each = [numbers["objectives"][name] for numbers in evals]
        found[name] = {
            "judge": each[0]["judge"],
            "independent": all(o["independent"] for o in each),
            "missing": max(o["missing"]["share"] for o in each),
        }
    return found


def _points(contest: Contest, cells: Cells, found: Numbers, refused: Mapping[str, str]) -> Numbers:
    """Method -> weighting -> objective -> mean, interval, seeds, both kinds of changes, rank."""
    said, judged = contest.said, found["objectives"]
    low, high = percentiles(cells.draws, said.level)
    points: Numbers = {method: {} for method in said.methods}
    for weighting in said.weightings:
        differences = to_baseline(contest, cells, judged, refused, weighting)
        moved = from_start(contest, cells, judged, weighting)
        for method in said.methods:
            points[method][weighting] = {
                o: {
                    "mean": cells.mean[c],
                    "low": low[c],
                    "high": high[c],
                    "seeds": cells.each[:, c].tolist(),
                    "difference": differences.get((method, o)),
                    "from_start": moved[method, o],
                    "rank": None,
                }
                for o in cells.objectives
                for c in [cells.index[method, weighting, o]]
            }
        able = [method for method in said.methods if method not in refused]
        for o in cells.objectives:
            _rank([points[method][weighting][o] for method in able], "mean")
    return points


def _hypervolumes(contest: Contest, cells: Cells, found: Numbers, refused: Mapping[str, str]) -> None:
    """Write down each method's hypervolume, its interval, and its difference to the baseline's."""
    said = contest.said
    names = list(said.reference)
    corner = np.array([said.reference[name] for name in names], np.float64)
    values, drawn = {}, {}
    for method in said.methods:
        found["methods"][method]["hypervolume"] = None
        places = [[cells.index[method, w, o] for o in names] for w in said.weightings]
        if names and np.isfinite(cells.mean[places]).all():
            values[method] = hypervolume(cells.mean[places], corner)
            drawn[method] = np.array([hypervolume(row[places], corner) for row in cells.draws])
    base = said.first
    for method, value in values.items():
        low, high = percentiles(drawn[method][:, None], said.level)
        entry: Numbers = {"value": value, **_ends(low, high), "difference": None, "rank": None}
        if base in values and method != base:
            apart = drawn[method] - drawn[base]
            low, high = percentiles(apart[:, None], said.level)
            entry["difference"] = {"change": value - values[base], **_ends(low, high)}
        found["methods"][method]["hypervolume"] = entry
    _rank([found["methods"][m]["hypervolume"] for m in values if m not in refused], "value")
    _front(contest, cells, found)


def _ends(low: NDArray[np.float64], high: NDArray[np.float64]) -> Numbers:
    return {"low": float(low[0]), "high": float(high[0])}


def _front(contest: Contest, cells: Cells, found: Numbers) -> None:
    """Mark the points that no other one dominates, over all objectives."""
    keys = [(m, w) for m in contest.said.methods for w in contest.said.weightings]
    table = np.stack([cells.mean[[cells.index[m, w, o] for o in cells.objectives]] for m, w in keys])
    known = np.isfinite(table).all(0)
    on = nondominated(table[:, known]) if known.any() else np.zeros(len(keys), bool)
    for (method, weighting), front in zip(keys, on, strict=True):
        found["methods"][method].setdefault("front", {})[weighting] = bool(front)


def _rank(entries: Sequence[Numbers], by: str) -> None:
    """1 for the largest; equal ones share a rank; what nobody measured has none."""
    known = [entry for entry in entries if np.isfinite(entry[by])]
    for entry in known:
        entry["rank"] = 1 + sum(bool(other[by] > entry[by]) for other in known)


def _mean_row(rows: Sequence[Row]) -> Numbers:
    """A method's runs, on average: of peaks the highest."""
    found: Numbers = {"runs": len(rows)}
    for key in (*CURRENCIES, "steps"):
        values = [float(row[key]) for row in rows if row.get(key) is not None]
        pick = max(values) if key == "peak_memory" and values else None
        found[key] = None if not values else pick if pick is not None else sum(values) / len(values)
    return found


def _tuning_row(ledger: Sequence[Row], method: str) -> Numbers | None:
    """What all trials of a method took together."""
    rows = [row for row in ledger if row["kind"] == "tuning" and row["method"] == method]
    if not rows:
        return None
    keys = ("rollout_tokens", "trained_tokens", "reward_calls", "judge_calls", "seconds")
    return {"runs": len(rows), **{key: sum(float(row.get(key) or 0.0) for row in rows) for key in keys}}


def _side(contest: Contest, evals: Mapping[Any, Numbers], method: str, weighting: str) -> Numbers:
    """Signs of a collapse, means over the seeds; before and after where both are known."""
    each = [_side_of(evals[method, weighting, seed]) for seed in contest.said.seeds]
    return {
        key: {
            arm: float(np.mean(values)) if values else None
            for arm in ("before", "after")
            for values in [[side[key][arm] for side in each if side[key][arm] is not None]]
        }
        for key in SIDE
    }


def _side_of(numbers: Numbers) -> Numbers:
    nothing = {"before": None, "after": None}
    pairs = {key: numbers[key] for key in PLAIN}
    stated = numbers.get("calibration")
    for key in STATED:
        pairs[key] = {arm: stated[arm][key] for arm in ("before", "after")} if stated else nothing
    for kind in ("harmful", "lookalike"):
        pairs[f"refused_{kind}"] = numbers["refusals"].get(kind, nothing)
    pairs["kl"] = divergence(numbers)
    return {key: {arm: pair[arm] for arm in ("before", "after")} for key, pair in pairs.items()}


def _start(contest: Contest, cells: Cells) -> Numbers:
    """Objective -> mean over the seeds of the policy before any training, that of the first method."""
    method, weighting = next(iter(contest.said.methods)), next(iter(contest.said.weightings))
    return {o: float(cells.start[cells.index[method, weighting, o]]) for o in cells.objectives}


def _tuning(contest: Contest, tuned: Mapping[str, Any]) -> Numbers | None:
    tuning = contest.said.tuning
    if tuning is None:
        return None
    return tuning.model_dump(mode="json") | {"methods": dict(tuned)}


def _cautions(contest: Contest, found: Numbers) -> list[str]:
    """What a reader has to be told before any rank."""
    lines = list[str]()
    own = [name for name, o in found["objectives"].items() if not o["independent"]]
    if own:
        lines.append(
            f"Judge = training reward for {', '.join(own)}: a higher mean cannot be told from a policy that "
            "pleases its reward better; fix: add a `judge:` fitted on other data to the recipe."
        )
    lines += few_prompts(min(found["prompts"]))
    count = len(contest.said.seeds)
    if count == 1:
        lines.append("One seed: how much another training seed would change is in no interval.")
    elif count < 5:
        lines.append(f"{count} seeds: the spread between training runs is known only roughly; 5 are better.")
    if contest.said.tuning is None:
        lines.append("No tuning: every method ran with the settings it was given.")
    elif contest.said.tuning.by == "judge":
        lines.append(
            "The judge chose the settings, by answers to training prompts: it saw no prompt of the "
            "evaluation before, but it is no longer wholly fresh."
        )
    return lines
