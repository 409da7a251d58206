"""One pass of a fake batch through all parts of an algorithm, with checks of what each part makes of it."""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields as dataclass_fields
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from paretune.core.batch import Batch, Outputs
from paretune.core.errors import ParetuneError, WiringError
from paretune.credit.base import CreditStep, flatten_steps
from paretune.loss.base import Loss, WeightedLoss, total_loss
from paretune.models.forward.logprobs import compute_outputs
from paretune.models.model_passes import Models, OldLogprobs
from paretune.reward.function_calls import Attempt, describe_error
from paretune.rl.algorithm_spec import AlgorithmSpec
from paretune.rl.data_flow import (
    WRITERS,
    FieldAccess,
    PartWiringError,
    RecordedBatch,
    missing_field,
    plain_batch,
)
from paretune.rl.dummy_models import DummyCritic, DummyModel, DummyModels
from paretune.rl.user_parts import apply_model_pass, apply_step, is_shipped, part_name, source_of

FIXED_FIELDS = ("input_ids", "attention_mask", "response_mask", "group", "scores")
"""What was sampled and scored: a part of the user's own may select rows of it, and change nothing."""
ADDITIVITY_RTOL = 1e-4
"""Relative difference of a loss and the sum over its micro-batches: far above the rounding of float32."""


class DryRun:
    """A spec on a fake batch with tiny models; `parts` has what each part reads and writes."""

    def __init__(self, spec: AlgorithmSpec, batch: Batch) -> None:
        self.spec, self.batch = spec, batch
        self.parts: list[FieldAccess] = []
        self.frozen, self.critic = DummyModels(), DummyCritic(1)
        self.num_rows = 0
        """Rows that the reward steps select."""

    def run(self) -> None:
        """Apply all parts.

        Raises:
            WiringError: The parts do not fit together; a PartWiringError where one part is to blame.
        """
        spec, rng = self.spec, torch.Generator().manual_seed(0)
        self._apply_steps("reward_steps", flatten_steps(spec.reward_steps), rng)
        self.critic, self.num_rows = DummyCritic(self.batch.rewards.shape[-1]), len(self.batch)
        models = Models(policy=DummyModel(1), critic=self.critic, frozen=self.frozen)
        for part, access in self._parts("model_passes", spec.model_passes):
            before = RecordedBatch.of(self.batch, access)
            after = _call(
                part, access, apply_model_pass, part, before, models, spec.temperature, self.num_rows
            )
            self._finish(part, access, before, after)
            if part == OldLogprobs():
                access.writes.clear()  # the default, which costs nothing: it may be left unread
        self._apply_steps("credit", flatten_steps(spec.credit), rng)
        self.batch = self.batch.replace(loss_weights=spec.loss_aggregation(self.batch.response_mask))
        self._apply_losses(models)

    def _parts(self, argument: str, parts: Sequence[Any]) -> Iterator[tuple[Any, FieldAccess]]:
        for index, part in enumerate(parts):
            access = FieldAccess(part_name(part), argument, len(parts) - 1 - index)
            self.parts.append(access)
            yield part, access

    def _apply_steps(self, argument: str, steps: Sequence[CreditStep], rng: torch.Generator) -> None:
        for step, access in self._parts(argument, steps):
            state = _call(step, access, step.init_state)
            before = RecordedBatch.of(self.batch, access)
            after, _, _ = _call(step, access, apply_step, step, before, state, rng)
            self._finish(step, access, before, after)

    def _finish(self, part: object, access: FieldAccess, before: Batch, after: Batch) -> None:
        access.finish(before, after)
        before, self.batch = plain_batch(before), plain_batch(after)
        changed = "" if is_shipped(part) else _changed_field(before, self.batch)
        if changed:
            raise PartWiringError(
                f"{access.name} changes batch.{changed}, which was sampled; fix: write rewards, "
                "token_rewards or advantages, or leave rows out by batch.select",
                access,
            )

    def _apply_losses(self, models: Models) -> None:
        spec, batch = self.spec, self.batch
        out = self._outputs(models, batch)
        if not spec.losses:
            total_loss(spec.losses, out, batch)  # raises the error
        for part, access in self._parts("losses", [term.loss for term in spec.losses]):
            value = _loss(part, access, out, batch)
            if not value.requires_grad:
                raise PartWiringError(
                    f"{access.name} depends neither on the policy nor on the critic, so nothing would be "
                    "trained by it; fix: compute it from the outputs, such as out.logprobs",
                    access,
                )
            if not is_shipped(part):
                self._check_own_loss(part, access, models, value)

    def _outputs(self, models: Models, batch: Batch) -> Outputs:
        return compute_outputs(
            models.policy,
            batch,
            self.spec.requires() | {"entropy"},  # as in a training step, for the metrics
            temperature=self.spec.temperature,
            references=models.frozen,
            critic=models.critic if self.spec.uses_critic else None,
        )

    def _check_own_loss(self, loss: Loss, access: FieldAccess, models: Models, value: Tensor) -> None:
        """A loss and its gradient are finite, and the losses of micro-batches add up to that of the batch.

        Raises:
            PartWiringError: They do not.
        """
        name, batch = access.name, self.batch
        if not value.isfinite():
            raise PartWiringError(
                f"{name} is {float(value.detach()):g}; fix: a finite loss where advantages, "
                "log-probabilities and loss_weights are finite",
                access,
            )
        parameters = [*models.policy.parameters(), *self.critic.parameters()]
        gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        if not all(gradient.isfinite().all() for gradient in gradients if gradient is not None):
            raise PartWiringError(
                f"the gradient of {name} is not finite (the square root or the norm of 0?); fix: add a small "
                "number inside",
                access,
            )
        value = value.detach()
        parts = [batch.select((batch.group == group).nonzero().squeeze(-1)) for group in batch.group.unique()]
        total = sum(float(_loss(loss, access, self._outputs(models, p), p).detach()) for p in parts)
        if abs(total - float(value)) > ADDITIVITY_RTOL * max(abs(total), abs(float(value))):
            raise PartWiringError(
                f"{name} is {float(value):.4g} on a batch and {total:.4g} as the sum over its micro-batches, "
                "so that it would depend on training.max_tokens_per_pass; fix: (loss_per_token * "
                'batch.require("loss_weights")).sum()',
                access,
            )


