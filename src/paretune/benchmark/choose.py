"""`paretune choose`: one point of a sweep, a comparison, merges or a run, by a rule that the user states."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paretune.benchmark.choose_points import Candidate, load_candidates
from paretune.benchmark.choose_rule import Constraint, Rule, parse_rule
from paretune.benchmark.sweep_results import selection_caution
from paretune.core.errors import ConfigError, DataError
from paretune.core.goals import Goal
from paretune.evaluate.paired import mean_per_prompt
from paretune.evaluate.statistics import (
    bootstrap_means,
    max_t_intervals,
    mean_over_seeds,
    simultaneous_intervals,
)
from paretune.evaluate.stored_scores import clusters_of, read_generations
from paretune.evaluate.verdicts import ONE_SEED
from paretune.report.formatting import decimals_for, format_number, goal_arrow, goal_words, one_line
from paretune.report.tables import align_columns
from paretune.run.io import read_json

FloatArray = NDArray[np.float64]

CONFIDENCE_LEVEL = 0.95
"""All intervals of a choice hold at once with this probability."""
BOOTSTRAP_SAMPLES = 4000
MAX_ROWS = 12
"""Largest number of points in the table: the chosen one, then the next best."""


class Level(NamedTuple):
    """A mean with its interval, which holds together with those of all points and all parts of a rule."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Choice:
    """The point that a rule picks."""

    folder: Path
    rule: Rule
    candidates: tuple[Candidate, ...]
    goals: Mapping[str, Goal]
    levels: Mapping[str, tuple[Level, ...]]
    """Objective of the rule -> the mean score of each candidate, in the units of the judge."""
    feasible: tuple[bool, ...]
    order: tuple[int, ...]
    """Feasible candidates from best to worst, then the others; the first is chosen."""
    cautions: tuple[str, ...]

    def __str__(self) -> str:
        """What `paretune choose` prints."""
        return describe_choice(self)

    @property
    def index(self) -> int:
        """The chosen candidate."""
        return self.order[0]

    @property
    def chosen(self) -> Candidate:
        """The chosen point."""
        return self.candidates[self.index]

    @property
    def run_dir(self) -> Path:
        """The run folder whose policy is exported: that of the first training seed."""
        return self.chosen.run_dirs[0]


def choose(folder: Path, rule: str) -> Choice:
    """The point of a folder that meets the constraints of a rule and is then best.

    A constraint must hold by the lower bound of an interval (by the upper bound for <=), unless it says "by
    mean". The intervals of all points and constraints hold at once with 95 % confidence, so that the chosen
    point may be any of them. Among the points that meet all constraints, the best mean decides.

    Args:
        folder: A folder with sweep.json, benchmark.json or merge.json, or a run with `evaluate.eval_steps`.
        rule: Such as "safety >= 0.8, then actionability"; see `parse_rule`.

    Raises:
        ConfigError: The folder has no points, the rule has a mistake, or no point meets it; the message says
            by how much.
        DataError: The points were evaluated on different prompts.
    """
    candidates = load_candidates(folder)
    evaluations = [_evaluation(candidate) for candidate in candidates]
    entries = evaluations[0]["objectives"]
    goals = {name: Goal.of(entry) for name, entry in entries.items() if entry["after"] is not None}
    parsed = parse_rule(rule, goals)
    units = {name: entries[name]["std"] or 1.0 for name in parsed.objectives}
    tables = _Tables.read(candidates, parsed, goals)
    levels = {name: tables.levels(name) for name in parsed.objectives}
    checks = [_check(each, tables, levels, entries[each.objective]) for each in parsed.constraints]
    shortfalls = np.array(
        [[_shortfall(check.constraint, check.bound, level) for level in check.levels] for check in checks]
    ).reshape(len(checks), len(candidates))
    feasible = tuple(all(shortfall <= 0 for shortfall in column) for column in shortfalls.T)
    if not any(feasible):
        scales = np.array([units[each.objective] for each in parsed.constraints])
        raise ConfigError(_infeasible(folder, candidates, checks, shortfalls, scales))
    values = np.sum(
        [[goals[name].orient(level.mean) / units[name] for level in levels[name]] for name in parsed.best], 0
    )
    order = sorted(range(len(candidates)), key=lambda i: (not feasible[i], -values[i]))
    return Choice(
        folder=folder,
        rule=parsed,
        candidates=tuple(candidates),
        goals=goals,
        levels=levels,
        feasible=feasible,
        order=tuple(order),
        cautions=tuple(_cautions(candidates, evaluations[order[0]], parsed)),
    )


