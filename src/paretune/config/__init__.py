"""From a recipe to an `Experiment`: YAML with the place of every value, a strict schema, overrides.

Every mistake of a file is said at once, as `file:line:col: key: what is wrong; did you mean ...; fix: ...`.
What a recipe says is read, never run.
"""

from paretune.config.load import config_hash, given, load
from paretune.config.recipes import find_recipe, shipped, summary
from paretune.config.resolved import resolved, written_at
from paretune.config.schema import Experiment

__all__ = [
    "Experiment",
    "config_hash",
    "find_recipe",
    "given",
    "load",
    "resolved",
    "shipped",
    "summary",
    "written_at",
]
