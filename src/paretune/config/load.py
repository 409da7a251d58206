"""A recipe file and overrides -> an `Experiment`, or every mistake in them at once."""

import hashlib
import json
import re
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from paretune.config.data_schema import expand_home
from paretune.config.issues import ConfigIssue, schema_issues, slugify
from paretune.config.requirements import file_issues, model_issues
from paretune.config.schema import Config
from paretune.config.validate import rule_issues
from paretune.config.yaml import (
    ConfigTree,
    KeyPath,
    SourceLocation,
    dotted_key,
    parse_value,
    parse_yaml,
    read_text,
    short_repr,
)
from paretune.core.errors import ConfigError, format_issue, join_issues
from paretune.run.compat import RESUME_MUTABLE_KEYS

OVERRIDE = "(override)"


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The experiment that a recipe file describes, with overrides of the form a.b=c.

    Paths in a recipe are relative to the folder the command is run in; data files are relative to
    `data.root`, and `extends` to the file it stands in.

    Raises:
        ConfigError: One line for each mistake of the file, of the one it extends and of the overrides.
    """
    tree, text = read_recipe(Path(path))
    for line, given in enumerate(overrides, 1):
        apply_override(tree, given, SourceLocation(OVERRIDE, line))
    tree.values.setdefault("name", slugify(Path(path).stem))
    if {"recipe", "methods"} <= tree.values.keys():
        fix = f"paretune compare {path}"
        raise ConfigError(
            format_issue(path, 1, None, "", "is a comparison of methods, not a recipe", fix=fix)
        )
    found, wrong = build_config(
        tree, "\n".join([text.rstrip("\n"), *(f"# override: {o!r}" for o in overrides), ""])
    )
    if found is None:
        raise ConfigError(join_issues(wrong))
    return found


def build_config(tree: ConfigTree, text: str) -> tuple[Config | None, list[str]]:
    """The experiment of a whole recipe, or every mistake in it, one a line; `text`: what `given` returns."""
    found, faults = (None, []) if tree.unreadable else _validate(tree.values)
    wrong = list(dict.fromkeys([*tree.issues, *(fault.render(tree) for fault in faults)]))
    if wrong or found is None:
        return None, sorted(wrong, key=issue_sort_key)
    return _finalize(found, tree, text), []


def config_hash(config: Config) -> str:
    """Names everything that decides a run's numbers.

    Where it lies, on what it is worked out and how often it is saved do not: a run may go on with others.
    """
    values = config.model_dump(by_alias=True, mode="json")
    for section, key in RESUME_MUTABLE_KEYS:
        del values[section][key]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def source_text(config: Config) -> str:
    """The recipe as it was given: the text of its file, and the overrides as comments."""
    return config._source_text


def read_recipe(path: Path) -> tuple[ConfigTree, str]:
    """The tree of a file laid over the one it extends, and the file's text."""
    text, unreadable = read_text(path, str(path))
    if unreadable:
        return ConfigTree(
            locations={(): SourceLocation(str(path), 1)}, issues=[unreadable], unreadable=True
        ), text
    tree = parse_yaml(text, str(path))
    extends = tree.values.pop("extends", None)
    if extends is None:
        return tree, text
    mark = tree.locations["extends",]
    if not isinstance(extends, str):
        tree.unreadable = True
        tree.issues.append(
            format_issue(
                mark.file, mark.line, mark.column, "extends", f"{short_repr(extends)} is not a file name"
            )
        )
        return tree, text
    base_path = path.parent / expand_home(extends)
    base_text, unreadable = read_text(base_path, str(base_path))
    base = (
        parse_yaml(base_text, str(base_path))
        if not unreadable
        else ConfigTree(locations={(): SourceLocation(str(base_path), 1)})
    )
    if unreadable:
        wrong = f"{short_repr(extends)} {unreadable.split(': ', 1)[-1]}"
        tree.issues.append(format_issue(mark.file, mark.line, mark.column, "extends", wrong))
        base.unreadable = True
    if "extends" in base.values:
        fix = "extend a recipe that stands by itself"
        tree.issues.append(
            format_issue(mark.file, mark.line, mark.column, "extends", "goes one level only", fix=fix)
        )
        base.values.pop("extends")
    return merge_trees(base, tree), text


def merge_trees(base: ConfigTree, overlay: ConfigTree) -> ConfigTree:
    """Sections are laid over each other key by key; any other value of `overlay` replaces that of `base`.

    A null over a section takes it out, as if `base` did not have it.
    """
    merged = ConfigTree(
        deepcopy(base.values), {**base.locations, (): overlay.locations[()]}, [*base.issues, *overlay.issues]
    )
    merged.unreadable = base.unreadable or overlay.unreadable

    def lay(values: dict[str, Any], into: dict[str, Any], path: KeyPath) -> None:
        for key, value in values.items():
            here = (*path, key)
            if isinstance(value, dict) and isinstance(into.get(key), dict):
                merged.locations[here] = overlay.locations[here]
                lay(value, into[key], here)
            elif value is None and isinstance(into.get(key), dict):
                _replace_locations(merged, ConfigTree(), here)
                del into[key]
            else:
                _replace_locations(merged, overlay, here)
                into[key] = value

    lay(overlay.values, merged.values, ())
    return merged


