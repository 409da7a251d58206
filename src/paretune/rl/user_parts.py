"""Errors of parts that are the user's own, which can raise anything."""

import sys
from collections.abc import Iterator
from pathlib import Path

from paretune.core.errors import ParetuneError, WiringError
from paretune.credit.base import flatten_steps
from paretune.reward.function_calls import describe_error, line_of_error
from paretune.rl.algorithm_spec import AlgorithmSpec
from paretune.rl.evolution.spec import EvolutionSpec


def user_part_error(spec: AlgorithmSpec | EvolutionSpec, error: BaseException) -> BaseException:
    """An error of a dry run as one of the part that it comes from; itself if all parts are shipped."""
    own = [part for each in spec.all_specs() for part in _parts_of(each) if not _is_shipped(part)]
    if not own or isinstance(error, ParetuneError):
        return error
    for part in own:
        file = getattr(sys.modules.get(type(part).__module__), "__file__", None)
        if file is not None and line_of_error(error, Path(file)) is not None:
            return WiringError(f"{type(part).__name__} raised {describe_error(error, Path(file))}")
    names = ", ".join(dict.fromkeys(type(part).__name__ for part in own))
    return WiringError(
        f"the dry run raised {describe_error(error)}, after a part of your own ({names}) returned something "
        "that the others cannot use"
    )


def _parts_of(spec: AlgorithmSpec | EvolutionSpec) -> Iterator[object]:
    yield from flatten_steps(spec.reward_steps)
    yield from flatten_steps(spec.credit)
    yield from (term.loss for term in spec.losses)
    if isinstance(spec, AlgorithmSpec):
        yield from spec.model_passes


def _is_shipped(part: object) -> bool:
    return type(part).__module__.startswith("paretune.")
