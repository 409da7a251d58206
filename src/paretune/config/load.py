"""Loads a recipe file and overrides into a `Config`, or reports every mistake in them at once."""

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from paretune.config.data_schema import expand_home
from paretune.config.issues import slugify
from paretune.config.partial import check_values
from paretune.config.rollout_schema import LocalRolloutSection
from paretune.config.schema import STEP_EVALUATION_KEYS, Config
from paretune.config.yaml import (
    MAX_DEPTH,
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


def load_config(path: str | Path, overrides: Sequence[str] = (), *, check_files: bool = True) -> Config:
    """Load a recipe file with overrides of the form a.b=c.

    Paths in a recipe are relative to the working directory; data files are relative to `data.root`, and
    `extends` to the file that contains it.

    Args:
        path: The recipe file.
        overrides: Values that replace those of the file.
        check_files: Data files and model folders must exist; a plan reads none of them.

    Raises:
        ConfigError: One line per mistake of the file, of the file it extends and of the overrides.
    """
    tree, text = read_recipe(Path(path))
    apply_overrides(tree, overrides)
    tree.values.setdefault("name", slugify(Path(path).stem))
    if {"recipe", "methods"} <= tree.values.keys():
        fix = f"paretune compare {path}"
        raise ConfigError(
            format_issue(path, 1, None, "", "is a comparison of methods, not a recipe", fix=fix)
        )
    source = "\n".join([text.rstrip("\n"), *(f"# override: {o!r}" for o in overrides), ""])
    config, issues = _check_tree(tree, source, check_files)
    if issues or config is None:
        raise InvalidRecipeError(issues, config)
    return config


class InvalidRecipeError(ConfigError):
    """The mistakes of a recipe, with what is valid of it, so that its data and models can be checked too."""

    def __init__(self, issues: list[str], partial: Config | None) -> None:
        """Hold the mistakes.

        Args:
            issues: One line per mistake, in order.
            partial: The recipe without its invalid values, which raise `UnknownValueError`; None: nothing is.
        """
        super().__init__(join_issues(issues))
        self.issues, self.partial = issues, partial


def build_config(tree: ConfigTree, text: str) -> tuple[Config | None, list[str]]:
    """The config of a complete recipe and no issues, or None and one line per mistake.

    Args:
        tree: The values of the recipe, overrides included, with their locations.
        text: Returned by `source_text`.
    """
    config, issues = _check_tree(tree, text)
    return (None, issues) if issues else (config, [])


def _check_tree(tree: ConfigTree, text: str, check_files: bool = True) -> tuple[Config | None, list[str]]:
    """The config, without its invalid values, and one line per mistake."""
    config, issues = (None, []) if tree.unreadable else check_values(tree.values, check_files)
    lines = list(dict.fromkeys([*tree.issues, *(issue.render(tree) for issue in issues)]))
    if config is not None:
        config = _finalize(config, tree, text)
    return config, sorted(lines, key=issue_sort_key)


def config_hash(config: Config, *, without: Collection[str] = ()) -> str:
    """Hash of all settings that determine a run's numbers.

    The output folder, the hardware and the checkpointing are excluded: a run may be resumed with others.

    Args:
        config: The recipe.
        without: Sections to leave out.
    """
    values = config.model_dump(by_alias=True, mode="json", exclude=set(without))
    values.pop("trackers", None)  # they read the files of a run, and change none
    for section, key in RESUME_MUTABLE_KEYS:
        if values[section] is not None:  # a section that a recipe may leave out
            values[section].pop(key, None)  # each engine of the section rollout has other keys
    for objective in values.get("objectives", {}).values():  # keeps the hash of runs without these keys
        for key in ("goal", "at_most"):
            if objective[key] is None:
                del objective[key]
    if config.rollout == LocalRolloutSection():  # keeps the hash of runs without the section
        del values["rollout"]
    for key in STEP_EVALUATION_KEYS if config.evaluate.eval_steps is None else ():
        values.get("evaluate", {}).pop(key, None)  # keeps the hash of runs without these keys
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def source_text(config: Config) -> str:
    """The text of the recipe file, with the overrides as comments."""
    return config._source_text


def read_recipe(path: Path) -> tuple[ConfigTree, str]:
    """The tree of a file merged over the file it extends, and the file's text."""
    text, read_issue = read_text(path, str(path))
    if read_issue:
        return ConfigTree(
            locations={(): SourceLocation(str(path), 1)}, issues=[read_issue], unreadable=True
        ), text
    tree = parse_yaml(text, str(path))
    extends = tree.values.pop("extends", None)
    if extends is None:
        return tree, text
    location = tree.locations["extends",]
    if not isinstance(extends, str):
        tree.unreadable = True
        tree.issues.append(
            format_issue(
                location.file,
                location.line,
                location.column,
                "extends",
                f"{short_repr(extends)} is not a file name",
            )
        )
        return tree, text
    base_path = path.parent / expand_home(extends)
    base_text, read_issue = read_text(base_path, str(base_path), allow_pipe=False)
    base = (
        parse_yaml(base_text, str(base_path))
        if not read_issue
        else ConfigTree(locations={(): SourceLocation(str(base_path), 1)})
    )
    if read_issue and tree.issues:  # of the name of the file, most likely
        base.unreadable = True
    elif read_issue:
        problem = f"{short_repr(extends)} {read_issue.split(': ', 1)[-1]}"
        tree.issues.append(format_issue(location.file, location.line, location.column, "extends", problem))
        base.unreadable = True
    if "extends" in base.values:
        problem, fix = "is limited to one level", "extend a recipe that does not use extends itself"
        tree.issues.append(
            format_issue(location.file, location.line, location.column, "extends", problem, fix=fix)
        )
        base.values.pop("extends")
    return merge_trees(base, tree), text


def merge_trees(base: ConfigTree, overlay: ConfigTree) -> ConfigTree:
    """Merge sections key by key; any other value of `overlay` replaces that of `base`.

    A null over a section removes it, as if `base` did not have it.
    """
    merged = ConfigTree(
        deepcopy(base.values), {**base.locations, (): overlay.locations[()]}, [*base.issues, *overlay.issues]
    )
    merged.unreadable = base.unreadable or overlay.unreadable

    def merge(values: dict[str, Any], target: dict[str, Any], path: KeyPath) -> None:
        for key, value in values.items():
            key_path = (*path, key)
            if isinstance(value, dict) and isinstance(target.get(key), dict):
                merged.locations[key_path] = overlay.locations[key_path]
                merge(value, target[key], key_path)
            elif value is None and isinstance(target.get(key), dict):
                _replace_locations(merged, ConfigTree(), key_path)
                del target[key]
            else:
                _replace_locations(merged, overlay, key_path)
                target[key] = value

    merge(overlay.values, merged.values, ())
    return merged


def _replace_locations(merged: ConfigTree, overlay: ConfigTree, path: KeyPath) -> None:
    """Replace the locations at and below a path by those of `overlay`."""
    for old in [old for old in merged.locations if old[: len(path)] == path]:
        del merged.locations[old]
    merged.locations |= {
        new: location for new, location in overlay.locations.items() if new[: len(path)] == path
    }


def apply_overrides(tree: ConfigTree, overrides: Sequence[str]) -> None:
    """Set the values given as a.b=c; one that was written with spaces around = is one mistake."""
    words = list(overrides)
    for line, word in enumerate(words, 1):
        location = SourceLocation(OVERRIDE, line)
        following = words[line : line + 2]
        if "=" not in word and following[:1] == ["="]:
            parts = [word, *following]
        elif ("=" not in word and following and following[0].startswith("=")) or (
            word.endswith("=") and following and "=" not in following[0]
        ):
            parts = [word, following[0]]
        else:
            if word:
                apply_override(tree, word, location)
            continue
        joined = "".join(parts)
        joined = joined if joined.isprintable() else short_repr(joined)
        problem = f"{short_repr(' '.join(parts))} has spaces around ="
        tree.issues.append(format_issue(OVERRIDE, line, None, "", problem, fix=f"write {joined}"))
        words[line : line + len(parts) - 1] = [""] * (len(parts) - 1)  # told with this one


def apply_override(tree: ConfigTree, assignment: str, location: SourceLocation) -> None:
    """Set one value given as a.b=c; missing sections on its path are created."""
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
    if len(path) > MAX_DEPTH:
        problem = f"{short_repr(assignment)} is more than {MAX_DEPTH} levels deep"
        tree.issues.append(format_issue(location.file, location.line, location.column, "", problem))
        return
    value, value_issue = parse_value(text, location.file, location.line, path)
    if value_issue:
        tree.issues.append(value_issue)
        return
    section = tree.values
    for depth, part in enumerate(path[:-1], 1):
        if section.get(str(part)) is None:
            section[str(part)] = {}
            tree.locations[path[:depth]] = location
        section = section[str(part)]
        if not isinstance(section, dict):
            problem = f"{dotted_key(path[:depth])} is {short_repr(section)}, not a section"
            tree.issues.append(
                format_issue(location.file, location.line, location.column, dotted_key(path), problem)
            )
            return
    if value is None and isinstance(section.get(str(path[-1])), dict):
        _replace_locations(tree, ConfigTree(), path)
        del section[str(path[-1])]  # a null over a section removes it, as in a recipe that extends another
    else:
        inner = ConfigTree(locations=dict.fromkeys(_paths(value, path), location))
        _replace_locations(tree, inner, path)
        section[str(path[-1])] = value


def _paths(value: Any, path: KeyPath) -> Iterator[KeyPath]:
    """The path of a value and of everything inside it."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _paths(inner, (*path, key))


def _finalize(config: Config, tree: ConfigTree, text: str) -> Config:
    """Fill in the algorithm's defaults, and record the origin of every value."""
    from paretune.config.arguments import with_defaults

    resolved = with_defaults(config)
    resolved._origins = {
        path: str(location) if location.file != OVERRIDE else "override"
        for path, location in tree.locations.items()
    }
    resolved._columns = {
        path: location.column for path, location in tree.locations.items() if location.column is not None
    }
    resolved._source_text = text
    return resolved


def issue_sort_key(line: str) -> list[tuple[int, str | int]]:
    """Sort key of a rendered issue: file, line, column."""
    location = re.match(r"(.*?):(\d+)(?::(\d+))?: ", line)
    return [(0, location[1]), (1, int(location[2])), (1, int(location[3] or 0))] if location else []
