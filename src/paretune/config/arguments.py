"""The sections `algorithm` and `aggregate`: finds their functions, and checks their arguments."""

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from pydantic import ConfigDict, Field, ValidationError, create_model

from paretune.algorithms import ALGORITHMS
from paretune.algorithms.aggregators import AGGREGATES
from paretune.algorithms.lookup import find_aggregate, find_algorithm
from paretune.algorithms.parts import OBJECTIVE_FIELDS, USER_PART, value_type
from paretune.algorithms.user_functions import is_user_function, part_arguments, user_files, user_types
from paretune.config.issues import ConfigIssue, closest_match, list_names, schema_issues
from paretune.config.other_names import other_name_fix
from paretune.config.schema import AlgorithmSection, Config
from paretune.config.unknown import KnownItems, UnknownValueError, known_items, until_unknown
from paretune.config.yaml import KeyPath, dotted_key, short_repr
from paretune.core.errors import ConfigError

OBJECTIVE_ARGUMENTS = ("weights", "gates", "constraints")
"""Arguments of algorithms that come from the section `objectives`."""
REGISTRIES: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "algorithm": ALGORITHMS,
    "aggregate": AGGREGATES,
}
"""Section -> the functions that its `name` may select."""
ALGORITHMS_PAGE = "docs/algorithms/README.md"
SIMILAR_NAME = 0.75
"""A name that is so like one of an algorithm means that one: its arguments are checked as that one's."""
_FINDERS: Mapping[str, Callable[[str], Callable[..., Any]]] = {
    "algorithm": find_algorithm,
    "aggregate": find_aggregate,
}


def section_function(section_name: str, name: str) -> Callable[..., Any] | None:
    """The function that a section names; None if there is none, or if it cannot be used."""
    try:
        return _FINDERS[section_name](name)
    except (KeyError, ConfigError):
        return None


def algorithm_arguments(function: Callable[..., Any]) -> Mapping[str, Any]:
    """The arguments of an algorithm that a recipe may set -> their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {
        p.name: p.default
        for p in parameters
        if p.kind is p.KEYWORD_ONLY and p.name not in OBJECTIVE_ARGUMENTS
    }


def argument_types(function: Callable[..., Any]) -> Mapping[str, Any]:
    """The types of all arguments that are annotated."""
    return get_type_hints(function, include_extras=True)


def with_defaults(config: Config) -> Config:
    """The config with every argument of its algorithm and of its aggregator filled in.

    One of an unknown name stays as it is.
    """
    sections = {}
    for section_name, find in _FINDERS.items():
        try:
            section = getattr(config, section_name)
            fields = {key: getattr(section, key) for key in type(section).model_fields}
            known = algorithm_arguments(find(section.name))
        except (UnknownValueError, KeyError, ConfigError):
            continue
        arguments = section.arguments
        defaults = {key: _as_lists(default) for key, default in known.items() if _is_plain(default)}
        filled = {**defaults, **known_items(arguments)}
        sections[section_name] = type(section)(**fields, **filled)
        if isinstance(arguments, KnownItems):
            sections[section_name].__pydantic_extra__ = KnownItems(filled, arguments.unknown)
    return config.model_copy(update=sections)


def algorithm_files(config: Config) -> list[Path]:
    """Source files of one's own that the algorithm and the aggregator rest on, parts included."""
    names = [config.algorithm.name, config.aggregate.name]
    references = [name for name in names if is_user_function(name)]
    references += [part["function"] for _, part in _user_parts(config.algorithm)]
    return sorted({file for reference in references for file in user_files(reference)})


def registry_issues(config: Config) -> Iterator[ConfigIssue]:
    """Unknown algorithms and aggregators, and invalid arguments."""
    for section_name in REGISTRIES:
        yield from until_unknown(_section_issues(config, section_name))
    for path, part in _user_parts(config.algorithm):
        yield from _user_part_issues(path, part)


