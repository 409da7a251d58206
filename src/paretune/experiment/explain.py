"""The algorithm of a recipe as parts: what each does, and the same algorithm as one to edit."""

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from paretune.algorithms import ALGORITHMS
from paretune.algorithms.custom import custom_arguments
from paretune.algorithms.docstrings import summary
from paretune.config import Config, bundled_recipes
from paretune.config.build import CUSTOM, Spec, algorithm_constraints, base_spec, build_spec
from paretune.config.issues import closest_match
from paretune.core.errors import ConfigError, WiringError
from paretune.credit.base import flatten_steps
from paretune.rl.algorithm_spec import LABEL_WIDTH, AlgorithmSpec

WIDTH = 110


def explain(config: Config) -> str:
    """The parts of the algorithm with what each does, then the same as `custom`, or why there is none.

    Raises:
        WiringError: The parts of the algorithm do not fit together.
    """
    return "\n".join([*_explain_parts(build_spec(config)), "", *_explain_custom(config)])


def refuse_algorithm_name(recipe: str) -> None:
    """Say how an algorithm is explained, where its name stands in the place of a recipe.

    Raises:
        ConfigError: It is the name of an algorithm, or nearly one, and neither a file nor a shipped recipe.
    """
    if Path(recipe).exists() or recipe in bundled_recipes() or Path(recipe).suffix:
        return
    name = recipe if recipe in ALGORITHMS else closest_match(recipe, ALGORITHMS)
    if not name or closest_match(recipe, bundled_recipes()):
        return
    what = "is an algorithm" if name == recipe else f'is no recipe, and nearly the algorithm "{name}"'
    raise ConfigError(
        f"{recipe}: {what}, whose parts depend on a recipe; fix: name a recipe of yours, or a shipped one "
        f"with another algorithm, such as `paretune explain demo algorithm.name={name}`"
    )


def custom_section(config: Config) -> dict[str, Any]:
    """The section `algorithm` with which the recipe has the same algorithm, from parts.

    Raises:
        WiringError: The algorithm cannot be written like that.
    """
    spec = base_spec(config, gates=())  # custom adds the gates of the objectives
    if not isinstance(spec, AlgorithmSpec):
        raise WiringError(f"{spec.name} is gradient-free, and custom has losses")
    return {"name": CUSTOM, **custom_arguments(spec, config.weights, algorithm_constraints(config))}


def _explain_parts(spec: Spec) -> Iterator[str]:
    sentences = {type(part).__name__: summary(type(part)) for part in _parts_of(spec)}
    for line in spec.describe():
        yield line
        words = line[LABEL_WIDTH:].strip().partition("(")[0].split()
        text = sentences.get(words[-1], "") if words else ""
        yield from textwrap.wrap(text, WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)


_INDENT = " " * (LABEL_WIDTH + 3)


def _parts_of(spec: Spec) -> Iterator[object]:
    yield spec.rollout
    yield from flatten_steps(spec.reward_steps)
    yield from flatten_steps(spec.credit)
    for each in (spec, *spec.all_specs()):
        if isinstance(each, AlgorithmSpec):
            yield from (each.rollout, each.loss_aggregation, each.critic, each.auxiliary_lm)
            yield from (*flatten_steps(each.reward_steps), *each.model_passes, *flatten_steps(each.credit))
            yield from (term.loss for term in each.losses)
    yield from spec.phases


def _explain_custom(config: Config) -> Iterator[str]:
    if config.algorithm.name == CUSTOM:
        yield "The section algorithm has the parts already: edit them there."
        return
    try:
        section = custom_section(config)
    except WiringError as error:
        yield f"There is no such algorithm from parts: {error}."
        return
    yield "The same algorithm from parts, in place of the section algorithm, to paste and edit:"
    yield ""
    yield from section_yaml(section).splitlines()


def section_yaml(section: Mapping[str, Any]) -> str:
    """The section `algorithm` as YAML, with one part per line."""
    return yaml.safe_dump(
        {"algorithm": dict(section)},
        sort_keys=False,
        default_flow_style=None,
        width=WIDTH,
        allow_unicode=True,
    )
