"""Turns pydantic errors and broken rules into `ConfigIssue`s: one line each, with location and fix."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from paretune.config.other_names import other_name_fix
from paretune.config.schema import RUN_NAME_PATTERN, Config
from paretune.config.schema_keys import all_keys, key_choices, section_keys, value_at
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
        line = format_issue(
            location.file,
            location.line,
            location.column,
            dotted_key(self.path),
            self.problem,
            suggestion=self.suggestion,
            fix=self.fix,
        )
        # Names of the recipe may stand in any part of it.
        return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)


MAX_LISTED = 8
"""A message lists so many names; of more, the first few."""
RECIPE_PAGE = "docs/recipe.md"


def list_names(names: Iterable[str], page: str = "") -> str:
    """The names for a message; of many the first three, their number, and the page that has all of them."""
    names = list(names)
    if len(names) <= MAX_LISTED:
        return ", ".join(names)
    return f"{', '.join(names[:3])}, ... ({len(names)}{f'; see {page}' if page else ''})"


def closest_match(word: str, words: Iterable[str], cutoff: float = 0.5) -> str:
    """The word that was probably meant, or ""; anagrams (swapped letters) are preferred.

    Upper and lower case do not count.
    """
    candidates: dict[str, str] = {}
    for candidate in words:
        candidates.setdefault(candidate.lower(), candidate)
    lower = word.lower()
    matches = get_close_matches(lower, candidates, len(candidates) or 1, cutoff)
    anagrams = (match for match in matches if sorted(match) == sorted(lower))
    return candidates.get(next(anagrams, next(iter(matches), "")), "")


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
        return _tag_issue(path, error, values, schema)
    if error_type == "missing" and isinstance(last := errors[-1]["loc"][-1], int):
        problem = f"{value} has too few values"
        return ConfigIssue(path, problem, fix=f"write {last + 1} of them, in brackets")
    if error_type == "missing":
        fix = f"write {path[-1]} into {dotted_key(path[:-1]) or 'the recipe'}"
        return ConfigIssue(path, "is missing", fix=fix)
    choices = [choice for each in errors for choice in _choices(each)]
    expected = list(dict.fromkeys(_TYPE_NAMES.get(each["type"], "") for each in errors if not _choices(each)))
    if all(expected):
        return _type_issue(path, errors, choices, expected, schema)
    if error["loc"] and error["loc"][-1] == "[key]":
        fix = "use letters, digits, - and _, at most 64 characters, starting with a letter or digit"
        return ConfigIssue(path, f"{value} is not a valid name", fix=fix)
    is_run_name = context.get("pattern") == RUN_NAME_PATTERN
    fix = f"write {slugify(str(error.get('input')))}" if is_run_name else ""
    problem = _bound_message(error_type, context) or f"is not allowed: {error['msg']}"
    return ConfigIssue(path, f"{value} {problem}", fix=fix)


def _type_issue(
    path: KeyPath,
    errors: list[ErrorDetails],
    choices: list[str],
    expected: list[str],
    schema: type[BaseModel],
) -> ConfigIssue:
    """A value that has none of the expected types and is none of the choices, or no value."""
    value = errors[0].get("input")
    types, one_of = " or ".join(expected), f"one of {list_names(choices, RECIPE_PAGE)}"
    if value is None:
        wanted = [_missing_value(path, expected)] * bool(expected) + [one_of] * bool(choices)
        fix = _section_fix(path, errors, schema) or f"write {' or '.join(wanted)}"
        return ConfigIssue(path, "has no value", fix=fix)
    if not choices:
        fix = _type_fix(errors) or _section_fix(path, errors, schema)
        return ConfigIssue(path, f"{_describe(value)} is not {types}", fix=fix)
    none_of = f"not {types}, and " * bool(expected) + "none of "
    suggestion = closest_match(str(value), choices)
    if len(choices) > MAX_LISTED:
        return ConfigIssue(path, f"{_describe(value)} is {none_of}the choices", suggestion, one_of)
    fix = _boolean_fix(errors) if expected else "write one of these"
    return ConfigIssue(path, f"{_describe(value)} is {none_of}{', '.join(choices)}", suggestion, fix)


def _unknown_key_issue(
    path: KeyPath, error: ErrorDetails, values: Mapping[str, Any], schema: type[BaseModel]
) -> ConfigIssue:
    siblings, value = section_keys(path[:-1], schema, values), error.get("input")
    # In a section whose own name is misspelled, the keys are ours.
    is_misspelled = isinstance(value, dict) and bool(closest_match(str(path[-1]), siblings, 0.8))
    if schema is Config and not is_misspelled and (fix := other_name_fix(path, value, values)):
        return ConfigIssue(path, "unknown key", fix=fix)
    fix = f"this section has {list_names(siblings, RECIPE_PAGE)}" if siblings else ""
    suggestion = _suggest_key(path[:-1], str(path[-1]), schema, values)
    return ConfigIssue(path, "unknown key", suggestion=suggestion, fix=fix)


def _choices(error: ErrorDetails) -> list[str]:
    """The values that a choice may have; none for any other error."""
    if error["type"] != "literal_error":
        return []
    expected = str(error.get("ctx", {}).get("expected", ""))
    return expected.replace("'", "").replace(" or ", ", ").split(", ")


def _tag_issue(path: KeyPath, error: ErrorDetails, values: Any, schema: type[BaseModel]) -> ConfigIssue:
    """A section whose kind is said by one of its keys, which is missing or names none."""
    context, recipe = error.get("ctx", {}), values
    key, value = str(context["discriminator"]).strip("'"), error.get("input")
    parent: Any = None
    for part in path:
        parent, values = values, value_at(values, part)
    is_branch = bool(path) and (path[-1] == key or (isinstance(parent, dict) and path[-1] not in parent))
    if is_branch and not isinstance(values, dict):
        path = path[:-1]  # the name of an outer branch, which may be a key of the section by chance
    if "tag" not in context:
        # verl's section for the sampler has the name of ours.
        if fix := other_name_fix(path, value, recipe if isinstance(recipe, dict) else {}):
            return ConfigIssue(path, "unknown keys", fix=fix)
        if isinstance(value, dict) and (misspelled := closest_match(key, map(str, value), 0.7)):
            return ConfigIssue((*path, misspelled), "unknown key", suggestion=dotted_key((*path, key)))
        words = key_choices((*path, key), schema, recipe)
        choice = f", one of {list_names(words, RECIPE_PAGE)}" if words else ""
        fix = f"write {key} into {dotted_key(path)}{choice}"
        return ConfigIssue((*path, key), "is missing", fix=fix)
    choices = str(context["expected_tags"]).replace("'", "").split(", ")
    tag = value.get(key) if isinstance(value, dict) else context["tag"]
    suggestion = closest_match(str(context["tag"]), choices)
    if tag is None:
        fix = f"write one of {list_names(choices, RECIPE_PAGE)}"
        return ConfigIssue((*path, key), "has no value", fix=fix)
    problem = f"{short_repr(tag)} is none of {list_names(choices, RECIPE_PAGE)}"
    return ConfigIssue((*path, key), problem, suggestion=suggestion, fix="write one of these")


def _missing_value(path: KeyPath, expected: list[str]) -> str:
    """What to write where a key has no value."""
    counted = re.fullmatch(r"(?:max|num)_(\w+s)", str(path[-1])) if path else None
    if counted and "a whole number" in expected:
        return f"the number of {counted[1].replace('_', ' ')}"
    return " or ".join(expected)


def _describe(value: object) -> str:
    return (
        "a section" if isinstance(value, dict) else "a list" if isinstance(value, list) else short_repr(value)
    )


def _type_fix(errors: list[ErrorDetails]) -> str:
    value, error_types = errors[0].get("input"), {error["type"] for error in errors}
    if "string_type" in error_types and isinstance(value, bool | int | float):
        return f'put it in quotes: "{str(value).lower()}"'
    if fix := _boolean_fix(errors):
        return fix
    if "int_type" in error_types and isinstance(value, float) and value.is_integer():
        return f"write {value:.0f}"
    is_number = isinstance(value, str) and value.replace(".", "", 1).isdigit()
    if error_types & {"int_type", "float_type"} and is_number:
        return f"remove the quotes: {value}"
    return ""


def _boolean_fix(errors: list[ErrorDetails]) -> str:
    """The boolean that a word means: recipes are YAML 1.2, in which yes and on are words."""
    if "bool_type" not in {error["type"] for error in errors}:
        return ""
    word = str(errors[0].get("input")).lower()
    meant = {"true": _TRUE_WORDS, "false": _FALSE_WORDS}
    return next((f"write {value}" for value, words in meant.items() if word in words), "")


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
        return f"its keys are {list_names(keys, RECIPE_PAGE)}"
    if words and "file" in inner_keys:
        sources = (f"{_source_name(word)}: {{file: {word}}}" for word in words)
        return f"write {path[-1]}: {{{', '.join(sources)}}}"
    if words:
        # A label is read from the column of its name; any other named section has defaults.
        inner = "{}" if path[-1] != "labels" else ""
        return f"write {path[-1]}: {{{', '.join(f'{word}: {inner or word}' for word in words)}}}"
    return "write one name: value per line below it"


_TRUE_WORDS, _FALSE_WORDS = ("true", "yes", "on", "y", "1"), ("false", "no", "off", "n", "0")
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
    by_name = {path[-1]: path for path in sorted(all_keys(schema), key=len, reverse=True)}
    name = closest_match(key, map(str, by_name), 0.8)
    # A key of another kind of this section is no other key: it has no effect with this kind.
    return dotted_key(by_name[name]) if name and by_name[name] != (*section, key) else ""
