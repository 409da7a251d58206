"""The keys that the schema of a recipe has in each section."""

from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from paretune.config.schema import Config
from paretune.config.yaml import KeyPath


def section_keys(path: KeyPath, schema: type[BaseModel] = Config, values: Any = None) -> list[str]:
    """The keys that are allowed in the section at this path; with the values, in a section of its kind."""
    keys = [
        _key_name(name, field)
        for model in _section_kinds(path, schema, values)
        if _is_model(model)
        for name, field in model.model_fields.items()
    ]
    return list(dict.fromkeys(keys))


def key_choices(path: KeyPath, schema: type[BaseModel] = Config, values: Any = None) -> list[str]:
    """The words that a key may have as its value, in all kinds of its section; empty if it takes others."""
    kinds = _section_kinds(path[:-1], schema, values)
    annotations = [inner for kind in kinds for inner in _child_annotations(kind, path[-1])]
    words = [word for each in annotations if get_origin(each) is Literal for word in get_args(each)]
    return list(dict.fromkeys(word for word in words if isinstance(word, str)))


def _section_kinds(path: KeyPath, schema: type[BaseModel], values: Any) -> list[Any]:
    """The possible types of the section at this path, without kinds that its values rule out."""
    kinds: list[Any] = [schema]
    for part in path:
        kinds = [inner for kind in kinds for inner in _child_annotations(kind, part)]
        values = value_at(values, part)
        kinds = [kind for kind in kinds if _is_of_kind(kind, values)] or kinds
    return kinds


def value_at(values: Any, part: str | int) -> Any:
    """The value under a key or an index; None if there is none."""
    if isinstance(values, dict):
        return values.get(part)
    is_item = isinstance(values, list) and isinstance(part, int) and part < len(values)
    return values[part] if is_item else None


def _is_of_kind(model: Any, values: Any) -> bool:
    """False if a key that says the kind of a section, such as `type`, has the value of another kind."""
    if not _is_model(model) or not isinstance(values, dict):
        return True
    kinds = {
        _key_name(name, field): get_args(field.annotation)
        for name, field in model.model_fields.items()
        if get_origin(field.annotation) is Literal
    }
    return all(values.get(key, kind[0]) in (kind[0], None) for key, kind in kinds.items() if len(kind) == 1)


def _child_annotations(annotation: Any, part: str | int) -> list[Any]:
    """The possible types of the value under the key `part`."""
    if _is_model(annotation):
        fields = {_key_name(name, field): field.annotation for name, field in annotation.model_fields.items()}
        return _union_members(fields[str(part)]) if part in fields else []
    if get_origin(annotation) is dict:
        return _union_members(get_args(annotation)[1])
    if get_origin(annotation) in {list, tuple} and isinstance(part, int):
        return _union_members(get_args(annotation)[0])
    return []


def _union_members(annotation: Any) -> list[Any]:
    """The members of a union, without `Annotated`."""
    if get_origin(annotation) is Annotated:
        return _union_members(get_args(annotation)[0])
    if get_origin(annotation) in {Union, UnionType}:
        return [inner for part in get_args(annotation) for inner in _union_members(part)]
    return [annotation]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _key_name(name: str, field: Any) -> str:
    return field.alias or name


def all_keys(model: type[BaseModel], parent: KeyPath = ()) -> Iterator[KeyPath]:
    """The path of every key of a model and of the sections in it."""
    for name, field in model.model_fields.items():
        path = (*parent, _key_name(name, field))
        yield path
        for inner in _union_members(field.annotation):
            if _is_model(inner):
                yield from all_keys(inner, path)
