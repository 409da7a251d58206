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
from paretune.reward.rules import MATCH_TIMEOUT, check_pattern

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
        dialect = self.schema.get("$schema", Draft202012Validator.META_SCHEMA["$id"])
        kind = validator_for({"$schema": dialect}, default=None) if isinstance(dialect, str) else None
        if kind is None:
            problem = f"$schema {json.dumps(dialect)} is no draft of JSON Schema that is known here"
            raise ConfigError(f"{problem}; fix: remove it, for draft 2020-12, or correct it")
        try:
            # Without formats: patterns are checked below, by the package that searches them.
            kind.check_schema(self.schema, format_checker=FormatChecker(formats=()))
        except SchemaError as error:
            place = "/".join(str(part) for part in error.absolute_path)
            raise ConfigError(
                f"not a JSON Schema: {f'at {place}: ' if place else ''}{error.message}"
            ) from error
        self._check_subschemas()

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

    def _check_subschemas(self) -> None:
        resource = Resource.from_contents(self.schema, default_specification=DRAFT202012)
        base = resource.id() or _BASE
        try:
            _check_schemas(resource, Registry().with_resource(base, resource).resolver(base))
            # A schema that only refers to itself.
            if self.validator is not None:
                self.validator.is_valid({})
        except RecursionError as error:
            raise _endless_reference() from error


def load_schema(path: Path) -> dict[str, Any]:
    """The JSON Schema in a file.

    Raises:
        ConfigError: The file is missing, or does not hold a JSON object.
    """
    try:
        # Some editors write a byte order mark.
        schema = json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_reject_constant)
    except FileNotFoundError as error:
        raise ConfigError(f'there is no file "{path}"') from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a JSON file: {first_line(error)}") from error
    if not isinstance(schema, dict):
        raise ConfigError(f"{path}: not a JSON Schema: it holds a {type(schema).__name__}, not an object")
    return schema


def _endless_reference() -> ConfigError:
    return ConfigError("the schema refers to itself without end; fix: remove the circle")


def _missing_reference(name: str) -> ConfigError:
    return ConfigError(f'the schema refers to "{name}", which is not in it; fix: copy it under $defs')


def _check_schemas(root: Any, root_resolver: Any) -> None:
    """Check the keywords of a schema, of the schemas in it, and of all that they refer to.

    What a reference points to need not be at a place where schemas are looked for.
    """
    todo, seen = [(root, root_resolver)], set()
    while todo:
        resource, resolver = todo.pop()
        if id(resource.contents) in seen or not isinstance(resource.contents, Mapping):
            continue
        seen.add(id(resource.contents))
        _check_keywords(resource.contents)
        target = _target(resource.contents, resolver)
        if target is not None:
            chain = {id(resource.contents)}
            todo.append((Resource.from_contents(target[0], DRAFT202012), target[1]))
            while target is not None and isinstance(target[0], Mapping):  # references to references
                if id(target[0]) in chain:
                    raise _endless_reference()
                chain.add(id(target[0]))
                target = _target(*target)
        todo += [(each, resolver.in_subresource(each)) for each in resource.subresources()]


def _target(schema: Mapping[str, Any], resolver: Any) -> tuple[Any, Any] | None:
    """What a schema refers to, and the resolver there; None if it refers to nothing."""
    reference = schema.get("$ref", schema.get("$dynamicRef"))
    if not isinstance(reference, str):
        return None
    try:
        resolved = resolver.lookup(reference)
    except (Unresolvable, NoSuchAnchor) as error:
        raise _missing_reference(reference) from error
    return resolved.contents, resolved.resolver


def _check_keywords(schema: Mapping[str, Any]) -> None:
    if "patternProperties" in schema:
        # The package searches these by `re`, which cannot give up.
        raise ConfigError("patternProperties is not supported; fix: use propertyNames with a pattern")
    if isinstance(pattern := schema.get("pattern"), str):
        check_pattern(pattern)


def _validate_pattern(_: Validator, pattern: str, instance: Any, __: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not regex.search(pattern, instance, timeout=MATCH_TIMEOUT):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
