"""Loads a recipe into a `Config`: YAML with the location of every value, a strict schema, overrides.

All mistakes of a file are reported at once, one line each:
`file:line:col: key: what is wrong; did you mean "..."?; fix: ...`. A recipe is data: none of it is executed.
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
