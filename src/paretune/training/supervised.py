"""Supervised fitting, of a policy to demonstrations or of a reward model to ratings and pairs.

A task says what a training example (a *unit*: one row, or the two rows of a pair) costs; the loop cuts each
optimiser step into micro-batches of rows of like length. Every denominator is that of the whole optimiser
step, so the gradient is the same for every cut.

Demonstrations learnt beside an alignment, a few in every optimiser step.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from paretune.core.errors import (
    ConfigError,
    DataError,
    NonFiniteError,
    WiringError,
    format_issue,
    join_issues,
)
from paretune.core.reductions import token_weights
from paretune.core.rng import torch_generator
from paretune.data.chat import encode_prompt, encode_response
from paretune.data.records import Demonstration
from paretune.models.forward.length_batching import pad_sequences
from paretune.models.forward.logprobs import compute_logprobs, device_of
from paretune.models.load import PolicyModel, context_length
from paretune.run.folder import Run
from paretune.run.system import peak_rss_bytes
from paretune.training.checkpoint import list_checkpoints, load_latest_checkpoint, save_checkpoint
from paretune.training.guards import StopRequest
from paretune.training.microbatch import example_microbatch_indices
from paretune.training.optimizer import Optimizer, OptimizerConfig

MicrobatchLossFn = Callable[[Sequence[int]], tuple[Tensor, dict[str, float]]]
"""From positions within an optimiser step to their share of its loss and of its metrics."""

FitStepCallback = Callable[[int, int, dict[str, float]], None]
"""Hears (step from 0, steps in all, metrics) after each optimiser step."""


@runtime_checkable
class SupervisedTask(Protocol):
    """What is fitted, and to what."""

    model: nn.Module
    lengths: Sequence[Sequence[int]]
    """For each unit, the number of tokens of each of its rows."""

    def make_loss_fn(self, indices: Sequence[int]) -> MicrobatchLossFn:
        """Fix the denominators of one optimiser step over these units."""
        ...

    def example_name(self, index: int) -> str:
        """What a person would look for to find this unit in the data."""
        ...


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig:
    """How a fit goes."""

    num_train_epochs: int = 2
    batch_size: int = 32
    """Units of an optimiser step."""
    max_tokens_per_pass: int = 4096
    """Tokens of a forward pass; changes memory and speed only."""
    optim_config: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=3e-4, warmup_ratio=0.05, lr_scheduler_type="cosine"
        )
    )

    def num_steps(self, num_examples: int) -> int:
        """Optimiser steps over that many units."""
        return self.num_train_epochs * math.ceil(num_examples / self.batch_size)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Where a fit writes its metrics and keeps its checkpoints, and how often."""

    run: Run
    checkpoint_dir: Path
    """Of the checkpoints; one fit, one folder."""
    save_steps: int = 50
    save_total_limit: int = 2


def fit(
    task: SupervisedTask,
    config: SupervisedConfig,
    *,
    seed: int,
    checkpoint_config: CheckpointConfig | None = None,
    on_step: FitStepCallback | None = None,
) -> None:
    """Fit the task's model in place; the same call again goes on from the last checkpoint, bit for bit.

    Args:
        task: What is fitted.
        config: Epochs, batch and optimiser.
        seed: With the epoch, the order of the units.
        checkpoint_config: Metrics and checkpoints; nothing is written without it.
        on_step: Hears of every step after it was written down.

    Raises:
        WiringError: Nothing to train, or nothing to learn from.
        ConfigError: The checkpoint is of another fit.
        TrainingGuard: A number was not finite; the update did not reach the weights.
        Stopped: SIGTERM came; a checkpoint was written first.
    """
    if not task.lengths:
        raise WiringError("a fit got no data; fix: check the filters of its sources")
    task.model.eval()  # dropout would make every forward pass another function
    optimizer = Optimizer(config.optim_config, task.model.parameters())
    identity, steps = _fit_identity(task, config, seed), config.num_steps(len(task.lengths))
    first = _start_or_resume(task, optimizer, checkpoint_config, identity) if checkpoint_config else 0
    with StopRequest() as stop:
        for step, units in enumerate(_shuffled_batches(len(task.lengths), config, seed)):
            if step < first:
                continue
            metrics = _training_step(task, config, optimizer, step, steps, units, checkpoint_config)
            if on_step is not None:
                on_step(step, steps, metrics)
            done = step + 1
            if checkpoint_config and (
                done % checkpoint_config.save_steps == 0 or done == steps or stop.requested
            ):
                _save_checkpoint(task, optimizer, checkpoint_config, identity, done)
            stop.raise_if_stopped(f"step {done} of {steps} of a fit" if checkpoint_config else "")