def _section_issues(config: Config, section_name: str) -> Iterator[ConfigIssue]:
    section, names = getattr(config, section_name), list(REGISTRIES[section_name])
    name = section.name
    if not is_user_function(section.name) and section.name not in names:
        article = "an" if section_name[0] in "aeiou" else "a"
        yield ConfigIssue(
            (section_name, "name"),
            f"{short_repr(section.name)} is not {article} {section_name}",
            suggestion=closest_match(section.name, names),
            fix=f"one of {list_names(names, ALGORITHMS_PAGE)}, or file.py:function for one of your own",
            standalone=True,
        )
        name = closest_match(section.name, names, SIMILAR_NAME)
        if not name:
            return
    try:
        function = _FINDERS[section_name](name)
    except ConfigError as error:
        yield ConfigIssue((section_name, "name"), str(error), standalone=True)
        return
    yield from _argument_issues(
        (section_name,),
        name,
        section.arguments,
        algorithm_arguments(function),
        argument_types(function),
    )


def _user_parts(section: AlgorithmSection) -> Iterator[tuple[KeyPath, Mapping[str, Any]]]:
    """The valid parts of one's own in the arguments of a custom algorithm, each with its path."""
    for key, value in section.arguments.items():
        for index, part in enumerate(value if isinstance(value, list | tuple) else ()):
            if isinstance(part, Mapping) and part.get("type") == USER_PART:
                arguments = part.get("arguments", {})
                if isinstance(part.get("function"), str) and isinstance(arguments, Mapping):
                    yield ("algorithm", key, index), part


def _user_part_issues(path: KeyPath, part: Mapping[str, Any]) -> Iterator[ConfigIssue]:
    reference = part["function"]
    try:
        known = part_arguments(reference)
    except ConfigError as error:
        yield ConfigIssue((*path, "function"), str(error), standalone=True)
        return
    # Those that it takes from the section objectives may be missing.
    known = {
        k: None if d is inspect.Parameter.empty and k in OBJECTIVE_FIELDS else d for k, d in known.items()
    }
    arguments = part.get("arguments", {})
    yield from _argument_issues((*path, "arguments"), reference, arguments, known, user_types(reference))


def _argument_issues(
    path: KeyPath, name: str, arguments: Mapping[str, Any], known: Mapping[str, Any], hints: Mapping[str, Any]
) -> Iterator[ConfigIssue]:
    for key, value in arguments.items():
        if key in known:
            yield from value_issues((*path, key), value, hints.get(key, Any))
        else:
            values = {str(path[0]): {"name": name}}
            if fix := other_name_fix((*path, key), value, values):
                yield ConfigIssue((*path, key), "unknown key", fix=fix)
                continue
            match = closest_match(key, known)
            fix = f"{name} takes {list_names(known, ALGORITHMS_PAGE) or 'no arguments'}"
            suggestion = match and dotted_key((*path, match))
            yield ConfigIssue((*path, key), "unknown key", suggestion=suggestion, fix=fix)
    for key, default in known.items():
        if default is inspect.Parameter.empty and key not in arguments:
            yield ConfigIssue((*path, key), "is missing", fix=f"write {key} into {dotted_key(path)}")


def value_issues(path: KeyPath, value: object, hint: Any) -> Iterator[ConfigIssue]:
    """What is wrong with the value of an argument of this type."""
    key, config = str(path[-1]), ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    # An alias, since the argument may have a name that a field of a model cannot have.
    field: Any = (Annotated[value_type(hint), Field(alias=key)], ...)
    model = create_model("Arguments", __config__=config, value=field)
    try:
        model.model_validate({key: value})
    except ValidationError as error:
        for issue in schema_issues(error.errors(include_url=False), {key: value}, model):
            section = dotted_key(path[:-1])
            is_key = issue.suggestion and issue.problem == "unknown key"
            yield ConfigIssue(
                (*path[:-1], *issue.path),
                issue.problem,
                suggestion=f"{section}.{issue.suggestion}" if is_key else issue.suggestion,
                fix=issue.fix.replace(f" into {key}", f" into {section}.{key}"),
                standalone=True,
            )


def _is_plain(value: Any) -> bool:
    """True for what a recipe can say; a function of one's own may have any default."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _as_lists(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_as_lists(item) for item in value]
    return {key: _as_lists(item) for key, item in value.items()} if isinstance(value, Mapping) else value
