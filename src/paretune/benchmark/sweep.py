"""`paretune sweep`: one recipe under several weightings, as a comparison of one method with weightings.

Policy, reward model and judge are fitted once per seed and shared; every weighting is a run of its own under
the same budget. The same call again resumes: complete runs are kept, and failed ones are tried again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from paretune.benchmark.processes import last_line
from paretune.benchmark.run import BenchmarkRunner, preregister
from paretune.benchmark.schema import BenchmarkBudget, BenchmarkConfig
from paretune.benchmark.spec import BenchmarkSpec, run_issues
from paretune.benchmark.sweep_design import (
    Design,
    Shares,
    default_num_points,
    first_shares,
    grid_sizes,
    next_shares,
    simplex_grid,
    weighting_name,
)
from paretune.benchmark.sweep_results import oriented_outcomes, sweep_results
from paretune.config import Config, find_recipe, load_config
from paretune.config.issues import closest_match, slugify
from paretune.config.load import apply_overrides, issue_sort_key, read_recipe
from paretune.config.yaml import ConfigTree, short_repr
from paretune.core.errors import ConfigError, ParetuneError, format_issue, join_issues
from paretune.experiment.console import Console, make_console
from paretune.experiment.reuse import require_same_inputs
from paretune.report.sweep_page import RESULTS_FILE, sweep_table, write_sweep_report
from paretune.run.compat import free_folder
from paretune.run.io import read_json, to_json, write_atomic
from paretune.run.lock import RunLock
from paretune.training.guards import StopRequest

MIN_POINTS = 2
FOLDER_KEY = "run.output_dir"
"""The key that names the folder of a sweep."""


@dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """A valid sweep."""

    benchmark: BenchmarkSpec
    """One method, and the weightings that are known before the first run."""
    over: tuple[str, ...]
    """The swept objectives."""
    total_weight: float
    """Sum of their weights, as in the recipe, so that the reward keeps its size beside the KL penalty."""
    design: Design
    num_points: int
    first_shares: tuple[Shares, ...]
    reuse_from: Path | None = None

    def weights(self, shares: Shares) -> dict[str, float]:
        """Weights of the swept objectives."""
        return {name: share * self.total_weight for name, share in zip(self.over, shares, strict=True)}

    def with_points(self, points: Sequence[Shares]) -> BenchmarkSpec:
        """The comparison of these weightings."""
        weightings = {weighting_name(shares): self.weights(shares) for shares in points}
        config = self.benchmark.config.model_copy(update={"weightings": weightings})
        return replace(self.benchmark, config=config)


def load_sweep(
    recipe: str,
    overrides: Sequence[str] = (),
    *,
    over: Sequence[str] | None = None,
    points: int | None = None,
    design: Design = "grid",
    seeds: Sequence[int] | None = None,
    reuse_from: Path | None = None,
    num_processes: int = 1,
) -> SweepSpec:
    """Load a recipe, and plan its sweep; nothing is written.

    Args:
        recipe: A YAML file, or the name of a shipped recipe.
        overrides: Values that override the recipe.
        over: The swept objectives; None: all that have a weight.
        points: Number of weightings; None: about 9.
        design: grid: evenly spaced; adaptive: one after the other, where the front has its largest gap.
        seeds: Training seeds of every weighting; None: that of the recipe.
        reuse_from: An earlier run whose policy, reward model and judge are reused for the first seed.
        num_processes: Runs in parallel.

    Raises:
        ConfigError: One line per mistake of the recipe and of the options.
    """
    path = find_recipe(recipe)
    config = load_config(path, overrides)
    tree, _ = read_recipe(path)
    apply_overrides(tree, overrides)
    names, issues = _swept_objectives(config, over)
    first, more_issues = _first_points(len(names), points, design)
    seed_list, seed_issues = _seeds(config, seeds, overrides)
    if lines := [*issues, *more_issues, *seed_issues]:
        raise ConfigError("\n".join(lines))
    weights = {name: config.objectives[name].weight for name in names}
    sweep = SweepSpec(
        benchmark=_benchmark(recipe, tree, config, overrides, seed_list, num_processes),
        over=names,
        # A recipe whose weights are all 0 is as good as one without weights.
        total_weight=sum(weights.values()) or float(len(names)),
        design=design,
        num_points=points or default_num_points(len(names)),
        first_shares=tuple(first),
        reuse_from=reuse_from,
    )
    spec = sweep.with_points(sweep.first_shares)
    if lines := run_issues(spec):
        raise ConfigError(join_issues(sorted(lines, key=issue_sort_key)))
    if reuse_from is not None:
        require_same_inputs(reuse_from, spec.run_specs()[0].resolved)
    return replace(sweep, benchmark=spec)


def run_sweep(sweep: SweepSpec, console: Console | None = None) -> dict[str, Any]:
    """Run what is not complete, write sweep.json and report.html, and return the content of sweep.json.

    Raises:
        ConfigError: The folder holds another sweep or comparison.
        ParetuneError: The shared stages failed, or fewer than two weightings have results.
        RunInterrupted: SIGTERM arrived; every run in progress has a checkpoint.
    """
    console, output_dir = console or make_console(), sweep.benchmark.output_dir
    output_dir.mkdir(parents=True, exist_ok=True)
    lock = RunLock(output_dir, "")
    try:
        if (output_dir / "benchmark.json").exists():
            fix = f"write {FOLDER_KEY}={free_folder(output_dir)}"
            raise ConfigError(f"{output_dir}: holds a comparison of methods; fix: {fix}")
        preregister(sweep.benchmark, FOLDER_KEY)
        with console, StopRequest() as stop:
            return _SweepRunner(sweep, console, stop).run()
    finally:
        lock.release()


@dataclass
class _SweepRunner:
    sweep: SweepSpec
    console: Console
    stop: StopRequest
    shares: list[Shares] = field(default_factory=list)
    """The weightings that were run, in order."""
    failed: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Folder of a failed run -> point, seed and reason."""

    def run(self) -> dict[str, Any]:
        sweep = self.sweep
        rounds = 1 if sweep.design == "grid" else 1 + sweep.num_points - len(sweep.first_shares)
        num_stages = 2 + rounds
        runner = self._runner(sweep.benchmark)
        runner.fit_shared(sweep.benchmark.run_specs(), num_stages)
        new: list[Shares] = list(sweep.first_shares)
        for index in range(rounds):
            self._run_points(new, index + 2, num_stages)
            following = self._next_shares() if index + 1 < rounds else None
            if following is None:
                break
            new = [following]
        return self._write_results(runner.shared_dirs, num_stages)

    def _runner(self, spec: BenchmarkSpec) -> BenchmarkRunner:
        return BenchmarkRunner(
            spec,
            self.console,
            self.stop,
            reuse_from=self.sweep.reuse_from,
            folder_key=FOLDER_KEY,
            isolate_failures=True,
        )

    def _run_points(self, points: Sequence[Shares], index: int, num_stages: int) -> None:
        self.shares += points
        spec = self.sweep.with_points(points)
        runner, runs = self._runner(spec), spec.run_specs()
        name = "runs" if len(points) > 1 else f"point {len(self.shares)}"
        codes = runner.run_all(runs, name, index, num_stages)
        for run in runs:
            state = read_json(Path(run.config.run.output_dir) / "run.json") or {}
            if state.get("status") != "done":
                code = codes.get(run.config.run.output_dir, 0)
                reason = f"killed by signal {-code}" if code < 0 else last_line(runner.log_file(run))
                self.failed[run.config.run.output_dir] = {
                    "point": run.weighting,
                    "seed": run.seed,
                    "reason": reason,
                }
                self.console.log(f"failed: {run.label}: {reason}; see {runner.log_file(run)}")

    def _complete(self) -> list[Shares]:
        """The weightings all of whose runs are complete."""
        lost = {entry["point"] for entry in self.failed.values()}
        return [shares for shares in self.shares if weighting_name(shares) not in lost]

    def _next_shares(self) -> Shares | None:
        complete = self._complete()
        if not complete:
            return None
        runs = self.sweep.with_points(complete).run_specs()
        names = [weighting_name(shares) for shares in self.shares]
        return next_shares(self.shares, oriented_outcomes(runs, names, self.sweep.over))

    def _write_results(self, shared_dirs: Mapping[Path, int], num_stages: int) -> dict[str, Any]:
        sweep, output_dir = self.sweep, self.sweep.benchmark.output_dir
        self.console.start_stage("report", num_stages, num_stages)
        complete = sorted(self._complete(), reverse=True)
        if len(complete) < MIN_POINTS:
            reasons = "\n".join(
                f"{e['point']}, seed {e['seed']}: {e['reason']}" for e in self.failed.values()
            )
            problem = f"{len(complete)} of {len(self.shares)} weightings have results"
            raise ParetuneError(f"{output_dir}: {problem}; fix: what stopped the others:\n{reasons}")
        results = sweep_results(
            sweep.with_points(complete),
            sweep.over,
            {weighting_name(shares): shares for shares in complete},
            design=sweep.design,
            failed=list(self.failed.values()),
            shared_dirs=shared_dirs,
        )
        write_atomic(output_dir / RESULTS_FILE, to_json(results))
        page = write_sweep_report(output_dir)
        self.console.log(f"\n{sweep_table(results)}\n")
        self.console.finish_stage(str(page))
        return results


