"""Ready-made reward models: whether they know the objectives, asked before anything else is done."""

from collections.abc import Iterator

from paretune.config import Experiment, written_at
from paretune.config.faults import nearest
from paretune.config.rules import sections
from paretune.config.tree import PathKey
from paretune.errors import ConfigError, complaint
from paretune.objectives.reward_store import objectives_of


def ready_made(e: Experiment) -> None:
    """Check that a ready-made reward scores every objective, and a ready-made judge at least one.

    Raises:
        ConfigError: One line for each objective without a score, or for a model that cannot be read.
    """
    wrong = [
        line for name, section in sections(e) if section.path for line in _strange(e, name, section.path)
    ]
    if wrong:
        raise ConfigError("\n".join(wrong))


def _strange(e: Experiment, name: str, path: str) -> Iterator[str]:
    key: PathKey = (name, "path")
    try:
        names = objectives_of(path)
    except (OSError, ValueError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        yield _line(e, key, f"no model configuration can be read there ({said})")
        return
    fix = f"the model in {name}.path has {', '.join(names) or 'no names'}"
    lacking = [objective for objective in e.objectives if objective not in names]
    if name == "reward":
        for objective in lacking:
            wrong = "no model provides it"
            yield _line(e, ("objectives", objective), wrong, meant=nearest(objective, names), fix=fix)
    elif len(lacking) == len(e.objectives):
        yield _line(e, key, "scores none of the objectives", fix=fix)


def _line(e: Experiment, path: PathKey, wrong: str, meant: str = "", fix: str = "") -> str:
    key = ".".join(map(str, path))
    return complaint(written_at(e, path), None, None, key, wrong, meant=meant, fix=fix)