def _shuffled_batches(num_examples: int, config: SupervisedConfig, seed: int) -> Iterator[list[int]]:
    """Every unit once an epoch, in an order that depends on the seed and the epoch alone."""
    for epoch in range(config.num_train_epochs):
        order = torch.randperm(num_examples, generator=torch_generator(seed, epoch, "fit order"))
        for units in order.split(config.batch_size):
            yield units.tolist()


def _training_step(
    task: SupervisedTask,
    config: SupervisedConfig,
    optimizer: Optimizer,
    step: int,
    max_steps: int,
    indices: list[int],
    checkpoint_config: CheckpointConfig | None,
) -> dict[str, float]:
    """One optimiser step."""
    clock, part = time.perf_counter(), task.make_loss_fn(indices)
    metrics: dict[str, float] = {"fit/loss": 0.0}
    optimizer.zero_grad()
    lengths = [task.lengths[u] for u in indices]
    for positions in example_microbatch_indices(lengths, config.max_tokens_per_pass, task.model):
        loss, found = part(positions)
        value = float(loss.detach())
        if not math.isfinite(value):
            _require_finite(
                value,
                "the loss",
                step,
                [task.example_name(indices[i]) for i in _non_finite_positions(part, positions)],
                checkpoint_config,
            )
        loss.backward()
        for key, more in {"fit/loss": value, **found}.items():
            metrics[key] = metrics.get(key, 0.0) + more
    norm, lr = optimizer.grad_norm(), config.optim_config.learning_rate_at_step(step, max_steps)
    _require_finite(
        norm, "the norm of the gradient", step, [task.example_name(u) for u in indices], checkpoint_config
    )
    optimizer.step(lr, norm)
    metrics |= {"grad_norm": norm, "lr": lr}
    if checkpoint_config:
        checkpoint_config.run.log_metrics(step, metrics)
        seconds, tokens = time.perf_counter() - clock, sum(map(sum, lengths))
        checkpoint_config.run.log_timing(
            step, seconds=seconds, tokens=tokens, trained_tokens=tokens, memory=peak_rss_bytes()
        )
    return metrics


@torch.no_grad()
def _non_finite_positions(loss_fn: MicrobatchLossFn, positions: Sequence[int]) -> Sequence[int]:
    """Those whose own share of the loss is not finite; all of them where it is only their sum."""
    return [i for i in positions if not math.isfinite(float(loss_fn([i])[0]))] or positions


def _require_finite(
    value: float, quantity: str, step: int, names: Sequence[str], checkpoint_config: CheckpointConfig | None
) -> None:
    if not math.isfinite(value):
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        kept = checkpoint_config is not None and bool(list_checkpoints(checkpoint_config.checkpoint_dir))
        intact = "the last checkpoint is intact" if kept else "there is no checkpoint yet"
        lower = "; a lower lr may help" if step else ""  # before the first update no rate is to blame
        raise NonFiniteError(
            f"fit step {step}: {quantity} is {value}, on {', '.join(names[:5])}{more}; this update did not reach "
            f"the weights, and {intact}; fix: look at these records{lower}"
        )


def _fit_identity(task: SupervisedTask, config: SupervisedConfig, seed: int) -> dict[str, Any]:
    """What must be equal for a checkpoint to be of this fit; the cut into micro-batches may change."""
    flat = [n for rows in task.lengths for n in rows]
    return {
        "units": len(task.lengths),
        "lengths": sum(i * n for i, n in enumerate(flat, 1)),
        "seed": seed,
        "epochs": config.num_train_epochs,
        "batch": config.batch_size,
        "optim": repr(config.optim_config),
    }


def _trainable_parameters(task: SupervisedTask) -> dict[str, Tensor]:
    return {name: p for name, p in task.model.named_parameters() if p.requires_grad}


def _save_checkpoint(
    task: SupervisedTask,
    optimizer: Optimizer,
    checkpoint_config: CheckpointConfig,
    identity: dict[str, Any],
    step: int,
) -> None:
    trees = {"weights": _trainable_parameters(task), "optimizer": optimizer.state_dict()}
    save_checkpoint(
        checkpoint_config.checkpoint_dir,
        step,
        trees,
        identity,
        log_offsets=checkpoint_config.run.log_offsets(),
        save_total_limit=checkpoint_config.save_total_limit,
    )


