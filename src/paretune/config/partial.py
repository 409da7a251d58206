"""Checks the values of a recipe in one round: where some are invalid, all the others are checked still."""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

from pydantic import BaseModel, ValidationError

from paretune.config.data_schema import Section
from paretune.config.issues import ConfigIssue, schema_issues
from paretune.config.other_names import other_name_key
from paretune.config.paths import file_issues, model_issues, output_dir_issues
from paretune.config.schema import Config
from paretune.config.schema_keys import section_keys
from paretune.config.sources import column_issues
from paretune.config.unknown import KnownItems, until_unknown
from paretune.config.validate import rule_issues
from paretune.config.yaml import KeyPath

_STAND_INS: dict[str, Any] = {
    "name": "run",
    "data": {},
    "policy": {"path": "unknown"},
    "objectives": {"unknown": {}},
    "algorithm": {"name": "unknown"},
}
"""Sections that every recipe has, where theirs is invalid: nobody reads them."""
_SETTINGS = ("algorithm", "aggregate", "training", "run", "evaluate")
"""Sections whose keys have defaults from which no mistake follows."""
_MAX_DEPTH = 8
"""A removed value may leave its section incomplete, which is then removed in turn; recipes nest 5 deep."""


def check_values(values: dict[str, Any], check_files: bool = True) -> tuple[Config | None, list[ConfigIssue]]:
    """The config and its issues; in the config the values with issues are unknown."""
    if not values.keys() - {"name"}:
        fix = "see `paretune recipes demo` for a complete recipe"
        return None, [ConfigIssue((), "has a name at most, and no settings", fix=fix)]
    try:
        config, issues = Config.model_validate(values), []
    except ValidationError as error:
        issues = schema_issues(error.errors(include_url=False), values)
        partial = _without(values, issues)
        if partial is None:
            return None, issues
        config = partial
    issues += _semantic_issues(config, check_files)
    meant = [path for issue in issues for path in _unknown_paths(issue, values)]
    return forget(config, [*(issue.path for issue in issues), *meant]), issues


def _semantic_issues(config: Config, check_files: bool = True) -> list[ConfigIssue]:
    """Issues of a config whose known sections are valid by themselves."""
    from paretune.config.build import algorithm_issues  # imports torch, which takes seconds

    files = (file_issues,) if check_files else ()
    checks = (column_issues, algorithm_issues, *files, output_dir_issues, model_issues)
    return [*rule_issues(config), *(issue for check in checks for issue in until_unknown(check(config)))]


def _without(values: dict[str, Any], issues: list[ConfigIssue]) -> Config | None:
    """The config without its invalid values, which are unknown in it; None if nothing is left of it."""
    unknown = [path for issue in issues for path in _unknown_paths(issue, values)]
    for _ in range(_MAX_DEPTH):
        values = deepcopy(values)
        for issue in issues:
            unknown.append(_remove(values, issue.path))
        try:
            return forget(Config.model_validate(values), unknown)
        except ValidationError as error:
            issues = schema_issues(error.errors(include_url=False), values)
    return None


def _unknown_paths(issue: ConfigIssue, values: dict[str, Any]) -> Iterable[KeyPath]:
    """The keys that were probably meant by an unknown one, and are not there."""
    if issue.problem != "unknown key":
        return
    _, other = other_name_key(issue.path, values)
    suggestion = other or issue.suggestion
    meant: list[KeyPath] = [tuple(suggestion.split("."))] if suggestion else []
    section = issue.path[:-1]
    if not meant and section and section[0] not in _SETTINGS:  # it may be any key of its section
        meant = [(*section, key) for key in section_keys(section, Config, values)]
    for path in meant:
        if not _is_set(values, path):
            yield path


def _is_set(values: Any, path: KeyPath) -> bool:
    for part in path:
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


def _remove(values: dict[str, Any], path: KeyPath) -> KeyPath:
    """Remove an invalid value, or the section that lacks it; returns the path of what was removed."""
    section, removed = values, [str(part) for part in path[:1]]
    for part in path[1:]:
        inner = section.get(removed[-1])
        # A list is removed as a whole, and a section that lacks a key.
        if not isinstance(inner, dict) or part not in inner:
            break
        section = inner
        removed.append(str(part))
    name = removed[-1] if removed else ""
    section.pop(name, None)
    if len(removed) == 1 and name in _STAND_INS:
        section[name] = deepcopy(_STAND_INS[name])
    return tuple(removed)


def forget(config: Config, paths: Iterable[KeyPath]) -> Config:
    """A copy of the config in which some values are unknown: reading them raises `UnknownValueError`."""
    for path in paths:
        if path:
            config = _forget(config, path)
    return config


def _forget(section: Any, path: KeyPath) -> Any:
    name, rest = str(path[0]), path[1:]
    if isinstance(section, dict):
        if rest and dict.__contains__(section, name):
            return _replaced(section, name, _forget(section[name], rest))
        return KnownItems(section, {name})
    if not isinstance(section, Section):
        return section
    fields = type(section).model_fields
    copy = section.model_copy()
    field = next((key for key, field in fields.items() if (field.alias or key) == name), None)
    if field is None:
        if copy.__pydantic_extra__ is not None:
            copy.__pydantic_extra__ = KnownItems(copy.__pydantic_extra__, {name})
        return copy
    value = copy.__dict__.get(field)
    if rest and isinstance(value, BaseModel | dict):
        copy.__dict__[field] = _forget(value, rest)
    else:
        copy.__dict__.pop(field, None)
    return copy


def _replaced(items: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """The items with another value of one of them."""
    unknown = items.unknown if isinstance(items, KnownItems) else ()
    known = items.known() if isinstance(items, KnownItems) else items
    replaced = {**known, name: value}
    return KnownItems(replaced, unknown) if unknown else replaced
