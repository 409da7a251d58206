"""What a comparison would do, in lines to be read: what `paretune compare FILE --check` prints."""

from collections.abc import Iterator

from paretune.compare.ledger import TOLERANCE
from paretune.config import Experiment
from paretune.config.algorithm import recipe_of
from paretune.config.beforehand import perhaps_beyond
from paretune.config.contest import Contest, Entry
from paretune.stages.check import check
from paretune.stages.shared import shared_key


def planned(contest: Contest) -> str:
    """The plan, after everything was tried that needs no weights; writes nothing.

    Raises:
        ParetuneError: What is wrong with a method, with its models or with its rows.
    """
    said, entries = contest.said, contest.runs()
    trials = [trial for method in said.methods for trial in contest.tried(method)]
    for entry in _apart(contest):
        check(_short(entry.experiment))
    keys = {(entry.seed, shared_key(entry.experiment)) for entry in [*trials, *entries]}
    budget, count = said.budget, len(entries) + len(trials)
    lines = [
        f"{said.name}: ok, in {contest.folder}",
        f"methods    {', '.join(said.methods)}; compared with {said.first}",
        f"runs       {len(entries)}: {len(said.methods)} methods x {len(said.weightings)} weightings "
        f"({', '.join(said.weightings)}) x {len(said.seeds)} seeds ({', '.join(map(str, said.seeds))})",
        f"tuning     {_tuning(contest, len(trials))}",
        f"shared     {len(keys)} times policy, reward and judge: once a seed and way of making them",
        f"budget     {budget.amount:,} {budget.currency} a run, {count * budget.amount:,} in all",
        f"reference  {', '.join(f'{k} {v:g}' for k, v in said.reference.items()) or 'none: no hypervolume'}",
        f"at a time  {said.jobs}",
        *_coarse(contest),
        *_dear(contest),
    ]
    return "\n".join(lines)


def _apart(contest: Contest) -> Iterator[Entry]:
    """One run of every method."""
    for entry in contest.runs():
        if entry.weighting == next(iter(contest.said.weightings)) and entry.seed == contest.said.seeds[0]:
            yield entry


def _short(e: Experiment) -> Experiment:
    """The experiment with a bound on its steps that a plan can go through."""
    return e.model_copy(update={"run": e.run.model_copy(update={"steps": min(e.run.steps, 100)})})


def _tuning(contest: Contest, trials: int) -> str:
    tuning = contest.said.tuning
    if tuning is None:
        return "none: every method runs with the settings that it was given"
    keys = ", ".join(f"{key} in {list(values)}" for key, values in tuning.over.items())
    chosen = "; chosen by the judge on training prompts" if tuning.by == "judge" else ""
    return f"{trials} trials: {tuning.trials} a method, on seed {tuning.seed}, over {keys}{chosen}"


def _coarse(contest: Contest) -> Iterator[str]:
    """Methods whose steps are so large that a run may end too far from the amount to be ranked."""
    budget = contest.said.budget
    exact = budget.currency == "reward_calls"
    coarse: dict[int, dict[str, None]] = {}
    for entry in contest.runs():
        e = entry.experiment
        most = e.learn.prompts * int(e.algorithm.arguments.get("n", 1))
        most *= 1 if exact else int(e.algorithm.arguments.get("max_new", 256))
        off = min(budget.amount % most, -budget.amount % most) if exact else most / 2
        if off > TOLERANCE * budget.amount:
            coarse.setdefault(most, {})[entry.method] = None
    for most, methods in coarse.items():
        yield (
            f"warning    a step takes {'' if exact else 'up to '}{most:,} {budget.currency} with "
            f"{', '.join(methods)}: a run may end more than {TOLERANCE:.0%} from the budget, and is then not "
            "ranked; fix: lower learn.prompts, or raise budget.amount"
        )


def _dear(contest: Contest) -> Iterator[str]:
    """Methods that may spend the budget on what they make before their own loop begins."""
    for entry in _apart(contest):
        for line in perhaps_beyond(entry.experiment, recipe_of(entry.experiment)):
            yield f"warning    {line} [{entry.method}]"
