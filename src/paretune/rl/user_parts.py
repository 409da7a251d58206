"""Parts that are the user's own: which part an error comes from, and checks of what a part returns."""

import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from numbers import Real
from pathlib import Path
from traceback import walk_tb
from typing import Any, TypeVar, get_args, get_type_hints

import torch
from torch import Tensor

from paretune.core.batch import Batch
from paretune.core.errors import ParetuneError, WiringError
from paretune.credit.base import Chain, CreditStep, Metrics, State, flatten_steps
from paretune.models.model_passes import ModelPass, Models
from paretune.reward.function_calls import Attempt, describe_error, line_of_error
from paretune.rl.algorithm_spec import AlgorithmSpec
from paretune.rl.evolution.spec import EvolutionSpec

ResultT = TypeVar("ResultT")

MAX_TRACEBACK_LINES = 8
"""Lines of the traceback that are printed with an error of a run: the innermost calls."""
REWARD_FIELDS = ("rewards", "token_rewards")
"""Fields in which NaN means that a response is not scored."""
PER_ROW_FIELDS = frozenset({"truncated", "format_valid", "category", "preference_weights", "group"})
"""Fields without numbers per token."""


def part_name(part: object) -> str:
    """The class of a part, or the name of a function that is one."""
    return str(getattr(part, "__name__", type(part).__name__))


def is_shipped(part: object) -> bool:
    """Whether a part comes with the package."""
    return _module_of(part).startswith("paretune.")


def user_parts_of(spec: AlgorithmSpec | EvolutionSpec) -> list[object]:
    """The parts of a spec and of its phases that are the user's own."""
    return [part for each in spec.all_specs() for part in _parts_of(each) if not is_shipped(part)]


def call_with_user_parts(
    spec: AlgorithmSpec | EvolutionSpec, call: Callable[[], ResultT], step: int | None = None
) -> ResultT:
    """Call a function that applies the parts of a spec; what one of the user's own raises is a WiringError.

    Args:
        spec: The algorithm.
        call: A dry run, or a training step.
        step: The training step, for the message; None: a dry run.

    Raises:
        WiringError: A part of the user's own raised an error, which is named with its line.
    """
    if not user_parts_of(spec):
        return call()
    with Attempt() as attempt:
        attempt.value = call()
    if attempt.error is None:
        result: ResultT = attempt.value
        return result
    error = attempt.error
    reported = error if isinstance(error, ParetuneError) else _error_of_part(user_parts_of(spec), error, step)
    if step is not None and isinstance(error, WiringError):
        reported = WiringError(f"training step {step}: {error}")
    if reported is error:
        raise error
    raise reported from error


def _error_of_part(own: list[object], error: BaseException, step: int | None) -> BaseException:
    """The error as one of the part it comes from; in a training step, itself if it comes from no own part."""
    part = _raising_part(own, error)
    if part is not None:
        source = source_of(part)
        problem = f"{part_name(part)} raised {describe_error(error, source)}"
        if step is None:
            return WiringError(problem)
        return WiringError(
            f"training step {step}: {problem}; fix: mend {part_name(part)}, and give run.output_dir another "
            f"folder, since a run does not resume with other code\n{_traceback_lines(error, source)}"
        )
    if step is not None:
        return error
    names = ", ".join(dict.fromkeys(part_name(part) for part in own))
    return WiringError(
        f"the dry run raised {describe_error(error)}, after a part of your own ({names}) returned something "
        "that the others cannot use"
    )


def _raising_part(own: list[object], error: BaseException) -> object | None:
    """The part whose method is in the traceback, or whose file is, where no object tells."""
    for frame, _ in walk_tb(error.__traceback__):
        for part in own:
            if frame.f_locals.get("self") is part or getattr(part, "__code__", None) is frame.f_code:
                return part
    in_file = (part for part in own if line_of_error(error, source_of(part)) is not None)
    return next(in_file, None)


def _traceback_lines(error: BaseException, source: Path | None) -> str:
    """The end of the traceback, from the first line of the part's file on."""
    frames = traceback.extract_tb(error.__traceback__)
    first = next((i for i, frame in enumerate(frames) if frame.filename == str(source)), 0)
    lines = "".join(traceback.format_list(frames[first:])).rstrip().splitlines()
    return "\n".join(lines[-MAX_TRACEBACK_LINES:])


