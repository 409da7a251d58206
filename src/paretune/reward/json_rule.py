"""The rule that a response is JSON, and valid under a JSON Schema."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import regex
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import extend, validator_for
from referencing import Registry, Resource
from referencing.exceptions import NoSuchAnchor, Unresolvable
from referencing.jsonschema import DRAFT202012

from paretune.core.errors import ConfigError, first_line
from paretune.reward.rules import MATCH_TIMEOUT

_BASE = "urn:paretune:schema"


@dataclass(frozen=True)
class JsonRule:
    """1 if the whole response is JSON, and valid under the schema if there is one; else 0.

    White space around it is allowed, text or a code fence is not. NaN, Infinity and documents too deep to be
    read are not JSON. Schemas are those of JSON Schema, by default of draft 2020-12; references to other
    documents are not followed, and `format` is not checked, as the standard has it.
    """

    schema: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Check the schema.

        Raises:
            ConfigError: It is not a valid schema, or refers to something that is not in it.
        """
        if self.schema is None:
            return
        kind = validator_for(self.schema, default=Draft202012Validator)
        try:
            # Without formats: patterns are checked below, by the package that searches them.
            kind.check_schema(self.schema, format_checker=FormatChecker(formats=()))
        except SchemaError as error:
            place = "/".join(str(part) for part in error.absolute_path)
            raise ConfigError(
                f"not a JSON Schema: {f'at {place}: ' if place else ''}{error.message}"
            ) from error
        for name, value in _keywords(self.schema):
            if name == "patternProperties":
                # The package searches these by `re`, which cannot give up.
                raise ConfigError("patternProperties is not supported; fix: use propertyNames with a pattern")
            if name == "pattern":
                _check_pattern(value)
        self._check_references()

    def __reduce__(self) -> tuple[type["JsonRule"], tuple[Any, ...]]:
        """The validator is built again."""
        return JsonRule, (self.schema,)

    @cached_property
    def validator(self) -> Validator | None:
        """Validates documents; patterns are searched with a time limit, other documents are never loaded."""
        if self.schema is None:
            return None
        kind = validator_for(self.schema, default=Draft202012Validator)
        return extend(kind, {"pattern": _validate_pattern})(self.schema, registry=Registry())

    def __call__(self, text: str) -> float:
        """The score of a text.

        Raises:
            TimeoutError: The search for a pattern of the schema takes longer than `rules.MATCH_TIMEOUT`.
        """
        try:
            document = json.loads(text, parse_constant=_reject_constant)
            return float(self.validator is None or self.validator.is_valid(document))
        except (ValueError, RecursionError, ArithmeticError):
            return 0.0

    def _check_references(self) -> None:
        resource = Resource.from_contents(self.schema, default_specification=DRAFT202012)
        resolver = Registry().with_resource(resource.id() or _BASE, resource).resolver(resource.id() or _BASE)
        try:
            _look_up_all(resource, resolver)
            # A schema that only refers to itself.
            if self.validator is not None:
                self.validator.is_valid({})
        except (Unresolvable, NoSuchAnchor) as error:
            raise ConfigError(
                f'the schema refers to "{error.ref}", which is not in it; fix: copy it under $defs'
            ) from error
        except RecursionError as error:
            raise ConfigError("the schema refers to itself without end; fix: remove the circle") from error


def load_schema(path: Path) -> dict[str, Any]:
    """The JSON Schema in a file.

    Raises:
        ConfigError: The file is missing, or does not hold a JSON object.
    """
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f'there is no file "{path}"') from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a JSON file: {first_line(error)}") from error
    if not isinstance(schema, dict):
        raise ConfigError(f"{path}: not a JSON Schema: it holds a {type(schema).__name__}, not an object")
    return schema


def _look_up_all(resource: Any, resolver: Any) -> None:
    contents = resource.contents
    if isinstance(contents, Mapping) and isinstance(contents.get("$ref"), str):
        resolver.lookup(contents["$ref"])
    for subresource in resource.subresources():
        _look_up_all(subresource, resolver.in_subresource(subresource))


def _keywords(schema: Any) -> Iterator[tuple[str, Any]]:
    """Keywords of a schema and of the schemas in it."""
    resources = [Resource.from_contents(schema, default_specification=DRAFT202012)]
    while resources:
        resource = resources.pop()
        if isinstance(resource.contents, Mapping):
            yield from resource.contents.items()
        resources += resource.subresources()


def _check_pattern(pattern: str) -> None:
    try:
        regex.compile(pattern)
    except regex.error as error:
        raise ConfigError(f'"{pattern}" is no regular expression: {error}') from error


def _validate_pattern(_: Validator, pattern: str, instance: Any, __: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not regex.search(pattern, instance, timeout=MATCH_TIMEOUT):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
