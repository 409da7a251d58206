"""From a recipe to an `Experiment`: YAML with the place of every value, a strict schema, overrides.

Every mistake of a file is said at once, as `file:line:col: key: what is wrong; did you mean ...; fix: ...`.
What a recipe says is read, never run.
"""

from paretune.config.load import config_hash, load_config, source_text
from paretune.config.schema import Config
from paretune.config.shipped import bundled_recipes, find_recipe, location_of, recipe_summary, resolved_yaml

__all__ = [
    "Config",
    "bundled_recipes",
    "config_hash",
    "find_recipe",
    "load_config",
    "location_of",
    "recipe_summary",
    "resolved_yaml",
    "source_text",
]