def _start_or_resume(
    task: SupervisedTask, optimizer: Optimizer, checkpoint_config: CheckpointConfig, identity: dict[str, Any]
) -> int:
    """The step to go on with, the last checkpoint's weights loaded."""
    found = load_latest_checkpoint(checkpoint_config.checkpoint_dir, checkpoint_config.run.log_event)
    if found is None:
        checkpoint_config.run.discard_stage(checkpoint_config.run.stage)
        return 0
    for key, value in identity.items():
        if found.metadata[key] != value:
            raise ConfigError(
                f"{checkpoint_config.checkpoint_dir}: its checkpoint has {key} {found.metadata[key]}, and this fit has "
                f"{value}; fix: choose another run.output_dir"
            )
    stored = found.load_tree("weights")
    with torch.no_grad():
        for name, parameter in _trainable_parameters(task).items():
            parameter.copy_(stored[name])
    optimizer.load_state_dict(found.load_tree("optimizer"))
    checkpoint_config.run.truncate_logs(found.log_offsets)
    return found.step


class SftTask:
    """A causal language model on demonstrations: minus the mean log-probability of the response tokens.

    The mean is over all response tokens of the optimiser step, the one that ends a response included.
    """

    def __init__(self, lm: PolicyModel, records: Sequence[Demonstration]) -> None:
        self.model: nn.Module = lm.model
        self.records, tokenizer, stop = records, lm.tokenizer, lm.eos_ids[0]
        prompts = [encode_prompt(tokenizer, record.prompt) for record in records]
        ends = [encode_response(tokenizer, record.response, eos_id=stop) for record in records]
        self.token_rows = [a + b for a, b in zip(prompts, ends, strict=True)]
        self.prompt_lengths = [len(prompt) for prompt in prompts]
        self.lengths: Sequence[Sequence[int]] = [[len(row)] for row in self.token_rows]
        check_lengths(self, context_length(lm.model))

    def example_name(self, index: int) -> str:
        """The id of the prompt, or the start of the response."""
        record = self.records[index]
        return record.prompt.id or repr(record.response[:40])

    def make_loss_fn(self, indices: Sequence[int]) -> MicrobatchLossFn:
        """Weigh every response token of these units the same."""
        lengths = torch.tensor([len(self.token_rows[u]) for u in indices])
        starts = torch.tensor([self.prompt_lengths[u] for u in indices])
        place = torch.arange(int(lengths.max()))
        respond = (place >= starts[:, None]) & (place < lengths[:, None])
        weight, device = token_weights(respond, "token"), device_of(self.model)

        def part(positions: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
            tokens, attend = pad_sequences([self.token_rows[indices[i]] for i in positions], device=device)
            index, width = list(positions), tokens.shape[1]
            logp = compute_logprobs(self.model, tokens, attend, respond[index, :width].to(device))
            return -(logp * weight[index, :width].to(logp)).sum(), {}

        return part


def check_lengths(task: SupervisedTask, max_length: int) -> None:
    """Refuse units with rows that are longer than the model can read.

    Raises:
        DataError: One line for each of them.
    """
    fix = "drop or shorten it"
    long = [(i, max(rows)) for i, rows in enumerate(task.lengths) if max(rows) > max_length]
    wrong = [
        format_issue(
            task.example_name(i),
            None,
            None,
            "tokens",
            f"{n} tokens, and the model reads {max_length}",
            fix=fix,
        )
        for i, n in long
    ]
    if wrong:
        raise DataError(join_issues(wrong))


class AuxiliaryData:
    """The units of a supervised task, drawn anew for every optimiser step."""

    def __init__(self, task: SupervisedTask) -> None:
        self.task = task

    def sample_indices(
        self, batch_size: int, seed: int, step: int, epoch: int, minibatch_index: int
    ) -> list[int]:
        """`batch_size` units, or all there are; a function of the arguments alone."""
        rng = torch_generator(seed, step, "aside", epoch, minibatch_index)
        return torch.randperm(len(self.task.lengths), generator=rng)[:batch_size].tolist()

    def num_tokens(self, indices: Sequence[int]) -> int:
        """Tokens of these units, prompts included."""
        return sum(sum(self.task.lengths[unit]) for unit in indices)


def add_auxiliary_gradient(
    data: AuxiliaryData, indices: Sequence[int], coefficient: float, max_tokens_per_pass: int
) -> float:
    """Add the gradient of coefficient times the task's loss on these units; the loss itself is returned."""
    part = data.task.make_loss_fn(indices)
    lengths = [data.task.lengths[unit] for unit in indices]
    whole = 0.0
    for positions in example_microbatch_indices(lengths, max_tokens_per_pass, data.task.model):
        loss, _ = part(positions)
        (coefficient * loss).backward()
        whole += float(loss.detach())
    return whole