def describe_sweep(sweep: SweepSpec) -> str:
    """The plan of a sweep as text."""
    spec = sweep.benchmark
    budget, seeds = spec.config.budget, spec.config.seeds
    num_runs = sweep.num_points * len(seeds)
    adaptive = sweep.design == "adaptive"
    shown = [
        f"  {weighting_name(shares):<16} {_weights_text(sweep, shares)}" for shares in sweep.first_shares
    ]
    rest = sweep.num_points - len(shown)
    reused = f"; the first seed's from {sweep.reuse_from}" if sweep.reuse_from else ""
    return "\n".join(
        [
            f"{spec.config.name}: ok, in {spec.output_dir}",
            f"sweep      {sweep.num_points} weightings of {', '.join(sweep.over)} ({sweep.design})",
            *shown,
            *([f"  and {rest} more, each where the front has its largest gap"] if adaptive and rest else []),
            f"runs       {num_runs}: {sweep.num_points} weightings x {len(seeds)} "
            f"{'seed' if len(seeds) == 1 else 'seeds'} ({', '.join(map(str, seeds))})",
            f"budget     {budget.limit:,} {budget.resource} per run, {num_runs * budget.limit:,} in total",
            f"shared     policy, reward model and judge: once per seed{reused}",
            f"parallel   {spec.config.num_processes}",
        ]
    )


