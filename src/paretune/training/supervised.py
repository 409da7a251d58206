"""Supervised training: of a policy on demonstrations (SFT), or of a reward model on ratings and pairs.

A task defines the loss of its examples (one row, or the two rows of a pair); the loop cuts each optimizer
step into micro-batches of rows of similar length. Every denominator is that of the whole optimizer step, so
that the gradient is the same for every cut. `AuxiliaryData` adds the gradient of a task to another loop.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from paretune.core import ranks
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
from paretune.data.chat import encode_rows
from paretune.data.records import Demonstration
from paretune.models.forward.length_batching import pad_sequences
from paretune.models.forward.logprobs import compute_logprobs, device_of
from paretune.models.load import PolicyModel, context_length
from paretune.models.sharding import passes
from paretune.run.folder import Run
from paretune.run.system import peak_rss_bytes
from paretune.training.checkpoint import list_checkpoints, load_latest_checkpoint, save_checkpoint
from paretune.training.guards import StopRequest
from paretune.training.microbatch import example_microbatch_indices
from paretune.training.optimizer import Optimizer, OptimizerConfig

MicrobatchLossFn = Callable[[Sequence[int]], tuple[Tensor, dict[str, float]]]
"""From positions within an optimizer step to their share of its loss and of its metrics."""

FitStepCallback = Callable[[int, int, dict[str, float]], None]
"""Called with (step from 0, steps in all, metrics) after each optimizer step."""
NUM_NAMED_EXAMPLES = 5
"""Examples that an error names: enough to find a pattern, few enough for one line."""


@runtime_checkable
class SupervisedTask(Protocol):
    """A model and the data it is trained on."""

    model: nn.Module
    lengths: Sequence[Sequence[int]]
    """For each example, the number of tokens of each of its rows."""

    def make_loss_fn(self, indices: Sequence[int]) -> MicrobatchLossFn:
        """The loss of an optimizer step on these examples, with its denominators fixed."""
        ...

    def example_name(self, index: int) -> str:
        """The name of an example in error messages, by which it is found in the data."""
        ...


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig:
    """Hyperparameters of supervised training."""

    num_train_epochs: int = 2
    batch_size: int = 32
    """Examples per optimizer step."""
    max_tokens_per_pass: int = 4096
    """Tokens per forward pass; changes memory and speed only."""
    optim_config: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=3e-4, warmup_ratio=0.05, lr_scheduler_type="cosine"
        )
    )

    def num_steps(self, num_examples: int) -> int:
        """Optimizer steps for this many examples."""
        return self.num_train_epochs * math.ceil(num_examples / self.batch_size)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Where and how often supervised training writes metrics and checkpoints."""

    run: Run
    checkpoint_dir: Path
    """Folder of the checkpoints of this training alone."""
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
    """Train the task's model in place; the same call resumes from the last checkpoint, bit for bit.

    Args:
        task: Model and data.
        config: Epochs, batch size and optimizer.
        seed: With the epoch, it fixes the order of the examples.
        checkpoint_config: Metrics and checkpoints; nothing is written without it.
        on_step: Called after each step's metrics have been written.

    Raises:
        WiringError: There is no data, or nothing to train.
        ConfigError: The checkpoint was made with other data or settings.
        NonFiniteError: A number was not finite; the update did not reach the weights.
        RunInterrupted: SIGTERM came; a checkpoint was written first.
    """
    if not task.lengths:
        raise WiringError("supervised training has no examples; fix: check the filters of its data sources")
    task.model.eval()  # no dropout: micro-batches would draw other masks than one large batch
    optimizer = Optimizer(config.optim_config, task.model.parameters())
    identity, max_steps = _fit_identity(task, config, seed), config.num_steps(len(task.lengths))
    start_step = _start_or_resume(task, optimizer, checkpoint_config, identity) if checkpoint_config else 0
    with StopRequest() as stop:
        for step, indices in enumerate(_shuffled_batches(len(task.lengths), config, seed)):
            if step < start_step:
                continue
            metrics = _training_step(task, config, optimizer, step, max_steps, indices, checkpoint_config)
            if on_step is not None:
                on_step(step, max_steps, metrics)
            stop.share()
            steps_done = step + 1
            if checkpoint_config and (
                steps_done % checkpoint_config.save_steps == 0 or steps_done == max_steps or stop.requested
            ):
                _save_checkpoint(task, optimizer, checkpoint_config, identity, steps_done)
            saved_at = f"step {steps_done} of {max_steps} of supervised training" if checkpoint_config else ""
            stop.raise_if_stopped(saved_at)


def _shuffled_batches(num_examples: int, config: SupervisedConfig, seed: int) -> Iterator[list[int]]:
    """Every example once per epoch, in an order that depends on the seed and the epoch alone."""
    for epoch in range(config.num_train_epochs):
        order = torch.randperm(num_examples, generator=torch_generator(seed, epoch, "fit order"))
        for indices in order.split(config.batch_size):
            yield indices.tolist()


