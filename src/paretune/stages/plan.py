"""What a run would do, in lines to be read: what `paretune check` prints."""

from collections.abc import Iterable, Iterator

from paretune.config import Experiment
from paretune.config.beforehand import perhaps_beyond
from paretune.config.rules import sections
from paretune.learn.check import Plan
from paretune.learn.evolution import Evolution
from paretune.learn.recipe import Phase, Recipe, explained
from paretune.models.load import is_folder
from paretune.rollout.sample import Offline
from paretune.stages.material import Judgements, Material, stream_of
from paretune.stages.ready import from_hub, named

UNJUDGED = "the reward judges itself, no gain will be called better"


def planned(e: Experiment, recipe: Recipe | Evolution, plan: Plan, found: Material) -> list[str]:
    """Counts of records, what was left out, the algorithm part by part, and what was not tried."""
    return [
        f"{e.name}: ok",
        *_part("prompts", [counted(found)]),
        *_part("", _undrawn(e, found)),
        *_part("stored", [f"responses to {len(found.stored):,} prompts"] if found.stored else []),
        *_part("policy", [_policy(e, found)]),
        *(_row(name, _fitted(section.path, name, found)) for name, section in sections(e)),
        *_part("judge", ["none: " + UNJUDGED] if e.judge is None else []),
        *_part("notes", found.notes),
        *(recipe.explained() if isinstance(recipe, Evolution) else explained(recipe)),
        *_part("frozen", [", ".join(plan.frozen_roles)] if plan.frozen_roles else []),
        *_part("size", _size(e, recipe, found)),
        *_part("warning", perhaps_beyond(e, recipe)),
        *_part("hub", from_hub(e)),
        *_part("not tried", [*_weights(e), "whether the memory of this machine suffices"]),
    ]


def counted(found: Material) -> str:
    """Prompts by pool, and those that are evaluated on."""
    pools = ", ".join(f"{len(pool):,} {name}" for name, pool in found.pools.items())
    return f"{pools or 'none'}; {len(found.test):,} unseen"


def _policy(e: Experiment, found: Material) -> str:
    count = len(found.demonstrations)
    return e.policy.path + (f", after {count:,} demonstrations" if count else ", as it is")


def _fitted(path: str | None, name: str, found: Material) -> str:
    rows: Judgements | None = getattr(found, name)
    if rows is None:
        return f"{path}, as it is"
    return f"{len(rows.train):,} rows to fit, {len(rows.test):,} to report on"


def _undrawn(e: Experiment, found: Material) -> Iterator[str]:
    """Pools that a short run does not come to."""
    drawn = stream_of(e, found.pools).drawn(e.run.steps)
    for name, count in zip(found.pools, drawn, strict=True):
        if not count:
            yield f"no prompt of {name} comes up in {e.run.steps} steps of {e.learn.prompts}"


def _size(e: Experiment, recipe: Recipe | Evolution, found: Material) -> Iterator[str]:
    """How much is sampled, learnt from and judged, at most."""
    for made in recipe.before:
        if isinstance(made, Phase):
            yield f"beforehand {made.role}: {made.steps:,} steps x {_step(e, made.recipe)}"
    budget = e.run.budget
    ends = f", or until {budget.amount:,} {budget.currency} are spent" if budget else ""
    if isinstance(recipe, Evolution) and recipe.sigma is None:
        yield "some candidates beforehand, to find the first step size"
    yield f"at most {e.run.steps:,} steps x {_step(e, recipe)}{ends}"
    longest = e.evaluate.max_new or int(e.algorithm.arguments["max_new"])
    yield f"then 2 x {len(found.test) * e.evaluate.n:,} answers of up to {longest} tokens to be judged"


def _step(e: Experiment, recipe: Recipe | Evolution) -> str:
    """What a step gets."""
    prompts, source = f"{e.learn.prompts} prompts", recipe.source
    if isinstance(source, Offline):
        return f"{prompts} with their stored responses"
    each = f"{prompts} x {source.n} responses of up to {source.max_new} tokens"
    tried = f"{recipe.search.population + 1} candidates x " if isinstance(recipe, Evolution) else ""
    return tried + each


def _weights(e: Experiment) -> Iterator[str]:
    for path in dict.fromkeys(path for _, path, _ in named(e)):
        yield f"the weights of {path}: {'not read' if is_folder(path) else 'not fetched'}"


def _part(name: str, lines: Iterable[str]) -> Iterator[str]:
    for at, line in enumerate(lines):
        yield _row("" if at else name, line)


def _row(name: str, line: str) -> str:
    return f"{name:<10} {line}"