def describe_choice(choice: Choice) -> str:
    """The chosen point, the table of the points, and cautions, as text."""
    rule, chosen = choice.rule, choice.chosen
    names = rule.objectives
    decimals = {name: _decimals(choice.levels[name]) for name in names}
    header = [f"{one_line(name, 24)} {goal_arrow(choice.goals[name].entry())}" for name in names]
    rows: list[Sequence[str]] = [("point", *header, "meets the rule")]
    for i in choice.order[:MAX_ROWS]:
        cells = [_level_text(choice.levels[name][i], decimals[name]) for name in names]
        mark = "chosen" if i == choice.index else "yes" if choice.feasible[i] else "no"
        rows.append((one_line(choice.candidates[i].label, 40), *cells, mark))
    hidden = len(choice.candidates) - MAX_ROWS
    conditions = ", ".join(each.words for each in rule.constraints) or "no constraint"
    best = " + ".join(rule.best)
    directions = "; ".join(f"{name}: {goal_words(choice.goals[name].entry())}" for name in names)
    seeds = len(chosen.run_dirs)
    exported = "" if seeds == 1 else f" (the first of {seeds} training seeds; a point is the mean of all)"
    return "\n".join(
        [
            f"chosen     {chosen.label}",
            f"rule       {conditions}; then best {best}",
            f"feasible   {sum(choice.feasible)} of {len(choice.candidates)} points",
            f"policy     {chosen.missing_policy or choice.run_dir / 'final'}{exported}",
            "",
            *align_columns(rows, right_aligned=()),
            *([f"and {hidden} more"] if hidden > 0 else []),
            "",
            f"means, with {100 * CONFIDENCE_LEVEL:.0f} % intervals that hold for all points at once",
            directions,
            *(f"⚠ {one_line(line)}" for line in choice.cautions),
        ]
    )


@dataclass(frozen=True)
class _Tables:
    """Scores of all candidates under the objectives of a rule."""

    clusters: tuple[NDArray[np.int64], ...]
    """[P] of each seed."""
    after: Mapping[str, tuple[FloatArray, ...]]
    """Objective -> [P, N] mean scores per prompt of each seed."""
    change: Mapping[str, tuple[FloatArray, ...]]
    """The same of the change of the oriented score from the initial policy."""
    same_prompts: bool
    num_parts: int
    """Families of intervals, which share the error probability equally (Bonferroni)."""

    @classmethod
    def read(cls, candidates: Sequence[Candidate], rule: Rule, goals: Mapping[str, Goal]) -> "_Tables":
        after: dict[str, list[FloatArray]] = {name: [] for name in rule.objectives}
        change: dict[str, list[FloatArray]] = {name: [] for name in rule.objectives}
        prompts: list[list[str]] = []
        for seed in range(len(candidates[0].run_dirs)):
            runs = [read_generations(each.run_dirs[seed], each.evaluation) for each in candidates]
            for candidate, (keys, columns) in zip(candidates, runs, strict=True):
                if keys != runs[0][0] or any(name not in columns for name in rule.objectives):
                    raise DataError(
                        f"{candidate.run_dirs[seed]}: evaluated on other prompts or objectives than "
                        f"{candidates[0].run_dirs[seed]}; fix: choose among points with one evaluation"
                    )
            prompts.append(runs[0][0])
            for name in rule.objectives:
                arms = [columns[name] for _, columns in runs]
                after[name].append(np.stack([mean_per_prompt(arm[1]) for arm in arms], 1))
                oriented = [goals[name].orient(arm) for arm in arms]
                changes = [mean_per_prompt(arm[1]) - mean_per_prompt(arm[0]) for arm in oriented]
                change[name].append(np.stack(changes, 1))
        return cls(
            clusters=tuple(clusters_of(keys) for keys in prompts),
            after={name: tuple(tables) for name, tables in after.items()},
            change={name: tuple(tables) for name, tables in change.items()},
            same_prompts=len(prompts) > 1 and all(keys == prompts[0] for keys in prompts),
            num_parts=max(len({(each.objective, each.kind) for each in rule.constraints}), 1),
        )

    def levels(self, objective: str) -> tuple[Level, ...]:
        """The mean score of every candidate."""
        return self._intervals(self.after[objective])

    def changes(self, objective: str) -> tuple[Level, ...]:
        """The change of the oriented mean score of every candidate."""
        return self._intervals(self.change[objective])

    def _intervals(self, tables: Sequence[FloatArray]) -> tuple[Level, ...]:
        # Bonferroni over the parts of the rule, max-t over the candidates within each.
        level = 1 - (1 - CONFIDENCE_LEVEL) / self.num_parts
        if len(tables) == 1:
            intervals = simultaneous_intervals(
                tables[0],
                clusters=self.clusters[0],
                bootstrap_samples=BOOTSTRAP_SAMPLES,
                confidence_level=level,
            )
            bounds = (intervals.mean, intervals.low, intervals.high)
        else:
            mean = mean_over_seeds(tables)
            samples = bootstrap_means(
                tables, shared_prompts=self.same_prompts, bootstrap_samples=BOOTSTRAP_SAMPLES
            )
            bounds = (mean, *max_t_intervals(mean, samples, level))
        return tuple(Level(*map(float, row)) for row in zip(*bounds, strict=True))