def _loss(loss: Loss, access: FieldAccess, out: Outputs, batch: Batch) -> Tensor:
    """The loss of these rows, after a call of its metrics."""
    recorded = RecordedBatch.of(batch, access)
    value, _ = _call(loss, access, total_loss, [WeightedLoss(1.0, loss)], out, recorded)
    if not is_shipped(loss):
        _call(loss, access, _check_metrics, loss, out, recorded)
    access.writes.clear()  # what a loss replaces in the batch is its own
    return value


def _check_metrics(loss: Loss, out: Outputs, batch: Batch) -> None:
    """The metrics of a loss of the user's own are tensors of the shapes that are averaged.

    Raises:
        WiringError: They are not.
    """
    shape = batch.response_mask.shape
    for key, x in loss.metrics(out, batch).items():
        if not isinstance(x, Tensor) or x.shape != shape:
            raise WiringError(
                f'{part_name(loss)}.metrics: "{key}" is no tensor [B, T]; fix: one value per token'
            )
    for key, x in loss.group_metrics(out, batch).items():
        if not isinstance(x, Tensor) or x.ndim != 1:
            raise WiringError(
                f'{part_name(loss)}.group_metrics: "{key}" is no tensor [N]; fix: one value per group'
            )


def _call(part: object, access: FieldAccess, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function that applies a part; what the part does wrong is an error with its place.

    Raises:
        PartWiringError: The part does not fit, or is the user's own and raised an error.
    """
    own = [each for each in arguments if isinstance(each, torch.Generator)]
    states = {each: each.get_state() for each in own}
    before = {name: generator.get() for name, generator in _GENERATORS.items()}
    with Attempt() as attempt:  # a part of the user's own can raise anything
        attempt.value = function(*arguments)
    error = attempt.error
    changed = [] if is_shipped(part) else _restore(before)
    for name in changed if error is None else ():
        for each, state in states.items():
            each.set_state(state)
        _GENERATORS[name].seed(_OTHER_SEED)
        with Attempt() as again:
            again.value = function(*arguments)
        _restore(before)
        if again.error is None and not _is_same(attempt.value, again.value):
            raise PartWiringError(
                f"{access.name} draws from the global generator of {name}, so a resumed run would differ; "
                "fix: draw from the argument rng of apply_stateful",
                access,
            )
    if error is None:
        return attempt.value
    if isinstance(error, WiringError) and not isinstance(error, PartWiringError):
        raise PartWiringError(str(error), access) from error
    if isinstance(error, ParetuneError) or is_shipped(part):
        raise error
    reads = sorted(access.missing & WRITERS.keys()) if "NoneType" in str(error) else []
    reason = f": {missing_field(access.name, reads[0])}" if reads else ""
    raise PartWiringError(f"{access.name} raised {describe_error(error, source_of(part))}{reason}", access)


class _Generator(NamedTuple):
    """A generator of random numbers that is global."""

    get: Callable[[], Any]
    set: Callable[[Any], object]
    seed: Callable[[int], object]


_OTHER_SEED = 1_234_567
_GENERATORS = {
    "torch": _Generator(torch.get_rng_state, torch.set_rng_state, torch.default_generator.manual_seed),
    "numpy": _Generator(np.random.get_state, np.random.set_state, np.random.seed),
    "random": _Generator(random.getstate, random.setstate, random.seed),
}


def _restore(states: Mapping[str, Any]) -> list[str]:
    """Set the global generators back; returns the names of those that had changed."""
    changed = [name for name, state in states.items() if _content(_GENERATORS[name].get()) != _content(state)]
    for name in changed:
        _GENERATORS[name].set(states[name])
    return changed


def _content(state: Any) -> object:
    """The state of a generator as something that can be compared."""
    if isinstance(state, tuple):
        return tuple(map(_content, state))
    return np.asarray(state).tobytes() if isinstance(state, Tensor | np.ndarray) else state


def _is_same(x: object, y: object) -> bool:
    """Whether two results of a part are equal, NaN being equal to NaN."""
    if isinstance(x, Batch) and isinstance(y, Batch):
        x, y = ([object.__getattribute__(each, f.name) for f in dataclass_fields(Batch)] for each in (x, y))
    if isinstance(x, Mapping) and isinstance(y, Mapping):
        x, y = list(x.items()), list(y.items())
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return x.shape == y.shape and torch.allclose(x.double(), y.double(), 0.0, 0.0, equal_nan=True)
    if isinstance(x, list | tuple) and isinstance(y, list | tuple):
        return len(x) == len(y) and all(map(_is_same, x, y))
    # Of other objects it is not known.
    return not isinstance(x, float | int) or x == y or math.isnan(x)


def _changed_field(before: Batch, after: Batch) -> str:
    """The first fixed field that is not that of some rows of the batch; "" if all are."""
    fields = [f for f in FIXED_FIELDS if getattr(after, f) is not getattr(before, f)]
    if after.input_ids is before.input_ids:
        return next((f for f in fields if _row_bytes(before, [f]) != _row_bytes(after, [f])), "")

    def are_rows(names: Sequence[str]) -> bool:
        return set(_row_bytes(after, names)) <= set(_row_bytes(before, names))

    if are_rows(fields):
        return ""
    return next((f for f in fields if are_rows([name for name in fields if name != f])), fields[0])


def _row_bytes(batch: Batch, fields: Sequence[str]) -> list[bytes]:
    """The content of each row, NaN being equal to NaN."""
    values = [getattr(batch, f).numpy() for f in fields]
    return [b"|".join(value[i].tobytes() for value in values) for i in range(len(batch))]
