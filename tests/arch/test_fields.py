"""Every key of a recipe is read somewhere: a key that is validated and then ignored would mislead."""

import ast
import inspect
from collections.abc import Iterator
from types import ModuleType

from pydantic import BaseModel
from source import FILES, SOURCE, tree

from paretune.config import data_schema, schema

BUILDERS = {"build.py", "prompt_format.py"}
"""Files of config/ that build parts from the settings, rather than check them."""
READ_AS = {
    ("ObjectiveSection", "weight"): "weights",
    ("ObjectiveSection", "gate"): "gates",
    ("ObjectiveSection", "gate_fallback"): "gates",
    ("ObjectiveSection", "scored_text"): "thinking_objectives",
}
"""Fields that are read through a property of `Config`."""
BY_NAME = {"ColumnsSection"}
"""Sections that are passed on whole, and whose fields are looked up by name."""


def sections(module: ModuleType) -> Iterator[type[BaseModel]]:
    for _, section in inspect.getmembers(module, inspect.isclass):
        if issubclass(section, BaseModel) and section.__module__ == module.__name__:
            yield section


def attributes_and_strings() -> tuple[set[str], set[str]]:
    """Attributes that are read, and string constants, outside the checks of config/."""
    files = [f for f in FILES if f.parent != SOURCE / "config" or f.name in BUILDERS]
    nodes = [node for file in files for node in ast.walk(tree(file))]
    attributes = {n.attr for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)}
    return attributes, {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}


FIELDS = [
    (section.__name__, name)
    for module in (schema, data_schema)
    for section in sections(module)
    for name in section.model_fields
]


def test_the_sections_are_found() -> None:
    assert {"Config", "WorldSection", "RewardSection", "SftSection", "LoraSection"} <= {
        section for section, _ in FIELDS
    }


def test_every_field_is_read() -> None:
    attributes, strings = attributes_and_strings()
    unread = [
        f"{section}.{field}"
        for section, field in FIELDS
        if READ_AS.get((section, field), field) not in (strings if section in BY_NAME else attributes)
    ]
    assert unread == []