def apply_steps(
    step: CreditStep, batch: Batch, state: State, rng: torch.Generator
) -> tuple[Batch, State, Metrics]:
    """As `CreditStep.apply_stateful` of a chain, with checks of what the user's own steps return.

    Raises:
        WiringError: One returns something that the next ones cannot use.
    """
    if not isinstance(step, Chain):
        return apply_step(step, batch, state, rng)
    next_states: list[State] = []
    metrics: Metrics = {}
    for inner, inner_state in zip(step.steps, state, strict=True):
        batch, next_state, step_metrics = apply_steps(inner, batch, inner_state, rng)
        next_states.append(next_state)
        metrics |= step_metrics
    return batch, tuple(next_states), metrics


def apply_step(
    step: CreditStep, batch: Batch, state: State, rng: torch.Generator
) -> tuple[Batch, State, Metrics]:
    """One step; what a step of the user's own returns is checked.

    Raises:
        WiringError: It returns something that the next ones cannot use.
    """
    if is_shipped(step):
        return step.apply_stateful(batch, state, rng)
    name, versions = part_name(step), _versions(batch)
    result: Any = step.apply_stateful(batch, state, rng)
    if not (isinstance(result, tuple) and len(result) == 3):
        kind = f"{len(result)} values" if isinstance(result, tuple) else f"a {type(result).__name__}"
        raise WiringError(f"{name}.apply_stateful returns {kind}; fix: return batch, state, metrics")
    after, state, metrics = result
    _check_batch(name, batch, after, versions)
    wrong = [
        str(key)
        for key, x in (metrics.items() if isinstance(metrics, Mapping) else [("metrics", metrics)])
        if not (isinstance(key, str) and isinstance(x, Real))
    ]
    if wrong:
        raise WiringError(
            f"{name} returns metrics that are no numbers ({', '.join(wrong)}); fix: a dict from names to "
            "numbers, such as float(x.mean())"
        )
    return after, state, metrics


def apply_model_pass(
    model_pass: ModelPass, batch: Batch, models: Models, temperature: float, rows_per_pass: int
) -> Batch:
    """One model pass; what a pass of the user's own returns is checked.

    Raises:
        WiringError: It returns something that the next parts cannot use.
    """
    if is_shipped(model_pass):
        return model_pass(batch, models, temperature, rows_per_pass)
    versions = _versions(batch)
    after = model_pass(batch, models, temperature, rows_per_pass)
    _check_batch(part_name(model_pass), batch, after, versions)
    return after


def _versions(batch: Batch) -> dict[str, int]:
    """How often each tensor was changed in place; tensors of inference mode do not count that."""
    return {f: x._version for f in _annotations() if (x := _tensor(batch, f)) is not None}


def _tensor(batch: Batch, field: str) -> Tensor | None:
    x = object.__getattribute__(batch, field)  # not recorded as read by the part
    return x if isinstance(x, Tensor) and not x.is_inference() else None


def _check_batch(name: str, before: Batch, after: Any, versions: Mapping[str, int]) -> None:
    """The batch that a part of the user's own returns: types, shapes, and no NaN where a number was.

    Raises:
        WiringError: Something is wrong, with the name of the part.
    """
    if not isinstance(after, Batch):
        raise WiringError(f"{name} returns a {type(after).__name__}; fix: return batch.replace(...)")
    if not len(after):
        raise WiringError(f"{name} selects no rows; fix: return the batch as it was where none would be left")
    for field, version in versions.items():
        x = _tensor(before, field)
        if x is not None and x._version != version and field != "scores":
            raise WiringError(f"{name} changes batch.{field} in place; fix: batch.replace({field}=...)")
    for field in _annotations():
        old, new = (object.__getattribute__(each, field) for each in (before, after))
        if new is old or new is None:
            continue
        problem = (
            _field_problem(field, new, after)
            or _number_problem(field, new, before, after)
            or _unscored_problem(field, new, before, after)
        )
        if field == "scores" and after.input_ids is before.input_ids:
            problem = "writes batch.scores, which never change; fix: write batch.rewards"
        if problem:
            raise WiringError(f"{name} {problem}")


@cache
def _annotations() -> dict[str, Any]:
    """The jaxtyping annotation of every field that is a tensor."""
    hints = {
        name: next(each for each in (*get_args(hint), hint) if each is not type(None))
        for name, hint in get_type_hints(Batch).items()
    }
    return {name: hint for name, hint in hints.items() if hasattr(hint, "dim_str")}