class _Check(NamedTuple):
    """A constraint, and what it is compared with."""

    constraint: Constraint
    bound: float
    levels: tuple[Level, ...]
    """What each candidate reaches: its score, or its change."""


def _check(
    constraint: Constraint,
    tables: _Tables,
    levels: Mapping[str, tuple[Level, ...]],
    entry: Mapping[str, Any],
) -> _Check:
    name = constraint.objective
    if constraint.kind != "not worse":
        assert constraint.value is not None
        return _Check(constraint, constraint.value, levels[name])
    margin = entry["margin"] if constraint.value is None else constraint.value
    if margin is None:
        problem = f'"{constraint.words}" does not say how large a loss counts'
        fix = f'write "{name} not worse by 0.05", or set evaluate.non_inferiority_margin in the recipe'
        raise ConfigError(f"(rule): {problem}; fix: {fix}")
    return _Check(constraint, -margin, tables.changes(name))


def _shortfall(constraint: Constraint, bound: float, level: Level) -> float:
    """By how much a candidate misses a constraint; at most 0 where it meets it, infinite without scores."""
    if constraint.kind == "<=":
        missing = (level.mean if constraint.by_mean else level.high) - bound
    else:
        missing = bound - (level.mean if constraint.by_mean else level.low)
    return float("inf") if np.isnan(missing) else missing


def _infeasible(
    folder: Path,
    candidates: Sequence[Candidate],
    checks: Sequence[_Check],
    shortfalls: FloatArray,
    scales: FloatArray,
) -> str:
    """Which constraint fails by how much.

    Args:
        folder: The folder of the points.
        candidates: The N points.
        checks: The R constraints of the rule.
        shortfalls: [R, N] by how much a point misses a constraint.
        scales: [R] standard deviation of the initial policy's scores of the constraint's objective.
    """
    lines = [f"{folder}: no point of {len(candidates)} meets the rule"]
    for row, (constraint, _, levels) in zip(shortfalls, checks, strict=True):
        nearest = int(row.argmin())
        level, count = levels[nearest], int((row <= 0).sum())
        digits = max(2, _decimals(levels))
        if count:
            meet = "1 point meets" if count == 1 else f"{count} points meet"
            lines.append(f"  {constraint.words}: {meet} it alone")
            continue
        end = "mean" if constraint.by_mean else "upper bound" if constraint.kind == "<=" else "lower bound"
        value = {"mean": level.mean, "upper bound": level.high, "lower bound": level.low}[end]
        what = "change: " if constraint.kind == "not worse" else ""
        mean = "" if constraint.by_mean else f", mean {format_number(level.mean, digits)}"
        lines.append(
            f"  {constraint.words}: none meets it; nearest is {candidates[nearest].label} with {what}{end} "
            f"{format_number(value, digits)}{mean}: {format_number(row[nearest], digits)} short"
        )
    if (shortfalls <= 0).any(1).all():
        nearest = int((shortfalls / scales[:, None]).max(0).argmin())
        missed = [
            f"{check.constraint.words} by {format_number(row[nearest], 2)}"
            for row, check in zip(shortfalls, checks, strict=True)
            if row[nearest] > 0
        ]
        lines.append(
            f"  together: nearest is {candidates[nearest].label}, which misses {' and '.join(missed)}"
        )
    fix = "lower the bound that fails, or sweep other weightings"
    if not all(check.constraint.by_mean for check in checks):
        fix += '; "by mean" after a constraint asks less, and holds less often on other prompts'
    return "\n".join([*lines, f"fix: {fix}"])


def _cautions(candidates: Sequence[Candidate], evaluation: Mapping[str, Any], rule: Rule) -> Iterator[str]:
    for name in rule.objectives:
        yield from evaluation["objectives"][name]["cautions"]
    if len(candidates[0].run_dirs) == 1:
        yield ONE_SEED
    yield selection_caution(len(candidates))


def _evaluation(candidate: Candidate) -> dict[str, Any]:
    """The eval.json of the first training seed."""
    file = candidate.run_dirs[0] / "eval" / candidate.evaluation / "eval.json"
    evaluation = read_json(file)
    if evaluation is None:
        raise DataError(f"{file}: there is no such file; fix: make the results again")
    return evaluation


def _decimals(levels: Sequence[Level]) -> int:
    needed = sorted(decimals_for(level._asdict()) for level in levels)
    return needed[len(needed) // 2]


def _level_text(level: Level, decimals: int) -> str:
    low, high = format_number(level.low, decimals), format_number(level.high, decimals)
    return f"{format_number(level.mean, decimals)} [{low}, {high}]"
