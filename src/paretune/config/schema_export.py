"""JSON Schema of a recipe, by which an editor completes its keys and marks mistakes."""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from inspect import Parameter
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.json_schema import models_json_schema

from paretune.algorithms.docstrings import argument_descriptions, summary
from paretune.algorithms.parts import value_type
from paretune.config.arguments import REGISTRIES, algorithm_arguments, argument_types
from paretune.config.schema import AggregateSection, Config

DIALECT = "https://json-schema.org/draft/2020-12/schema"
USER_FUNCTION_PATTERN = r"^.+:[A-Za-z_]\w*$"
"""`file.py:name` or `package.module:name`."""
SECTION_DEFINITIONS = {"algorithm": "AlgorithmSection", "aggregate": "AggregateSection"}
_EXTENDING = "extending."
"""Start of the names of the definitions in which no key is required, for a recipe that extends another."""

Schema = dict[str, Any]


def recipe_schema() -> Schema:
    """The JSON Schema (draft 2020-12) of a recipe, with the arguments of each algorithm and aggregate."""
    models = {
        (section, name): _arguments_model(section, name, function)
        for section, registry in REGISTRIES.items()
        for name, function in registry.items()
    }
    pairs: Any = [(model, "validation") for model in (Config, *models.values())]
    references, schema = models_json_schema(pairs, by_alias=True)
    definitions: dict[str, Schema] = schema["$defs"]
    for section, definition in SECTION_DEFINITIONS.items():
        arguments = {
            name: references[model, "validation"] for (of, name), model in models.items() if of == section
        }
        definitions[definition] = _section_schema(section, definitions[definition], arguments)
    definitions["LabelSection"].pop("required")  # without `from` the column has the objective's name
    recipe = definitions["Config"]
    recipe["required"] = [
        key for key in recipe["required"] if key != "name"
    ]  # the file's name without suffix
    extending = _extending_definitions(definitions)
    extending[f"{_EXTENDING}Config"]["properties"]["extends"] = {
        "type": "string",
        "description": "A recipe that this one is merged over, relative to this file.",
    }
    return {
        "$schema": DIALECT,
        "title": "Recipe of paretune",
        "type": "object",
        "if": {"required": ["extends"]},
        "then": {"$ref": f"#/$defs/{_EXTENDING}Config"},
        "else": {"$ref": "#/$defs/Config"},
        "$defs": {**definitions, **extending},
    }


def _arguments_model(section: str, name: str, function: Callable[..., Any]) -> type[BaseModel]:
    """A model with the keys that the section has with this name."""
    types, docs = argument_types(function), argument_descriptions(function)
    fields: dict[str, Any] = {
        # An alias, since an argument may have a name that a field of a model cannot have.
        f"argument_{index}": (
            Annotated[
                value_type(types[key]), Field(alias=key, title=key, description=docs.get(key, "") or None)
            ],
            ... if default is Parameter.empty else default,
        )
        for index, (key, default) in enumerate(algorithm_arguments(function).items())
    }
    if section == "aggregate":
        missing = AggregateSection.model_fields["missing"]
        fields["missing"] = (missing.annotation, missing)
    return create_model(
        f"{section}_{name}",
        __config__=ConfigDict(extra="forbid", title=name),
        __doc__=summary(function),
        name=(str, name),
        **fields,
    )


def _section_schema(section: str, schema: Schema, arguments: Mapping[str, Any]) -> Schema:
    """The keys of a section, by the value of its `name`."""
    names = [
        {"const": name, "description": summary(function)} for name, function in REGISTRIES[section].items()
    ]
    own = {
        "type": "string",
        "pattern": USER_FUNCTION_PATTERN,
        "description": "A function of one's own: file.py:name or package.module:name.",
    }
    is_name = {name: {"properties": {"name": {"const": name}}} for name in arguments}
    return {
        "type": "object",
        "description": schema["description"],
        "properties": {"name": {**schema["properties"]["name"], "anyOf": [*names, own]}},
        **({"required": schema["required"]} if "required" in schema else {}),
        "allOf": [
            {"if": _if_named(is_name[name], schema), "then": reference}
            for name, reference in arguments.items()
        ],
    }


def _if_named(condition: Schema, schema: Schema) -> Schema:
    """The condition that the section has a name; one that is left out is the default."""
    default = schema["properties"]["name"].get("default")
    is_default = condition["properties"]["name"]["const"] == default
    return condition if is_default else {**condition, "required": ["name"]}


def _extending_definitions(definitions: Mapping[str, Schema]) -> dict[str, Schema]:
    """The definitions that a recipe which extends another consists of."""
    extending: dict[str, Schema] = {}
    names = ["Config"]
    while names:
        name = names.pop()
        if f"{_EXTENDING}{name}" not in extending:
            schema = _without_required(definitions[name])
            extending[f"{_EXTENDING}{name}"] = schema
            names += [
                found.removeprefix(_EXTENDING) for found in _references(schema) if found not in definitions
            ]
    return extending


def _references(schema: Any) -> Iterator[str]:
    """Names of the definitions that a schema refers to."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield schema["$ref"].removeprefix("#/$defs/")
        for value in schema.values():
            yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


def _without_required(schema: Schema) -> Schema:
    """A definition for a recipe that extends another: keys may be there already, null removes a section."""

    def convert(value: Any, is_condition: bool = False) -> Any:
        if isinstance(value, list):
            return [convert(item) for item in value]
        if not isinstance(value, dict):
            return value
        result = {
            # A list replaces another list as a whole.
            key: item if key in ("items", "prefixItems") else convert(item, key == "if")
            for key, item in value.items()
            # A key that is called "required" would be a property, whose value is a schema.
            if is_condition or key != "required" or not isinstance(item, list)
        }
        if "$ref" in result:
            result["$ref"] = result["$ref"].replace("#/$defs/", f"#/$defs/{_EXTENDING}")
        if "oneOf" in result:  # sections without the key that tells them apart are several of these
            result["anyOf"] = result.pop("oneOf")
        result.pop("discriminator", None)
        if "properties" in result and not is_condition:
            result["properties"] = {key: _or_null(item) for key, item in result["properties"].items()}
        return result

    converted: Schema = convert(deepcopy(schema))
    return converted


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]} if "$ref" in schema else schema
