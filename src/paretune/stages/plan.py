"""What a run would do, in lines to be read: what `paretune check` prints."""

from collections.abc import Iterable, Iterator

from paretune.config import Experiment
from paretune.config.rules import sections
from paretune.learn.check import Plan
from paretune.learn.evolution import Evolution
from paretune.learn.recipe import Recipe, explained
from paretune.models.load import is_folder
from paretune.stages.material import Judgements, Material, stream_of
from paretune.stages.ready import from_hub, named


def planned(e: Experiment, recipe: Recipe | Evolution, plan: Plan, found: Material) -> list[str]:
    """Counts of records, what was left out, the algorithm part by part, and what was not tried."""
    return [
        f"{e.name}: ok",
        *_part("prompts", [counted(found)]),
        *_part("", _undrawn(e, found)),
        *_part("stored", [f"responses to {len(found.stored):,} prompts"] if found.stored else []),
        *_part("policy", [_policy(e, found)]),
        *(_row(name, _fitted(section.path, name, found)) for name, section in sections(e)),
        *_part("notes", found.notes),
        *(recipe.explained() if isinstance(recipe, Evolution) else explained(recipe)),
        *_part("frozen", [", ".join(plan.frozen_roles)] if plan.frozen_roles else []),
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


def _weights(e: Experiment) -> Iterator[str]:
    for path in dict.fromkeys(path for _, path, _ in named(e)):
        yield f"the weights of {path}: {'not read' if is_folder(path) else 'not fetched'}"


def _part(name: str, lines: Iterable[str]) -> Iterator[str]:
    for at, line in enumerate(lines):
        yield _row("" if at else name, line)


def _row(name: str, line: str) -> str:
    return f"{name:<10} {line}"
