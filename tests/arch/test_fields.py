"""Every key of a recipe is read by somebody: one that is checked and then forgotten would be a lie."""

import ast
import inspect
from collections.abc import Iterator
from types import ModuleType

import pytest
from pydantic import BaseModel
from source import FILES, SOURCE, tree

from paretune.config import data_schema, schema

MAKERS = {"algorithm.py", "aggregate.py", "frame.py"}
"""Files of config/ that make parts of what they read, rather than check it."""
READ_AS = {("ObjectiveSection", "weight"): "weights", ("ObjectiveSection", "when"): "gates"}
READ_AS |= {("ObjectiveSection", "reads"): "traces"}
"""Fields that are read through a property of the experiment."""
BY_NAME = {"Columns"}
"""Sections that are handed on whole, and whose fields are looked up by name."""


def sections(module: ModuleType) -> Iterator[type[BaseModel]]:
    for _, found in inspect.getmembers(module, inspect.isclass):
        if issubclass(found, BaseModel) and found.__module__ == module.__name__:
            yield found


def read() -> tuple[set[str], set[str]]:
    """Attributes that are read, and words that are written, outside the checks of config/."""
    files = [f for f in FILES if f.parent != SOURCE / "config" or f.name in MAKERS]
    nodes = [node for file in files for node in ast.walk(tree(file))]
    attributes = {n.attr for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)}
    return attributes, {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}


ATTRIBUTES, WORDS = read()
FIELDS = [
    (section.__name__, name)
    for module in (schema, data_schema)
    for section in sections(module)
    for name in section.model_fields
]


def test_the_sections_are_found() -> None:
    assert {"Experiment", "WorldSection", "RewardSection", "Sft", "Lora"} <= {
        section for section, _ in FIELDS
    }


@pytest.mark.parametrize(("section", "field"), FIELDS)
def test_every_field_is_read(section: str, field: str) -> None:
    known = WORDS if section in BY_NAME else ATTRIBUTES
    assert READ_AS.get((section, field), field) in known