def _replace_locations(merged: ConfigTree, overlay: ConfigTree, path: KeyPath) -> None:
    """The marks below a path are those of `overlay`."""
    for old in [old for old in merged.locations if old[: len(path)] == path]:
        del merged.locations[old]
    merged.locations |= {new: mark for new, mark in overlay.locations.items() if new[: len(path)] == path}


def apply_override(tree: ConfigTree, assignment: str, location: SourceLocation) -> None:
    """Set one value, given as a.b=c at this place; sections on the way are made where they are missing."""
    key, equals, text = assignment.partition("=")
    path: KeyPath = tuple(key.split("."))
    if not equals or not all(path):
        fix = "write it like run.max_steps=100"
        tree.issues.append(
            format_issue(
                location.file,
                location.line,
                location.column,
                "",
                f"{short_repr(assignment)} is not of the form a.b=c",
                fix=fix,
            )
        )
        return
    value, unreadable = parse_value(text, location.file, location.line, dotted_key(path))
    if unreadable:
        tree.issues.append(unreadable)
        return
    into = tree.values
    for depth, part in enumerate(path[:-1], 1):
        if into.get(str(part)) is None:
            into[str(part)] = {}
            tree.locations[path[:depth]] = location
        into = into[str(part)]
        if not isinstance(into, dict):
            wrong = f"{dotted_key(path[:depth])} is {short_repr(into)}, not a section"
            tree.issues.append(
                format_issue(location.file, location.line, location.column, dotted_key(path), wrong)
            )
            return
    if value is None and isinstance(into.get(str(path[-1])), dict):
        _replace_locations(tree, ConfigTree(), path)
        del into[str(path[-1])]  # as a null in a recipe that extends another
    else:
        _replace_locations(tree, ConfigTree(locations={path: location}), path)
        into[str(path[-1])] = value


def _validate(values: dict[str, Any]) -> tuple[Config | None, list[ConfigIssue]]:
    """The experiment, and what is wrong with it."""
    if not values.keys() - {"name"}:
        return None, []
    try:
        found = Config.model_validate(values)
    except ValidationError as error:
        faults = schema_issues(error.errors(include_url=False), values)
        return None, [*faults, *_independent_issues(values, faults)]
    return found, _semantic_issues(found)


def _semantic_issues(config: Config, check_files: bool = True) -> list[ConfigIssue]:
    """What is wrong with an experiment whose sections are right by themselves."""
    from paretune.config.build import algorithm_issues

    files = file_issues(config) if check_files else []
    return [*rule_issues(config), *algorithm_issues(config), *files, *model_issues(config)]


INDEPENDENT_SECTIONS = ("name", "learn", "run", "evaluate", "algorithm")
"""Sections that no rule about another section looks at."""


def _independent_issues(values: dict[str, Any], issues: list[ConfigIssue]) -> list[ConfigIssue]:
    """Mistakes elsewhere in a recipe with wrong sections: those that do not hang on what is wrong."""
    apart = all(fault.path[:1] and fault.path[0] in INDEPENDENT_SECTIONS for fault in issues)
    rooted = all(len(fault.path) != 2 or fault.path[0] != "data" for fault in issues)
    for _ in range(4):
        values = _prune(values, issues)
        try:
            found = Config.model_validate(values)
        except ValidationError as error:
            issues = schema_issues(error.errors(include_url=False), values)
            apart = False
        else:
            others = _semantic_issues(found, rooted)
            return [
                fault
                for fault in others
                if fault.standalone or (apart and fault.path[0] not in INDEPENDENT_SECTIONS)
            ]
    return []


def _prune(values: dict[str, Any], issues: list[ConfigIssue]) -> dict[str, Any]:
    """The values without those that are wrong, and without the sections that lack one."""
    pruned = deepcopy(values)
    for fault in issues:
        section, path = pruned, [str(part) for part in fault.path]
        while len(path) > 1 and isinstance(section.get(path[0]), dict):
            inner = section[path[0]]
            if len(path) == 2 and path[1] not in inner:
                break
            section, path = inner, path[1:]
        if path:
            section.pop(path[0], None)
    pruned.setdefault("name", "run")
    return pruned


def _finalize(config: Config, tree: ConfigTree, text: str) -> Config:
    """Fill in the algorithm's defaults, and note where every value came from."""
    from paretune.config.build import fill_defaults

    whole = fill_defaults(config)
    whole._origins = {
        path: str(mark) if mark.file != OVERRIDE else "override" for path, mark in tree.locations.items()
    }
    whole._source_text = text
    return whole


def issue_sort_key(line: str) -> list[tuple[int, str | int]]:
    """Sorts complaints by file, line and column."""
    place = re.match(r"(.*?):(\d+)(?::(\d+))?: ", line)
    return [(0, place[1]), (1, int(place[2])), (1, int(place[3] or 0))] if place else []
