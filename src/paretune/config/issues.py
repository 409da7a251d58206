"""Turns pydantic errors and broken rules into `ConfigIssue`s: one line each, with location and fix."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from paretune.config.other_names import other_name_fix
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
    """True if it is a mistake whatever the rest of the recipe says."""

    def render(self, tree: ConfigTree) -> str:
        """The error message, at the location of the value."""
        location = tree.location(self.path)
        return format_issue(
            location.file,
            location.line,
            location.column,
            dotted_key(self.path),
            self.problem,
            suggestion=self.suggestion,
            fix=self.fix,
        )


def closest_match(word: str, words: Iterable[str], cutoff: float = 0.5) -> str:
    """The word that was probably meant, or ""; anagrams (swapped letters) are preferred."""
    candidates = list(words)
    matches = get_close_matches(word, candidates, len(candidates) or 1, cutoff)
    anagrams = (match for match in matches if sorted(match) == sorted(word))
    return next(anagrams, next(iter(matches), ""))


def misspelled_category(category: str, refusal_categories: Iterable[str]) -> str:
    """The refusal category that a category is nearly equal to; "" if it is one of them or clearly none.

    A prefix is no misspelling: "unharmful" is not "harmful".
    """
    names = {re.sub(r"[\W_]", "", name.lower()): name for name in refusal_categories}
    letters = re.sub(r"[\W_]", "", category.lower())
    match = next(iter(get_close_matches(letters, names, 1, 0.85)), "")
    if not match or category == names[match] or (letters != match and letters.endswith(match)):
        return ""
    return names[match]


def slugify(word: str) -> str:
    """The word as a valid run name, or "run" if no character of it is allowed in one."""
    return re.sub(r"[^a-z0-9._-]+", "-", word.lower()).strip("-._")[:64] or "run"


def schema_issues(
    errors: list[ErrorDetails], values: Mapping[str, Any], schema: type[BaseModel] = Config
) -> list[ConfigIssue]:
    """Pydantic's errors, merged into one issue per key; `schema` is the model that was validated."""
    merged: dict[KeyPath, list[ErrorDetails]] = {}
    for error in errors:
        merged.setdefault(_key_path(error, values), []).append(error)
    return [_issue(path, group, values, schema) for path, group in merged.items()]


def _key_path(error: ErrorDetails, values: Any) -> KeyPath:
    """Pydantic's location without the parts that name branches of a union, which are no keys."""
    path: list[str | int] = []
    loc = error["loc"]
    for depth, part in enumerate(loc):
        is_key = (
            part in values
            if isinstance(values, dict)
            else isinstance(part, int) and isinstance(values, list) and part < len(values)
        )
        if is_key and depth < len(loc) - 1 and loc[depth + 1] == values[part]:
            continue  # the name of an outer branch, before that of the inner one, and a key by chance
        if is_key:
            values = values[part]
            path.append(part)
        elif depth == len(loc) - 1 and isinstance(values, dict) and error["type"] == "missing":
            path.append(part)  # a missing key
    return tuple(path)


_TYPE_NAMES = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "sequence_str": "a list",
    "dict_type": "a section of keys",
    "model_type": "a section of keys",
    "model_attributes_type": "a section of keys",
    "list_type": "a list",
    "finite_number": "a finite number",
}


