"""From what pydantic found, and from what the rules found, to one line each with a place and a remedy."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from paretune.config.schema import RUN_NAME, Experiment
from paretune.config.tree import PathKey, Tree, dotted, short
from paretune.errors import complaint


@dataclass(frozen=True, slots=True)
class Fault:
    """One mistake of a recipe."""

    path: PathKey
    wrong: str
    meant: str = ""
    fix: str = ""
    alone: bool = False
    """It is a mistake whatever the rest of the recipe says."""

    def at(self, tree: Tree) -> str:
        """The complaint, at the place where the value was written."""
        mark = tree.mark(self.path)
        return complaint(
            mark.file, mark.line, mark.col, dotted(self.path), self.wrong, meant=self.meant, fix=self.fix
        )


def nearest(word: str, words: Iterable[str], cutoff: float = 0.5) -> str:
    """The word that was probably meant, or nothing; one of the very same letters before all others."""
    every = list(words)
    close = get_close_matches(word, every, len(every) or 1, cutoff)
    return next((near for near in close if sorted(near) == sorted(word)), next(iter(close), ""))


def slug(word: str) -> str:
    """The word as the name of a run, or "run" where nothing of it can stand in one."""
    return re.sub(r"[^a-z0-9._-]+", "-", word.lower()).strip("-._")[:64] or "run"


def schema_faults(
    errors: list[ErrorDetails], values: Mapping[str, Any], whole: type[BaseModel] = Experiment
) -> list[Fault]:
    """What pydantic found, one fault for each place; `whole`: what the values were to be."""
    merged: dict[PathKey, list[ErrorDetails]] = {}
    for error in errors:
        merged.setdefault(_path(error["loc"], values), []).append(error)
    return [_fault(path, group, values, whole) for path, group in merged.items()]


def _path(loc: tuple[int | str, ...], values: Any) -> PathKey:
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


_WANTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a section of keys",
    "model_type": "a section of keys",
    "finite_number": "a finite number",
}


def _fault(
    path: PathKey, errors: list[ErrorDetails], values: Mapping[str, Any], whole: type[BaseModel]
) -> Fault:
    error = errors[0]
    kind, context = error["type"], error.get("ctx", {})
    given = short(error.get("input"))
    if kind == "extra_forbidden":
        key, siblings = str(path[-1]), known_keys(path[:-1], whole)
        fix = f"this section has {', '.join(siblings)}" if siblings else ""
        return Fault(path, "unknown key", meant=_meant(path[:-1], key, whole), fix=fix)
    if kind == "missing":
        return Fault(path, "is missing", fix=f"write {path[-1]} into {dotted(path[:-1]) or 'the recipe'}")
    if kind == "literal_error":
        words = str(context.get("expected", "")).replace("'", "").replace(" or ", ", ").split(", ")
        meant = nearest(str(error.get("input")), words)
        return Fault(path, f"{given} is none of {', '.join(words)}", meant=meant, fix="take one of these")
    if error["loc"] and error["loc"][-1] == "[key]":
        fix = "use letters, digits, - and _, at most 64, a letter or digit first"
        return Fault(path, f"the name {given} is not one", fix=fix)
    wanted = list(dict.fromkeys(_WANTED.get(e["type"], "") for e in errors))
    if all(wanted):
        return Fault(
            path, f"{_shown(error.get('input'))} is not {' or '.join(wanted)}", fix=_type_fix(errors)
        )
    fix = f"write {slug(str(error.get('input')))}" if context.get("pattern") == RUN_NAME else ""
    return Fault(path, f"{given} {_limit(kind, context) or 'is not allowed: ' + error['msg']}", fix=fix)


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    return "a section" if isinstance(value, dict) else "a list" if isinstance(value, list) else short(value)


def _type_fix(errors: list[ErrorDetails]) -> str:
    value, kinds = errors[0].get("input"), {e["type"] for e in errors}
    if "string_type" in kinds and isinstance(value, bool | int | float):
        return f'put it in quotes: "{str(value).lower()}"'
    if "int_type" in kinds and isinstance(value, float) and value.is_integer():
        return f"write {value:.0f}"
    if kinds & {"int_type", "float_type"} and isinstance(value, str) and value.replace(".", "", 1).isdigit():
        return f"leave out the quotes: {value}"
    return ""


def _limit(kind: str, context: Mapping[str, Any]) -> str:
    match kind:
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
        case "string_pattern_mismatch" if context["pattern"] == RUN_NAME:
            return "must be a-z, 0-9 and . - _ only, at most 64 of them, and begin with a letter or digit"
        case "string_pattern_mismatch":
            return "must be letters, digits, - and _ only, at most 64, and begin with a letter or digit"
    return ""


def _meant(section: PathKey, key: str, whole: type[BaseModel]) -> str:
    """The nearest key of the section; failing that, a key of this very name elsewhere."""
    found = nearest(key, known_keys(section, whole))
    if found:
        return dotted((*section, found))
    every = {path[-1]: path for path in sorted(_all_keys(whole), key=len, reverse=True)}
    return dotted(every[name]) if (name := nearest(key, map(str, every), 0.8)) else ""


def known_keys(path: PathKey, whole: type[BaseModel] = Experiment) -> list[str]:
    """The keys that the section at this path may have."""
    models: list[Any] = [whole]
    for part in path:
        models = [inner for model in models for inner in _inside(model, part)]
    found = [
        _name(name, field)
        for model in models
        if _is_model(model)
        for name, field in model.model_fields.items()
    ]
    return list(dict.fromkeys(found))


def _inside(annotation: Any, part: str | int) -> list[Any]:
    """The annotations that the value below `part` may have."""
    if _is_model(annotation):
        fields = {_name(name, field): field.annotation for name, field in annotation.model_fields.items()}
        return _branches(fields[str(part)]) if part in fields else []
    if get_origin(annotation) is dict:
        return _branches(get_args(annotation)[1])
    return []


def _branches(annotation: Any) -> list[Any]:
    """The alternatives of a union, without their decoration."""
    if get_origin(annotation) is Annotated:
        return _branches(get_args(annotation)[0])
    if get_origin(annotation) in {Union, UnionType}:
        return [inner for part in get_args(annotation) for inner in _branches(part)]
    return [annotation]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _name(name: str, field: Any) -> str:
    return field.alias or name


def _all_keys(model: type[BaseModel], above: PathKey = ()) -> Iterator[PathKey]:
    for name, field in model.model_fields.items():
        path = (*above, _name(name, field))
        yield path
        for inner in _branches(field.annotation):
            if _is_model(inner):
                yield from _all_keys(inner, path)