def _field_problem(field: str, value: Any, batch: Batch) -> str:
    """What is wrong with the type or the shape of a value; "" if nothing is."""
    hint = _annotations()[field]
    dims = hint.dim_str.split()
    if not isinstance(value, Tensor):
        return f"writes a {type(value).__name__} into batch.{field}; fix: a tensor [{', '.join(dims)}]"
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in hint.dtypes:
        kind = {"Bool": "booleans", "Int": "integers", "Float": "floats"}[hint.__name__.partition("[")[0]]
        return f"writes {dtype} into batch.{field}, which holds {kind}; fix: convert it by .to(...)"
    if value.requires_grad:
        return f"writes batch.{field} with a gradient, which only losses have; fix: .detach()"
    rows, width = object.__getattribute__(batch, "input_ids").shape
    sizes = {"B": rows, "T": width}
    fits = value.ndim == len(dims) and all(
        sizes.get(dim, size) == size for dim, size in zip(dims, value.shape, strict=True)
    )
    if fits:
        device = object.__getattribute__(batch, "input_ids").device
        return "" if value.device == device else f"writes batch.{field} on {value.device}; fix: .to({device})"
    expected = ", ".join(f"{dim}={sizes[dim]}" if dim in sizes else dim for dim in dims)
    return f"writes batch.{field} of shape {list(value.shape)}, and its shape is [{expected}]; fix: " + (
        "keep the last dimension, of size 1 for one objective (keepdim=True)"
        if value.ndim < len(dims)
        else f"[{expected}], of which B is the rows and T the tokens of the batch"
    )


def _number_problem(field: str, value: Tensor, before: Batch, after: Batch) -> str:
    """NaN or infinity that a part made; "" if there is none."""
    if not value.is_floating_point() or field in PER_ROW_FIELDS or field == "scores":
        return ""
    rewards, scores = (object.__getattribute__(before, f) for f in ("rewards", "scores"))
    unscored = rewards.isnan().any(-1) | scores.isnan().any(-1)
    if field in REWARD_FIELDS:
        invalid = ~value.isfinite().flatten(1).all(1)
        if after.input_ids is before.input_ids:
            invalid &= ~unscored | value.isinf().flatten(1).any(1)
        elif unscored.any():
            invalid = value.isinf().flatten(1).any(1)  # it is not known which rows were selected
        fix = (
            "NaN means not scored; write a number (0 / 0 where all rewards are equal?), or leave rows out by "
        )
        fix += "batch.select"
    else:
        mask = object.__getattribute__(after, "response_mask")
        invalid = (~value.isfinite() & mask.reshape(*mask.shape, *[1] * (value.ndim - 2))).flatten(1).any(1)
        fix = "write finite numbers at all response tokens, 0 where the reward is NaN (not scored)"
    if not invalid.any():
        return ""
    kind = "infinity" if value[invalid].isinf().any() and not value[invalid].isnan().any() else "NaN"
    whose = " of scored responses" if field in REWARD_FIELDS else ""
    return f"makes {kind} in {field}{whose} ({int(invalid.sum())} of {len(value)} rows); fix: {fix}"


def _unscored_problem(field: str, value: Tensor, before: Batch, after: Batch) -> str:
    """A reward, or an advantage other than 0, that a part gives a response without any; "" if it does not.

    A response that has some of its rewards may be aggregated, by whatever the part does with missing ones,
    and one in an invalid format may get a reward for that.
    """
    if field not in (*REWARD_FIELDS, "advantages"):
        return ""
    rewards, scores = (object.__getattribute__(before, f).isnan().all(-1) for f in ("rewards", "scores"))
    if after.input_ids is before.input_ids:
        unscored = rewards
    elif bool((rewards == scores).all()):
        unscored = object.__getattribute__(after, "scores").isnan().all(-1)  # of the rows it selected
    else:
        return ""  # it is not known which rows were selected
    if field == "rewards":
        given = value.isfinite()
    else:
        given = value.isfinite() & object.__getattribute__(after, "response_mask")[..., None]
        given &= (value != 0) if field == "advantages" else True
    format_valid = object.__getattribute__(after, "format_valid")
    wrong = unscored & given.flatten(1).any(1) & (True if format_valid is None else format_valid)
    if not wrong.any():
        return ""
    row = int(wrong.nonzero()[0])
    name, number = field.removesuffix("s").replace("_", " "), float(value[row][given[row]][0])
    fix = "write 0 where the reward is NaN" if field == "advantages" else "leave NaN as it is"
    return f"gives response {row}, which was not scored, the {name} {number:.4g}; fix: {fix}"


def _module_of(part: object) -> str:
    return str(part.__module__ if hasattr(part, "__code__") else type(part).__module__)


def source_of(part: object) -> Path | None:
    """The file of a part's code; None without one."""
    file = getattr(sys.modules.get(_module_of(part)), "__file__", None)
    return None if file is None else Path(file)


def _parts_of(spec: AlgorithmSpec | EvolutionSpec) -> Iterator[object]:
    yield from flatten_steps(spec.reward_steps)
    yield from flatten_steps(spec.credit)
    yield from (term.loss for term in spec.losses)
    if isinstance(spec, AlgorithmSpec):
        yield from spec.model_passes