def _weights_text(sweep: SweepSpec, shares: Shares) -> str:
    return ", ".join(f"{name} {weight:.3g}" for name, weight in sweep.weights(shares).items())


def _benchmark(
    recipe: str,
    tree: ConfigTree,
    config: Config,
    overrides: Sequence[str],
    seeds: Sequence[int],
    num_processes: int,
) -> BenchmarkSpec:
    """The comparison of one method that a sweep is."""
    name = slugify(f"{config.name}-sweep")
    section = tree.values.get("run")
    own_dir = isinstance(section, dict) and "output_dir" in section
    budget = config.run.budget
    limit = {"resource": "steps", "limit": config.run.max_steps} if budget is None else budget.model_dump()
    benchmark = BenchmarkConfig(
        name=name,
        recipe=recipe,
        methods={slugify(config.algorithm.name): {}},
        seeds=tuple(seeds),
        budget=BenchmarkBudget.model_validate(limit),
        output_dir=config.run.output_dir if own_dir else f"runs/{name}",
        num_processes=num_processes,
    )
    methods: dict[str, Any] = {method: {} for method in benchmark.methods}
    return BenchmarkSpec(
        config=benchmark,
        source_text="\n".join([f"# A sweep of {recipe}", *(f"# override: {o!r}" for o in overrides), ""]),
        trial_settings=(),
        _tree=ConfigTree({"methods": methods}, {(): tree.location(())}),
        _base_tree=tree,
    )


def _swept_objectives(config: Config, over: Sequence[str] | None) -> tuple[tuple[str, ...], list[str]]:
    """The swept objectives, and one line per mistake in them."""
    known = config.objectives
    weighted = (name for name, each in known.items() if each.weight or each.weight_schedule)
    names = tuple(weighted if over is None else over)
    where = partial(format_issue, "--over", None, None, "")
    lines = []
    for name in names:
        if name not in known:
            problem = f"{short_repr(name)} is not an objective of the recipe"
            fix = f"the recipe has {', '.join(known)}"
            lines.append(where(problem, suggestion=closest_match(name, known), fix=fix))
        elif known[name].weight_schedule or known[name].by_category:
            key = "weight_schedule" if known[name].weight_schedule else "by_category"
            problem = f"{name} has a {key}, which a sweep of its weight would not change"
            lines.append(where(problem, fix=f"objectives.{name}.{key}=null, or leave it out of --over"))
    if len(set(names)) < len(names):
        lines.append(where("names an objective twice", fix="name each once"))
    if len(names) < 2:
        problem = f"a sweep needs two objectives, and {len(names)} is given"
        lines.append(where(problem, fix=f"name two or more of {', '.join(known)}"))
    return names, lines


def _first_points(num_objectives: int, points: int | None, design: Design) -> tuple[list[Shares], list[str]]:
    """The weightings that are known before the first run, and one line per mistake in their number."""
    where = partial(format_issue, "--points", None, None, "")
    if num_objectives < 2:
        return [], []  # reported for --over
    if design == "adaptive":
        first, total = first_shares(num_objectives), points or default_num_points(num_objectives)
        if total < len(first):
            problem = f"is {total}, and an adaptive design begins with {len(first)} weightings"
            return [], [where(problem, fix=f"--points {len(first)} or more, or --design grid")]
        return first, []
    sizes = grid_sizes(num_objectives)
    if points is None or points in sizes:
        return simplex_grid(num_objectives, sizes[points or default_num_points(num_objectives)]), []
    below = max((size for size in sizes if size < points), default=None)
    above = min((size for size in sizes if size > points), default=None)
    near = " or ".join(str(size) for size in (below, above) if size is not None)
    problem = f"{num_objectives} objectives have no even grid of {points} points"
    return [], [where(problem, fix=f"--points {near}, or --design adaptive")]


def _seeds(
    config: Config, seeds: Sequence[int] | None, overrides: Sequence[str]
) -> tuple[Sequence[int], list[str]]:
    where = partial(format_issue, "--seeds", None, None, "")
    if seeds is None:
        return (config.run.seed,), []
    lines = []
    if any(word.replace(" ", "").startswith("run.seed=") for word in overrides):
        lines.append(where("run.seed is given too", fix="remove one of them"))
    if len(set(seeds)) < len(seeds) or any(seed < 0 for seed in seeds):
        lines.append(where("must be different numbers from 0 on", fix="write --seeds 0,1,2"))
    return seeds, lines