def _issue(
    path: KeyPath, errors: list[ErrorDetails], values: Mapping[str, Any], schema: type[BaseModel]
) -> ConfigIssue:
    error = errors[0]
    error_type, context = error["type"], error.get("ctx", {})
    value = short_repr(error.get("input"))
    if error_type == "extra_forbidden":
        return _unknown_key_issue(path, error, values, schema)
    if error_type in {"union_tag_invalid", "union_tag_not_found"}:
        return _tag_issue(path, error, values)
    if error_type == "missing" and isinstance(last := errors[-1]["loc"][-1], int):
        problem = f"{value} has too few values"
        return ConfigIssue(path, problem, fix=f"write {last + 1} of them, in brackets")
    if error_type == "missing":
        fix = f"write {path[-1]} into {dotted_key(path[:-1]) or 'the recipe'}"
        return ConfigIssue(path, "is missing", fix=fix)
    choices = [choice for each in errors for choice in _choices(each)]
    expected = list(dict.fromkeys(_TYPE_NAMES.get(each["type"], "") for each in errors if not _choices(each)))
    if choices and all(expected):
        suggestion = closest_match(str(error.get("input")), choices)
        types = f"not {' or '.join(expected)}, and " if expected else ""
        problem = f"{_describe(error.get('input'))} is {types}none of {', '.join(choices)}"
        fix = "" if expected else "write one of these"
        return ConfigIssue(path, problem, suggestion=suggestion, fix=fix)
    if error["loc"] and error["loc"][-1] == "[key]":
        fix = "use letters, digits, - and _, at most 64 characters, starting with a letter or digit"
        return ConfigIssue(path, f"{value} is not a valid name", fix=fix)
    if all(expected):
        problem = f"{_describe(error.get('input'))} is not {' or '.join(expected)}"
        return ConfigIssue(path, problem, fix=_type_fix(errors) or _section_fix(path, errors, schema))
    is_run_name = context.get("pattern") == RUN_NAME_PATTERN
    fix = f"write {slugify(str(error.get('input')))}" if is_run_name else ""
    problem = _bound_message(error_type, context) or f"is not allowed: {error['msg']}"
    return ConfigIssue(path, f"{value} {problem}", fix=fix)


def _unknown_key_issue(
    path: KeyPath, error: ErrorDetails, values: Mapping[str, Any], schema: type[BaseModel]
) -> ConfigIssue:
    if schema is Config and (fix := other_name_fix(path, error.get("input"), values)):
        return ConfigIssue(path, "unknown key", fix=fix)
    siblings = section_keys(path[:-1], schema, values)
    fix = f"this section has {', '.join(siblings)}" if siblings else ""
    suggestion = _suggest_key(path[:-1], str(path[-1]), schema, values)
    return ConfigIssue(path, "unknown key", suggestion=suggestion, fix=fix)


def _choices(error: ErrorDetails) -> list[str]:
    """The values that a choice may have; none for any other error."""
    if error["type"] != "literal_error":
        return []
    expected = str(error.get("ctx", {}).get("expected", ""))
    return expected.replace("'", "").replace(" or ", ", ").split(", ")


def _tag_issue(path: KeyPath, error: ErrorDetails, values: Any) -> ConfigIssue:
    """A section whose kind is said by one of its keys, which is missing or names none."""
    context = error.get("ctx", {})
    key, value = str(context["discriminator"]).strip("'"), error.get("input")
    for part in path:
        values = _child_value(values, part)
    if path and path[-1] == key and not isinstance(values, dict):
        path = path[:-1]  # the name of a branch, such as rule, that is a key of the section by chance
    if "tag" not in context:
        return ConfigIssue((*path, key), "is missing", fix=f"write {key} into {dotted_key(path)}")
    choices = str(context["expected_tags"]).replace("'", "").split(", ")
    tag = value.get(key) if isinstance(value, dict) else context["tag"]
    problem = f"{short_repr(tag)} is none of {', '.join(choices)}"
    suggestion = closest_match(str(context["tag"]), choices)
    return ConfigIssue((*path, key), problem, suggestion=suggestion, fix="write one of these")


def _describe(value: object) -> str:
    if value is None:
        return "nothing"
    return (
        "a section" if isinstance(value, dict) else "a list" if isinstance(value, list) else short_repr(value)
    )


def _type_fix(errors: list[ErrorDetails]) -> str:
    value, error_types = errors[0].get("input"), {error["type"] for error in errors}
    if "string_type" in error_types and isinstance(value, bool | int | float):
        return f'put it in quotes: "{str(value).lower()}"'
    if "int_type" in error_types and isinstance(value, float) and value.is_integer():
        return f"write {value:.0f}"
    is_number = isinstance(value, str) and value.replace(".", "", 1).isdigit()
    if error_types & {"int_type", "float_type"} and is_number:
        return f"remove the quotes: {value}"
    return ""


