"""From what pydantic found, and from what the rules found, to one line each with a place and a remedy."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from paretune.config.schema import RUN_NAME_PATTERN, Config
from paretune.config.yaml import ConfigTree, KeyPath, dotted_key, short_repr
from paretune.core.errors import format_issue


@dataclass(frozen=True, slots=True)
class ConfigIssue:
    """One mistake of a recipe."""

    path: KeyPath
    problem: str
    suggestion: str = ""
    fix: str = ""
    standalone: bool = False
    """It is a mistake whatever the rest of the recipe says."""

    def render(self, tree: ConfigTree) -> str:
        """The complaint, at the place where the value was written."""
        mark = tree.location(self.path)
        return format_issue(
            mark.file,
            mark.line,
            mark.column,
            dotted_key(self.path),
            self.problem,
            suggestion=self.suggestion,
            fix=self.fix,
        )


def closest_match(word: str, words: Iterable[str], cutoff: float = 0.5) -> str:
    """The word that was probably meant, or nothing; one of the very same letters before all others."""
    every = list(words)
    close = get_close_matches(word, every, len(every) or 1, cutoff)
    return next((near for near in close if sorted(near) == sorted(word)), next(iter(close), ""))


def slugify(word: str) -> str:
    """The word as the name of a run, or "run" where nothing of it can stand in one."""
    return re.sub(r"[^a-z0-9._-]+", "-", word.lower()).strip("-._")[:64] or "run"


def schema_issues(
    errors: list[ErrorDetails], values: Mapping[str, Any], schema: type[BaseModel] = Config
) -> list[ConfigIssue]:
    """What pydantic found, one fault for each place; `schema`: what the values were to be."""
    merged: dict[KeyPath, list[ErrorDetails]] = {}
    for error in errors:
        merged.setdefault(_key_path(error["loc"], values), []).append(error)
    return [_issue(path, group, values, schema) for path, group in merged.items()]


def _key_path(loc: tuple[int | str, ...], values: Any) -> KeyPath:
    """The path without pydantic's own words, which name branches of a union."""
    path: list[str | int] = []
    for place, part in enumerate(loc):
        inside = (
            part in values if isinstance(values, dict) else isinstance(part, int) and isinstance(values, list)
        )
        if inside:
            values = values[part]
            path.append(part)
        elif place == len(loc) - 1 and isinstance(values, dict) and part != "[key]":
            path.append(part)
    return tuple(path)


_TYPE_NAMES = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a section of keys",
    "model_type": "a section of keys",
    "finite_number": "a finite number",
}


def _issue(
    path: KeyPath, errors: list[ErrorDetails], values: Mapping[str, Any], schema: type[BaseModel]
) -> ConfigIssue:
    error = errors[0]
    kind, context = error["type"], error.get("ctx", {})
    given = short_repr(error.get("input"))
    if kind == "extra_forbidden":
        key, siblings = str(path[-1]), section_keys(path[:-1], schema)
        fix = f"this section has {', '.join(siblings)}" if siblings else ""
        return ConfigIssue(path, "unknown key", suggestion=_suggest_key(path[:-1], key, schema), fix=fix)
    if kind == "missing":
        return ConfigIssue(
            path, "is missing", fix=f"write {path[-1]} into {dotted_key(path[:-1]) or 'the recipe'}"
        )
    if kind == "literal_error":
        words = str(context.get("expected", "")).replace("'", "").replace(" or ", ", ").split(", ")
        meant = closest_match(str(error.get("input")), words)
        return ConfigIssue(
            path, f"{given} is none of {', '.join(words)}", suggestion=meant, fix="take one of these"
        )
    if error["loc"] and error["loc"][-1] == "[key]":
        fix = "use letters, digits, - and _, at most 64, a letter or digit first"
        return ConfigIssue(path, f"the name {given} is not one", fix=fix)
    wanted = list(dict.fromkeys(_TYPE_NAMES.get(e["type"], "") for e in errors))
    if all(wanted):
        return ConfigIssue(
            path, f"{_describe(error.get('input'))} is not {' or '.join(wanted)}", fix=_type_fix(errors)
        )
    fix = f"write {slugify(str(error.get('input')))}" if context.get("pattern") == RUN_NAME_PATTERN else ""
    return ConfigIssue(
        path, f"{given} {_bound_message(kind, context) or 'is not allowed: ' + error['msg']}", fix=fix
    )