def _training_step(
    task: SupervisedTask,
    config: SupervisedConfig,
    optimizer: Optimizer,
    step: int,
    max_steps: int,
    indices: list[int],
    checkpoint_config: CheckpointConfig | None,
) -> dict[str, float]:
    """One optimizer step."""
    start, loss_fn = time.perf_counter(), task.make_loss_fn(indices)
    metrics: dict[str, float] = {"fit/loss": 0.0}
    optimizer.zero_grad()
    lengths = [task.lengths[i] for i in indices]
    with ranks.fail_together("gradients"):
        for positions, factor in local_microbatches(lengths, config.max_tokens_per_pass, task.model):
            loss, loss_metrics = loss_fn(positions)
            if not factor:
                (0.0 * loss).backward()
                continue
            value = float(loss.detach())
            if not math.isfinite(value):
                names = [task.example_name(indices[i]) for i in _non_finite_positions(loss_fn, positions)]
                _require_finite(value, "the loss", step, names, checkpoint_config)
            loss.backward()
            add_numbers(metrics, {"fit/loss": value, **loss_metrics})
    metrics = sum_over_ranks(metrics)
    optimizer.sum_gradients()
    grad_norm = optimizer.grad_norm()
    learning_rate = config.optim_config.learning_rate_at_step(step, max_steps)
    names = [task.example_name(i) for i in indices]
    _require_finite(grad_norm, "the gradient norm", step, names, checkpoint_config)
    optimizer.step(learning_rate, grad_norm)
    metrics |= {"grad_norm": grad_norm, "learning_rate": learning_rate}
    if checkpoint_config:
        checkpoint_config.run.log_metrics(step, metrics)
        seconds, tokens = time.perf_counter() - start, sum(map(sum, lengths))
        checkpoint_config.run.log_timing(
            step, seconds=seconds, tokens=tokens, trained_tokens=tokens, peak_memory=peak_rss_bytes()
        )
    return metrics


@torch.no_grad()
def _non_finite_positions(loss_fn: MicrobatchLossFn, positions: Sequence[int]) -> Sequence[int]:
    """The positions whose own share of the loss is not finite; all of them if only the sum is not."""
    return [i for i in positions if not math.isfinite(float(loss_fn([i])[0]))] or positions


def _require_finite(
    value: float, quantity: str, step: int, names: Sequence[str], checkpoint_config: CheckpointConfig | None
) -> None:
    if not math.isfinite(value):
        rest = len(names) - NUM_NAMED_EXAMPLES
        more = f" and {rest} more" if rest > 0 else ""
        saved = checkpoint_config is not None and bool(list_checkpoints(checkpoint_config.checkpoint_dir))
        intact = "the last checkpoint is intact" if saved else "there is no checkpoint yet"
        # Before the first update the learning rate cannot be the cause.
        lower = ", or lower the learning rate" if step else ""
        raise NonFiniteError(
            f"supervised step {step}: {quantity} is {value}, on {', '.join(names[:NUM_NAMED_EXAMPLES])}"
            f"{more}; this update did not reach the weights, and {intact}; fix: look at these records{lower}"
        )


