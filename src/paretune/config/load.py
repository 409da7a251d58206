"""A recipe file and overrides -> an `Experiment`, or every mistake in them at once."""

import hashlib
import json
import re
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from paretune.config.faults import Fault, schema_faults, slug
from paretune.config.outside import file_faults, model_faults
from paretune.config.rules import rule_faults
from paretune.config.schema import Experiment
from paretune.config.sources import at_home
from paretune.config.tree import Mark, PathKey, Tree, dotted, parse, parse_value, read_text, short
from paretune.errors import ConfigError, complaint, joined
from paretune.foreign import FREE

OVERRIDE = "(override)"


def load(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment that a recipe file describes, with overrides of the form a.b=c.

    Paths in a recipe are relative to the folder the command is run in; data files are relative to
    `data.root`, and `extends` to the file it stands in.

    Raises:
        ConfigError: One line for each mistake of the file, of the one it extends and of the overrides.
    """
    tree, text = read_recipe(Path(path))
    for line, given in enumerate(overrides, 1):
        override(tree, given, Mark(OVERRIDE, line))
    tree.values.setdefault("name", slug(Path(path).stem))
    if {"recipe", "methods"} <= tree.values.keys():
        fix = f"paretune compare {path}"
        raise ConfigError(complaint(path, 1, None, "", "is a comparison of methods, not a recipe", fix=fix))
    found, wrong = built(tree, "\n".join([text.rstrip("\n"), *(f"# override: {o!r}" for o in overrides), ""]))
    if found is None:
        raise ConfigError(joined(wrong))
    return found


def built(tree: Tree, text: str) -> tuple[Experiment | None, list[str]]:
    """The experiment of a whole recipe, or every mistake in it, one a line; `text`: what `given` returns."""
    found, faults = (None, []) if tree.refused else _validated(tree.values)
    wrong = list(dict.fromkeys([*tree.wrong, *(fault.at(tree) for fault in faults)]))
    if wrong or found is None:
        return None, sorted(wrong, key=in_order)
    return _completed(found, tree, text), []


def config_hash(experiment: Experiment) -> str:
    """Names everything that decides a run's numbers.

    Where it lies, on what it is worked out and how often it is saved do not: a run may go on with others.
    """
    values = experiment.model_dump(by_alias=True, mode="json")
    for section, key in FREE:
        del values[section][key]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def given(experiment: Experiment) -> str:
    """The recipe as it was given: the text of its file, and the overrides as comments."""
    return experiment._given


def read_recipe(path: Path) -> tuple[Tree, str]:
    """The tree of a file laid over the one it extends, and the file's text."""
    text, unreadable = read_text(path, str(path))
    if unreadable:
        return Tree(marks={(): Mark(str(path), 1)}, wrong=[unreadable], refused=True), text
    tree = parse(text, str(path))
    extends = tree.values.pop("extends", None)
    if extends is None:
        return tree, text
    mark = tree.marks["extends",]
    if not isinstance(extends, str):
        tree.refused = True
        tree.wrong.append(
            complaint(mark.file, mark.line, mark.col, "extends", f"{short(extends)} is not a file name")
        )
        return tree, text
    base_path = path.parent / at_home(extends)
    base_text, unreadable = read_text(base_path, str(base_path))
    base = parse(base_text, str(base_path)) if not unreadable else Tree(marks={(): Mark(str(base_path), 1)})
    if unreadable:
        wrong = f"{short(extends)} {unreadable.split(': ', 1)[-1]}"
        tree.wrong.append(complaint(mark.file, mark.line, mark.col, "extends", wrong))
        base.refused = True
    if "extends" in base.values:
        fix = "extend a recipe that stands by itself"
        tree.wrong.append(
            complaint(mark.file, mark.line, mark.col, "extends", "goes one level only", fix=fix)
        )
        base.values.pop("extends")
    return laid_over(base, tree), text


def laid_over(base: Tree, top: Tree) -> Tree:
    """Sections are laid over each other key by key; any other value of `top` replaces that of `base`.

    A null over a section takes it out, as if `base` did not have it.
    """
    merged = Tree(deepcopy(base.values), {**base.marks, (): top.marks[()]}, [*base.wrong, *top.wrong])
    merged.refused = base.refused or top.refused

    def lay(values: dict[str, Any], into: dict[str, Any], path: PathKey) -> None:
        for key, value in values.items():
            here = (*path, key)
            if isinstance(value, dict) and isinstance(into.get(key), dict):
                merged.marks[here] = top.marks[here]
                lay(value, into[key], here)
            elif value is None and isinstance(into.get(key), dict):
                _place(merged, Tree(), here)
                del into[key]
            else:
                _place(merged, top, here)
                into[key] = value

    lay(top.values, merged.values, ())
    return merged


def _place(merged: Tree, top: Tree, path: PathKey) -> None:
    """The marks below a path are those of `top`."""
    for old in [old for old in merged.marks if old[: len(path)] == path]:
        del merged.marks[old]
    merged.marks |= {new: mark for new, mark in top.marks.items() if new[: len(path)] == path}


def override(tree: Tree, given: str, at: Mark) -> None:
    """Set one value, given as a.b=c at this place; sections on the way are made where they are missing."""
    key, equals, text = given.partition("=")
    path: PathKey = tuple(key.split("."))
    if not equals or not all(path):
        fix = "write it like run.steps=100"
        tree.wrong.append(
            complaint(at.file, at.line, at.col, "", f"{short(given)} is not of the form a.b=c", fix=fix)
        )
        return
    value, unreadable = parse_value(text, at.file, at.line, dotted(path))
    if unreadable:
        tree.wrong.append(unreadable)
        return
    into = tree.values
    for depth, part in enumerate(path[:-1], 1):
        if into.get(str(part)) is None:
            into[str(part)] = {}
            tree.marks[path[:depth]] = at
        into = into[str(part)]
        if not isinstance(into, dict):
            wrong = f"{dotted(path[:depth])} is {short(into)}, not a section"
            tree.wrong.append(complaint(at.file, at.line, at.col, dotted(path), wrong))
            return
    if value is None and isinstance(into.get(str(path[-1])), dict):
        _place(tree, Tree(), path)
        del into[str(path[-1])]  # as a null in a recipe that extends another
    else:
        _place(tree, Tree(marks={path: at}), path)
        into[str(path[-1])] = value


def _validated(values: dict[str, Any]) -> tuple[Experiment | None, list[Fault]]:
    """The experiment, and what is wrong with it."""
    if not values.keys() - {"name"}:
        return None, []
    try:
        found = Experiment.model_validate(values)
    except ValidationError as error:
        faults = schema_faults(error.errors(include_url=False), values)
        return None, [*faults, *_standing_alone(values, faults)]
    return found, _other_faults(found)


def _other_faults(found: Experiment, rooted: bool = True) -> list[Fault]:
    """What is wrong with an experiment whose sections are right by themselves."""
    from paretune.config.algorithm import algorithm_faults

    files = file_faults(found) if rooted else []
    return [*rule_faults(found), *algorithm_faults(found), *files, *model_faults(found)]


APART = ("name", "learn", "run", "evaluate", "algorithm")
"""Sections that no rule about another section looks at."""


def _standing_alone(values: dict[str, Any], faults: list[Fault]) -> list[Fault]:
    """Mistakes elsewhere in a recipe with wrong sections: those that do not hang on what is wrong."""
    apart = all(fault.path[:1] and fault.path[0] in APART for fault in faults)
    rooted = all(len(fault.path) != 2 or fault.path[0] != "data" for fault in faults)
    for _ in range(4):
        values = _without(values, faults)
        try:
            found = Experiment.model_validate(values)
        except ValidationError as error:
            faults = schema_faults(error.errors(include_url=False), values)
            apart = False
        else:
            others = _other_faults(found, rooted)
            return [fault for fault in others if fault.alone or (apart and fault.path[0] not in APART)]
    return []


def _without(values: dict[str, Any], faults: list[Fault]) -> dict[str, Any]:
    """The values without those that are wrong, and without the sections that lack one."""
    pruned = deepcopy(values)
    for fault in faults:
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


def _completed(experiment: Experiment, tree: Tree, text: str) -> Experiment:
    """Fill in the algorithm's defaults, and note where every value came from."""
    from paretune.config.algorithm import with_defaults

    whole = with_defaults(experiment)
    whole._origins = {
        path: str(mark) if mark.file != OVERRIDE else "override" for path, mark in tree.marks.items()
    }
    whole._given = text
    return whole


def in_order(line: str) -> list[tuple[int, str | int]]:
    """Sorts complaints by file, line and column."""
    place = re.match(r"(.*?):(\d+)(?::(\d+))?: ", line)
    return [(0, place[1]), (1, int(place[2])), (1, int(place[3] or 0))] if place else []
