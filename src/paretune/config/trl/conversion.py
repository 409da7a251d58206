"""A conversion under way: the recipe so far, and what has been said of each field."""

import json
import math
import re
import sys
from collections.abc import Collection
from contextlib import suppress
from typing import Any

import yaml

from paretune.config.trl.fields import default_values
from paretune.config.trl.read import NotLiteral, TrlSource
from paretune.core.errors import ConfigError, format_issue

SECTIONS = ("data", "policy", "reward", "scorers", "objectives", "algorithm", "training", "run", "evaluate")
Number = int | float


class Conversion:
    """The recipe and the lists of a conversion; fields are read by `value` and said by `map`."""

    def __init__(self, source: TrlSource) -> None:
        """Start with an empty recipe."""
        self.source, self.defaults = source, default_values(source.config)
        self._sections: dict[str, Any] = {name: {} for name in SECTIONS}
        self.mapped: list[str] = []
        self.refused: list[str] = []
        self.without_effect: list[str] = []
        self.to_do: list[str] = []

    @property
    def recipe(self) -> dict[str, Any]:
        """The sections that are not empty."""
        return {name: section for name, section in self._sections.items() if section}

    def forget_computed(self) -> None:
        """Read computed fields as if they had their defaults: they have been refused."""
        values = self.source.values
        self.source.values = {k: v for k, v in values.items() if not isinstance(v, NotLiteral)}

    def is_set(self, name: str) -> bool:
        """Whether the file sets the field."""
        return name in self.source.values

    def value(self, name: str) -> Any:
        """The value of a field, or its default in TRL."""
        return self.source.values.get(name, self.defaults.get(name))

    def number(self, name: str, minimum: float | None = None) -> Number:
        """The value of a field that is a number.

        Raises:
            ConfigError: It is none, or below the minimum.
        """
        value = self.value(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.error(name, f"is {value!r}, and must be a number")
        if minimum is not None and not value >= minimum:
            raise self.error(name, f"is {value!r}, and must be at least {minimum:g}")
        return value

    def integer(self, name: str) -> int:
        """The value of a field that is a positive integer.

        Raises:
            ConfigError: It is none.
        """
        value = self.number(name, 1)
        if not isinstance(value, int):
            raise self.error(name, f"is {value!r}, and must be an integer")
        return value

    def choice(self, name: str, choices: Collection[str]) -> str:
        """The value of a field, one of several.

        Raises:
            ConfigError: It is none of them.
        """
        value = self.value(name)
        if value not in choices:
            raise self.error(name, f"is {value!r}, and must be one of {', '.join(choices)}")
        return str(value)

    def flag(self, name: str) -> bool:
        """The value of a field that is true or false; null is false.

        Raises:
            ConfigError: It is neither.
        """
        value = self.value(name)
        if value is not None and not isinstance(value, bool):
            raise self.error(name, f"is {value!r}, and must be true or false")
        return bool(value)

    def mapping(self, name: str) -> dict[str, Any]:
        """The value of a field that is a mapping, or its JSON as TRL allows; null is empty.

        Raises:
            ConfigError: It is none.
        """
        value = self.value(name)
        with suppress(ValueError):
            value = json.loads(value) if isinstance(value, str) else value
        if value is not None and not isinstance(value, dict):
            raise self.error(name, f"is {value!r}, and must be a mapping")
        return value or {}

    def error(self, name: str, problem: str) -> ConfigError:
        """The error of a field, with its place in the file."""
        line = self.source.lines.get(name, 1)
        return ConfigError(format_issue(self.source.file, line, None, name, problem))

    def set(self, key: str, value: Any) -> None:
        """Set a key of the recipe, such as training.learning_rate."""
        *sections, last = key.split(".")
        target = self._sections
        for section in sections:
            target = target.setdefault(section, {})
        target[last] = value

    def map(self, name: str, key: str, value: Any, note: str = "") -> None:
        """Set a key of the recipe for a field."""
        self.set(key, value)
        origin = "" if self.is_set(name) else " (default of TRL)"
        self.mapped.append(f"{name}{origin} -> {key}: {_short(value)}" + (f"; {note}" if note else ""))

    def refuse(self, name: str, value: Any, instead: str) -> None:
        """Say what to do instead of a field."""
        self.refused.append(f"{name} {_short(value)}: {instead}")

    def ignore(self, name: str, value: Any, reason: str) -> None:
        """Say why a field has no effect."""
        self.without_effect.append(f"{name} {_short(value)}: {reason}")

    def leave(self, what: str) -> None:
        """Say what the recipe still lacks."""
        self.to_do.append(what)


def _short(value: Any) -> str:
    """A value as the recipe writes it, shortened; or the code of a computed one."""
    text = " ".join((value.code if isinstance(value, NotLiteral) else _as_yaml(value)).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _as_yaml(value: Any) -> str:
    try:
        text: str = yaml.safe_dump(
            value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=sys.maxsize
        )
    except yaml.YAMLError:  # a value of Python source that YAML does not have, such as a complex number
        return str(value)
    return text.removesuffix("...\n")


def name_of(text: str) -> str:
    """A reference or path as the name of an objective or a run."""
    last = re.split(r"[:/]", text.rstrip("/"))[-1]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", last).strip("-_") or "reward"