def _fit_identity(task: SupervisedTask, config: SupervisedConfig, seed: int) -> dict[str, Any]:
    """Equal in a checkpoint that may be resumed. The cut into micro-batches may change: it has no effect."""
    flat = [n for rows in task.lengths for n in rows]
    return {
        "num_examples": len(task.lengths),
        "lengths_checksum": sum(i * n for i, n in enumerate(flat, 1)),
        "seed": seed,
        "num_train_epochs": config.num_train_epochs,
        "batch_size": config.batch_size,
        "optim_config": repr(config.optim_config),
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
    """The first step to run; weights and optimizer state of the last checkpoint are loaded."""
    run, folder = checkpoint_config.run, checkpoint_config.checkpoint_dir
    checkpoint = load_latest_checkpoint(folder, run.log_event)
    if checkpoint is None:
        run.discard_stage(run.stage)
        return 0
    for key, value in identity.items():
        if checkpoint.metadata[key] != value:
            raise ConfigError(
                f"{folder}: cannot resume: {key}: the checkpoint was made with {checkpoint.metadata[key]}, "
                f"this run has {value}; fix: set a new run.output_dir"
            )
    stored = checkpoint.load_tree("weights")
    with torch.no_grad():
        for name, parameter in _trainable_parameters(task).items():
            parameter.copy_(stored[name])
    optimizer.load_state_dict(checkpoint.load_tree("optimizer"))
    run.truncate_logs(checkpoint.log_offsets)
    return checkpoint.step


class SftTask:
    """SFT of a causal language model: minus the mean log-probability of the response tokens.

    The mean is over all response tokens of the optimizer step, EOS included.
    """

    def __init__(self, lm: PolicyModel, records: Sequence[Demonstration]) -> None:
        self.model: nn.Module = lm.model
        self.records, tokenizer, eos_id = records, lm.tokenizer, lm.eos_ids[0]
        rows = encode_rows(tokenizer, ((r.prompt, r.response) for r in records), eos_id=eos_id)
        self.token_rows = [row.input_ids for row in rows]
        self.prompt_lengths = [len(row.prompt_ids) for row in rows]
        self.lengths: Sequence[Sequence[int]] = [[len(row)] for row in self.token_rows]
        check_lengths(self, context_length(lm.model))

    def example_name(self, index: int) -> str:
        """The id of the prompt, or the beginning of the response."""
        record = self.records[index]
        return record.prompt.id or repr(record.response[:40])

    def make_loss_fn(self, indices: Sequence[int]) -> MicrobatchLossFn:
        """The same weight for every response token of these examples."""
        lengths = torch.tensor([len(self.token_rows[i]) for i in indices])
        starts = torch.tensor([self.prompt_lengths[i] for i in indices])
        columns = torch.arange(int(lengths.max()))
        response_mask = (columns >= starts[:, None]) & (columns < lengths[:, None])
        weights, device = token_weights(response_mask, "token_mean"), device_of(self.model)

        def loss_fn(positions: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
            input_ids, attention_mask = pad_sequences(
                [self.token_rows[indices[i]] for i in positions], device=device
            )
            rows, width = list(positions), input_ids.shape[1]
            mask = response_mask[rows, :width].to(device)
            logprobs = compute_logprobs(self.model, input_ids, attention_mask, mask)
            return -(logprobs * weights[rows, :width].to(logprobs)).sum(), {}

        return loss_fn


def check_lengths(task: SupervisedTask, max_length: int) -> None:
    """Refuse examples with rows that are longer than the context of the model.

    Raises:
        DataError: One line per example.
    """
    too_long = [(i, max(rows)) for i, rows in enumerate(task.lengths) if max(rows) > max_length]
    issues = []
    for i, length in too_long:
        problem = f"{length} tokens, and the model has a context of {max_length}"
        name = task.example_name(i)
        issues.append(format_issue(name, None, None, "tokens", problem, fix="drop or shorten it"))
    if issues:
        raise DataError(join_issues(issues))


class AuxiliaryData:
    """The examples of a supervised task, sampled anew for every optimizer step of another loop."""

    def __init__(self, task: SupervisedTask) -> None:
        self.task = task

    def sample_indices(
        self, batch_size: int, seed: int, step: int, epoch: int, minibatch_index: int
    ) -> list[int]:
        """Sample `batch_size` examples, or all there are; a function of the arguments alone."""
        rng = torch_generator(seed, step, "aside", epoch, minibatch_index)
        return torch.randperm(len(self.task.lengths), generator=rng)[:batch_size].tolist()

    def num_tokens(self, indices: Sequence[int]) -> int:
        """Tokens of these examples, prompts included."""
        return sum(sum(self.task.lengths[i]) for i in indices)


def add_auxiliary_gradient(
    data: AuxiliaryData, indices: Sequence[int], coefficient: float, max_tokens_per_pass: int
) -> float:
    """Add the gradient of coefficient times the task's loss on these examples; returns the loss alone."""
    loss_fn = data.task.make_loss_fn(indices)
    lengths = [data.task.lengths[i] for i in indices]
    total = 0.0
    with ranks.fail_together("auxiliary loss"):
        for positions, factor in local_microbatches(lengths, max_tokens_per_pass, data.task.model):
            loss, _ = loss_fn(positions)
            (factor * coefficient * loss).backward()
            total += factor * float(loss.detach())
    return sum(ranks.gather_json(total))


def local_microbatches(
    lengths: Sequence[Sequence[int]], max_tokens_per_pass: int, model: nn.Module
) -> Iterator[tuple[Sequence[int], float]]:
    """The micro-batches of this rank, its share of the examples of an optimizer step by tokens.

    Each with the factor of its loss, 0 for a pass that only keeps other ranks company; see `sharding.passes`.
    """
    own = ranks.local_part(ranks.partition([sum(rows) for rows in lengths]))
    parts: list[list[int]] = []
    if own:
        chunks = example_microbatch_indices([lengths[i] for i in own], max_tokens_per_pass, model)
        parts = [[own[i] for i in chunk] for chunk in chunks]
    return passes(parts, [model])


def add_numbers(totals: dict[str, float], shares: Mapping[str, float]) -> None:
    """Add each share to the total of its key."""
    for key, share in shares.items():
        totals[key] = totals.get(key, 0.0) + share


def sum_over_ranks(totals: dict[str, float]) -> dict[str, float]:
    """The totals of all ranks, added up by key."""
    summed: dict[str, float] = {}
    for part in ranks.gather_json(totals):
        add_numbers(summed, part)
    return summed
