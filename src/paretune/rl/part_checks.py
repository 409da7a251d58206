"""One pass of a fake batch through all parts of an algorithm, with checks of what each part makes of it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

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
            self._finish(access, before, after)
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
            self._finish(access, before, after)

    def _finish(self, access: FieldAccess, before: Batch, after: Batch) -> None:
        access.finish(before, after)
        self.batch = plain_batch(after)

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
    with Attempt() as attempt:  # a part of the user's own can raise anything
        attempt.value = function(*arguments)
    error = attempt.error
    if error is None:
        return attempt.value
    if isinstance(error, WiringError) and not isinstance(error, PartWiringError):
        raise PartWiringError(str(error), access) from error
    if isinstance(error, ParetuneError) or is_shipped(part):
        raise error
    reads = sorted(access.missing & WRITERS.keys()) if "NoneType" in str(error) else []
    reason = f": {missing_field(access.name, reads[0])}" if reads else ""
    raise PartWiringError(f"{access.name} raised {describe_error(error, source_of(part))}{reason}", access)