def _describe(value: object) -> str:
    if value is None:
        return "nothing"
    return (
        "a section" if isinstance(value, dict) else "a list" if isinstance(value, list) else short_repr(value)
    )


def _type_fix(errors: list[ErrorDetails]) -> str:
    value, kinds = errors[0].get("input"), {e["type"] for e in errors}
    if "string_type" in kinds and isinstance(value, bool | int | float):
        return f'put it in quotes: "{str(value).lower()}"'
    if "int_type" in kinds and isinstance(value, float) and value.is_integer():
        return f"write {value:.0f}"
    if kinds & {"int_type", "float_type"} and isinstance(value, str) and value.replace(".", "", 1).isdigit():
        return f"leave out the quotes: {value}"
    return ""


def _bound_message(error_type: str, context: Mapping[str, Any]) -> str:
    match error_type:
        case "greater_than":
            return f"must be above {context['gt']:g}"
        case "greater_than_equal":
            return f"must be at least {context['ge']:g}"
        case "less_than":
            return f"must be below {context['lt']:g}"
        case "less_than_equal":
            return f"must be at most {context['le']:g}"
        case "too_short" | "string_too_short":
            return "must not be empty"
        case "string_pattern_mismatch" if context["pattern"] == RUN_NAME_PATTERN:
            return "must be a-z, 0-9 and . - _ only, at most 64 of them, and begin with a letter or digit"
        case "string_pattern_mismatch":
            return "must be letters, digits, - and _ only, at most 64, and begin with a letter or digit"
    return ""


def _suggest_key(section: KeyPath, key: str, schema: type[BaseModel]) -> str:
    """The nearest key of the section; failing that, a key of this very name elsewhere."""
    found = closest_match(key, section_keys(section, schema))
    if found:
        return dotted_key((*section, found))
    every = {path[-1]: path for path in sorted(_all_keys(schema), key=len, reverse=True)}
    return dotted_key(every[name]) if (name := closest_match(key, map(str, every), 0.8)) else ""


def section_keys(path: KeyPath, schema: type[BaseModel] = Config) -> list[str]:
    """The keys that the section at this path may have."""
    models: list[Any] = [schema]
    for part in path:
        models = [inner for model in models for inner in _child_annotations(model, part)]
    found = [
        _key_name(name, field)
        for model in models
        if _is_model(model)
        for name, field in model.model_fields.items()
    ]
    return list(dict.fromkeys(found))


def _child_annotations(annotation: Any, part: str | int) -> list[Any]:
    """The annotations that the value below `part` may have."""
    if _is_model(annotation):
        fields = {_key_name(name, field): field.annotation for name, field in annotation.model_fields.items()}
        return _union_members(fields[str(part)]) if part in fields else []
    if get_origin(annotation) is dict:
        return _union_members(get_args(annotation)[1])
    return []


def _union_members(annotation: Any) -> list[Any]:
    """The alternatives of a union, without their decoration."""
    if get_origin(annotation) is Annotated:
        return _union_members(get_args(annotation)[0])
    if get_origin(annotation) in {Union, UnionType}:
        return [inner for part in get_args(annotation) for inner in _union_members(part)]
    return [annotation]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _key_name(name: str, field: Any) -> str:
    return field.alias or name


def _all_keys(model: type[BaseModel], parent: KeyPath = ()) -> Iterator[KeyPath]:
    for name, field in model.model_fields.items():
        path = (*parent, _key_name(name, field))
        yield path
        for inner in _union_members(field.annotation):
            if _is_model(inner):
                yield from _all_keys(inner, path)
