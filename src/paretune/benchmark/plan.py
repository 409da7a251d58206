"""The plan of a benchmark as text: the output of `paretune compare FILE --dry-run`."""

from collections.abc import Collection, Iterator

from paretune.benchmark.costs import BUDGET_TOLERANCE
from paretune.benchmark.spec import BenchmarkSpec, RunSpec
from paretune.config import Config
from paretune.config.requirements import budget_warnings
from paretune.experiment.dry_run import check
from paretune.experiment.reuse import reuse_key

# A dry run of the data goes through every step; a bound of 100 steps shows the same mistakes.
_MAX_DRY_RUN_STEPS = 100


def describe_benchmark(spec: BenchmarkSpec) -> str:
    """The plan, after all checks that need no model weights; writes nothing.

    Raises:
        ParetuneError: A method, its models or its data are invalid.
    """
    config, runs = spec.config, spec.run_specs()
    trials = [trial for method in config.methods for trial in spec.tuning_specs(method)]
    for run in _first_run_of_each_method(spec):
        check(_cap_steps(run.config))
    shared = {(run.seed, reuse_key(run.resolved)) for run in [*trials, *runs]}
    budget, num_runs = config.budget, len(runs) + len(trials)
    reference_point = ", ".join(f"{name} {value:g}" for name, value in config.reference_point.items())
    lines = [
        f"{config.name}: ok, in {spec.output_dir}",
        f"methods    {', '.join(config.methods)}; baseline {config.baseline_method}",
        f"runs       {len(runs)}: {_count(config.methods, 'method')} x "
        f"{_count(config.weightings, 'weighting')} ({', '.join(config.weightings)}) x "
        f"{_count(config.seeds, 'seed')} ({', '.join(map(str, config.seeds))})",
        f"tuning     {_describe_tuning(spec, len(trials))}",
        f"shared     {len(shared)} x initial policy, reward model and judge, one per seed and configuration",
        f"budget     {budget.limit:,} {budget.resource} per run, {num_runs * budget.limit:,} in total",
        f"reference  {reference_point or 'none: no hypervolume'}",
        f"parallel   {config.num_processes}",
        *_step_size_warnings(spec),
        *_phase_cost_warnings(spec),
    ]
    return "\n".join(lines)


def _count(items: Collection[object], noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"


def _first_run_of_each_method(spec: BenchmarkSpec) -> Iterator[RunSpec]:
    for run in spec.run_specs():
        if run.weighting == next(iter(spec.config.weightings)) and run.seed == spec.config.seeds[0]:
            yield run


def _cap_steps(config: Config) -> Config:
    """The config with a limit on its steps; under a budget `max_steps` is too large for a dry run."""
    max_steps = min(config.run.max_steps, _MAX_DRY_RUN_STEPS)
    return config.model_copy(update={"run": config.run.model_copy(update={"max_steps": max_steps})})


def _describe_tuning(spec: BenchmarkSpec, num_trials: int) -> str:
    tuning = spec.config.tuning
    if tuning is None:
        return "none: every method runs with its given settings"
    keys = ", ".join(f"{key} in {list(values)}" for key, values in tuning.search_space.items())
    by_judge = "; selected by the judge on training prompts" if tuning.select_by == "judge" else ""
    return (
        f"{num_trials} trials: {tuning.num_trials} per method, on seed {tuning.seed}, over {keys}{by_judge}"
    )


def _step_size_warnings(spec: BenchmarkSpec) -> Iterator[str]:
    """Warnings about methods whose steps are so large that a run may miss the budget tolerance."""
    budget = spec.config.budget
    # Reward calls per step are known beforehand; tokens depend on the response lengths.
    exact = budget.resource == "reward_calls"
    methods_by_step_cost: dict[int, dict[str, None]] = {}
    for run in spec.run_specs():
        arguments = run.config.algorithm.arguments
        step_cost = run.config.training.prompts_per_step * int(arguments.get("num_generations", 1))
        step_cost *= 1 if exact else int(arguments.get("max_new_tokens", 256))
        # A run ends after the step that is nearest to the budget: at most half a step off.
        deviation = min(budget.limit % step_cost, -budget.limit % step_cost) if exact else step_cost / 2
        if deviation > BUDGET_TOLERANCE * budget.limit:
            methods_by_step_cost.setdefault(step_cost, {})[run.method] = None
    for step_cost, methods in methods_by_step_cost.items():
        yield (
            f"warning    a step uses {'' if exact else 'up to '}{step_cost:,} {budget.resource} with "
            f"{', '.join(methods)}: a run may end more than {100 * BUDGET_TOLERANCE:.0f} % from the budget "
            "and is then not ranked; fix: lower training.prompts_per_step, or raise budget.limit"
        )


def _phase_cost_warnings(spec: BenchmarkSpec) -> Iterator[str]:
    """Warnings about methods whose pretraining phases may use up the budget."""
    for run in _first_run_of_each_method(spec):
        for line in budget_warnings(run.config, run.resolved.algorithm):
            yield f"warning    {line} [{run.method}]"