def _section_fix(path: KeyPath, errors: list[ErrorDetails], schema: type[BaseModel]) -> str:
    """The line to write where a word or a list stands for a section, or a word for a list."""
    value, error_types = errors[0].get("input"), {error["type"] for error in errors}
    if error_types & {"tuple_type", "list_type"}:
        return f"write {path[-1]}: [{value}]" if isinstance(value, str | int | float) else ""
    if not error_types & {"dict_type", "model_type", "model_attributes_type"}:
        return ""
    words = value if isinstance(value, list) else [value]
    if not words or not all(isinstance(word, str) and re.fullmatch(r"[\w./-]+", word) for word in words):
        words = []
    keys, inner_keys = section_keys(path, schema), section_keys((*path, _ANY_NAME), schema)
    if keys and len(words) == 1 and (main_key := next((k for k in _MAIN_KEYS if k in keys), "")):
        name = "" if isinstance(path[-1], int) else f"{path[-1]}: "
        return f"write {name}{{{main_key}: {words[0]}}}"
    if keys:
        return f"its keys are {', '.join(keys)}"
    if words and "file" in inner_keys:
        sources = (f"{_source_name(word)}: {{file: {word}}}" for word in words)
        return f"write {path[-1]}: {{{', '.join(sources)}}}"
    if words:
        # A label is read from the column of its name; any other named section has defaults.
        inner = "{}" if path[-1] != "labels" else ""
        return f"write {path[-1]}: {{{', '.join(f'{word}: {inner or word}' for word in words)}}}"
    return "write one name: value per line below it"


_ANY_NAME = "any"
_MAIN_KEYS = ("type", "name", "path", "file")
"""Keys that a single word in the place of a section most likely means."""


def _source_name(file: str) -> str:
    return re.sub(r"\W+", "_", file.rsplit("/", 1)[-1].split(".", maxsplit=1)[0]) or "main"


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
            return "must be a-z, 0-9 and . - _ only, at most 64 characters, starting with a letter or digit"
        case "string_pattern_mismatch":
            return "must be letters, digits, - and _ only, at most 64, starting with a letter or digit"
    return ""


def _suggest_key(section: KeyPath, key: str, schema: type[BaseModel], values: Mapping[str, Any]) -> str:
    """The nearest key of the section; if there is none, a nearly identical key of another section."""
    sibling = closest_match(key, section_keys(section, schema, values))
    if sibling:
        return dotted_key((*section, sibling))
    # Shortest path last, so that it is the one kept of several keys with the same name.
    by_name = {path[-1]: path for path in sorted(_all_keys(schema), key=len, reverse=True)}
    return dotted_key(by_name[name]) if (name := closest_match(key, map(str, by_name), 0.8)) else ""


def section_keys(path: KeyPath, schema: type[BaseModel] = Config, values: Any = None) -> list[str]:
    """The keys that are allowed in the section at this path; with the values, in a section of its kind."""
    models: list[Any] = [schema]
    for part in path:
        models = [inner for model in models for inner in _child_annotations(model, part)]
        values = _child_value(values, part)
        models = [model for model in models if _is_of_kind(model, values)] or models
    keys = [
        _key_name(name, field)
        for model in models
        if _is_model(model)
        for name, field in model.model_fields.items()
    ]
    return list(dict.fromkeys(keys))


def _child_value(values: Any, part: str | int) -> Any:
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
    return all(values.get(key, kind[0]) == kind[0] for key, kind in kinds.items() if len(kind) == 1)


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


def _all_keys(model: type[BaseModel], parent: KeyPath = ()) -> Iterator[KeyPath]:
    for name, field in model.model_fields.items():
        path = (*parent, _key_name(name, field))
        yield path
        for inner in _union_members(field.annotation):
            if _is_model(inner):
                yield from _all_keys(inner, path)
