"""What a comparison would do, in lines to be read: what `paretune compare FILE --check` prints."""

from collections.abc import Iterator

from paretune.benchmark.costs import BUDGET_TOLERANCE
from paretune.benchmark.spec import BenchmarkSpec, RunSpec
from paretune.config import Config
from paretune.config.build import build_spec
from paretune.config.requirements import budget_warnings
from paretune.experiment.dry_run import check
from paretune.experiment.reuse import reuse_key


def describe_benchmark(spec: BenchmarkSpec) -> str:
    """The plan, after everything was tried that needs no weights; writes nothing.

    Raises:
        ParetuneError: What is wrong with a method, with its models or with its rows.
    """
    said, entries = spec.config, spec.run_specs()
    trials = [trial for method in said.methods for trial in spec.tuning_specs(method)]
    for entry in _first_run_of_each_method(spec):
        check(_cap_steps(entry.config))
    keys = {(entry.seed, reuse_key(entry.config)) for entry in [*trials, *entries]}
    budget, count = said.budget, len(entries) + len(trials)
    lines = [
        f"{said.name}: ok, in {spec.output_dir}",
        f"methods    {', '.join(said.methods)}; compared with {said.baseline_method}",
        f"runs       {len(entries)}: {len(said.methods)} methods x {len(said.weightings)} weightings "
        f"({', '.join(said.weightings)}) x {len(said.seeds)} seeds ({', '.join(map(str, said.seeds))})",
        f"tuning     {_describe_tuning(spec, len(trials))}",
        f"shared     {len(keys)} times policy, reward and judge: once a seed and way of making them",
        f"budget     {budget.limit:,} {budget.resource} a run, {count * budget.limit:,} in all",
        f"reference  {', '.join(f'{k} {v:g}' for k, v in said.reference_point.items()) or 'none: no hypervolume'}",
        f"at a time  {said.num_processes}",
        *_step_size_warnings(spec),
        *_phase_cost_warnings(spec),
    ]
    return "\n".join(lines)


def _first_run_of_each_method(spec: BenchmarkSpec) -> Iterator[RunSpec]:
    """One run of every method."""
    for entry in spec.run_specs():
        if entry.weighting == next(iter(spec.config.weightings)) and entry.seed == spec.config.seeds[0]:
            yield entry


def _cap_steps(config: Config) -> Config:
    """The experiment with a bound on its steps that a plan can go through."""
    return config.model_copy(
        update={"run": config.run.model_copy(update={"steps": min(config.run.max_steps, 100)})}
    )


def _describe_tuning(spec: BenchmarkSpec, num_trials: int) -> str:
    tuning = spec.config.tuning
    if tuning is None:
        return "none: every method runs with the settings that it was given"
    keys = ", ".join(f"{key} in {list(values)}" for key, values in tuning.search_space.items())
    chosen = "; chosen by the judge on training prompts" if tuning.select_by == "judge" else ""
    return f"{num_trials} trials: {tuning.num_trials} a method, on seed {tuning.seed}, over {keys}{chosen}"


def _step_size_warnings(spec: BenchmarkSpec) -> Iterator[str]:
    """Methods whose steps are so large that a run may end too far from the amount to be ranked."""
    budget = spec.config.budget
    exact = budget.resource == "reward_calls"
    coarse: dict[int, dict[str, None]] = {}
    for entry in spec.run_specs():
        e = entry.config
        most = e.training.prompts_per_step * int(e.algorithm.arguments.get("n", 1))
        most *= 1 if exact else int(e.algorithm.arguments.get("max_new", 256))
        off = min(budget.limit % most, -budget.limit % most) if exact else most / 2
        if off > BUDGET_TOLERANCE * budget.limit:
            coarse.setdefault(most, {})[entry.method] = None
    for most, methods in coarse.items():
        yield (
            f"warning    a step takes {'' if exact else 'up to '}{most:,} {budget.resource} with "
            f"{', '.join(methods)}: a run may end more than {BUDGET_TOLERANCE:.0%} from the budget, and is then not "
            "ranked; fix: lower training.prompts_per_step, or raise budget.amount"
        )


def _phase_cost_warnings(spec: BenchmarkSpec) -> Iterator[str]:
    """Methods that may spend the budget on what they make before their own loop begins."""
    for entry in _first_run_of_each_method(spec):
        for line in budget_warnings(entry.config, build_spec(entry.config)):
            yield f"warning    {line} [{entry.method}]"
