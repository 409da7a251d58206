"""Supervised fitting, of a policy to demonstrations or of a reward model to ratings and pairs.

A task says what a training example (a *unit*: one row, or the two rows of a pair) costs; the loop cuts each
optimiser step into micro-batches of rows of like length. Every denominator is that of the whole optimiser
step, so the gradient is the same for every cut.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from paretune.chance import generator
from paretune.data.records import Demonstration
from paretune.data.template import encode_prompt, encode_response
from paretune.errors import ConfigError, DataError, TrainingGuard, WiringError, complaint, joined
from paretune.learn.microbatch import unit_passes
from paretune.learn.optim import AdamW, Optimizer
from paretune.learn.resume import load_latest, save_checkpoint, steps_in
from paretune.learn.stop import StopRequest
from paretune.memory import peak_memory
from paretune.models.forward import device_of, token_logp
from paretune.models.load import Language, context_length
from paretune.objectives.reward_model import pad_rows
from paretune.reduce import token_weights
from paretune.rundir import Run

Part = Callable[[Sequence[int]], tuple[Tensor, dict[str, float]]]
"""From positions within an optimiser step to their share of its loss and of its metrics."""

OnStep = Callable[[int, int, dict[str, float]], None]
"""Hears (step from 0, steps in all, metrics) after each optimiser step."""


@runtime_checkable
class Task(Protocol):
    """What is fitted, and to what."""

    model: nn.Module
    lengths: Sequence[Sequence[int]]
    """For each unit, the number of tokens of each of its rows."""

    def open(self, units: Sequence[int]) -> Part:
        """Fix the denominators of one optimiser step over these units."""
        ...

    def name(self, unit: int) -> str:
        """What a person would look for to find this unit in the data."""
        ...


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """How a fit goes."""

    epochs: int = 2
    batch: int = 32
    """Units of an optimiser step."""
    micro_tokens: int = 4096
    """Tokens of a forward pass; changes memory and speed only."""
    optim: AdamW = field(default_factory=lambda: AdamW(lr=3e-4, warmup=0.05, schedule="cosine"))

    def steps(self, units: int) -> int:
        """Optimiser steps over that many units."""
        return self.epochs * math.ceil(units / self.batch)


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """Where a fit writes its metrics and keeps its checkpoints, and how often."""

    run: Run
    folder: Path
    """Of the checkpoints; one fit, one folder."""
    every: int = 50
    keep: int = 2


def fit(
    task: Task, how: Fitting, *, seed: int, keeping: Keeping | None = None, on_step: OnStep | None = None
) -> None:
    """Fit the task's model in place; the same call again goes on from the last checkpoint, bit for bit.

    Args:
        task: What is fitted.
        how: Epochs, batch and optimiser.
        seed: With the epoch, the order of the units.
        keeping: Metrics and checkpoints; nothing is written without it.
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
    optimizer = Optimizer(how.optim, task.model.parameters())
    identity, steps = _identity(task, how, seed), how.steps(len(task.lengths))
    first = _begin(task, optimizer, keeping, identity) if keeping else 0
    with StopRequest() as stop:
        for step, units in enumerate(_batches(len(task.lengths), how, seed)):
            if step < first:
                continue
            metrics = _update(task, how, optimizer, step, steps, units, keeping)
            if on_step is not None:
                on_step(step, steps, metrics)
            done = step + 1
            if keeping and (done % keeping.every == 0 or done == steps or stop.requested):
                _save(task, optimizer, keeping, identity, done)
            stop.obey(f"step {done} of {steps} of a fit" if keeping else "")


def _batches(count: int, how: Fitting, seed: int) -> Iterator[list[int]]:
    """Every unit once an epoch, in an order that depends on the seed and the epoch alone."""
    for epoch in range(how.epochs):
        order = torch.randperm(count, generator=generator(seed, epoch, "fit order"))
        for units in order.split(how.batch):
            yield units.tolist()


def _update(
    task: Task,
    how: Fitting,
    optimizer: Optimizer,
    step: int,
    steps: int,
    units: list[int],
    keeping: Keeping | None,
) -> dict[str, float]:
    """One optimiser step."""
    clock, part = time.perf_counter(), task.open(units)
    metrics: dict[str, float] = {"fit/loss": 0.0}
    optimizer.zero()
    lengths = [task.lengths[u] for u in units]
    for positions in unit_passes(lengths, how.micro_tokens, task.model):
        loss, found = part(positions)
        value = float(loss.detach())
        if not math.isfinite(value):
            _guard(
                value, "the loss", step, [task.name(units[i]) for i in _culprits(part, positions)], keeping
            )
        loss.backward()
        for key, more in {"fit/loss": value, **found}.items():
            metrics[key] = metrics.get(key, 0.0) + more
    norm, lr = optimizer.norm(), how.optim.rate(step, steps)
    _guard(norm, "the norm of the gradient", step, [task.name(u) for u in units], keeping)
    optimizer.step(lr, norm)
    metrics |= {"grad_norm": norm, "lr": lr}
    if keeping:
        keeping.run.write(step, metrics)
        seconds, tokens = time.perf_counter() - clock, sum(map(sum, lengths))
        keeping.run.timing(step, seconds=seconds, tokens=tokens, trained_tokens=tokens, memory=peak_memory())
    return metrics


@torch.no_grad()
def _culprits(part: Part, positions: Sequence[int]) -> Sequence[int]:
    """Those whose own share of the loss is not finite; all of them where it is only their sum."""
    return [i for i in positions if not math.isfinite(float(part([i])[0]))] or positions


def _guard(value: float, what: str, step: int, names: Sequence[str], keeping: Keeping | None) -> None:
    if not math.isfinite(value):
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        kept = keeping is not None and bool(steps_in(keeping.folder))
        intact = "the last checkpoint is intact" if kept else "there is no checkpoint yet"
        lower = "; a lower lr may help" if step else ""  # before the first update no rate is to blame
        raise TrainingGuard(
            f"fit step {step}: {what} is {value}, on {', '.join(names[:5])}{more}; this update did not reach "
            f"the weights, and {intact}; fix: look at these records{lower}"
        )


def _identity(task: Task, how: Fitting, seed: int) -> dict[str, Any]:
    """What must be equal for a checkpoint to be of this fit; the cut into micro-batches may change."""
    flat = [n for rows in task.lengths for n in rows]
    return {
        "units": len(task.lengths),
        "lengths": sum(i * n for i, n in enumerate(flat, 1)),
        "seed": seed,
        "epochs": how.epochs,
        "batch": how.batch,
        "optim": repr(how.optim),
    }


def _trained(task: Task) -> dict[str, Tensor]:
    return {name: p for name, p in task.model.named_parameters() if p.requires_grad}


def _save(task: Task, optimizer: Optimizer, keeping: Keeping, identity: dict[str, Any], step: int) -> None:
    trees = {"weights": _trained(task), "optimizer": optimizer.state()}
    save_checkpoint(keeping.folder, step, trees, identity, offsets=keeping.run.offsets(), keep=keeping.keep)


def _begin(task: Task, optimizer: Optimizer, keeping: Keeping, identity: dict[str, Any]) -> int:
    """The step to go on with, the last checkpoint's weights loaded."""
    found = load_latest(keeping.folder, keeping.run.event)
    if found is None:
        keeping.run.restart(keeping.run.stage)
        return 0
    for key, value in identity.items():
        if found.numbers[key] != value:
            raise ConfigError(
                f"{keeping.folder}: its checkpoint has {key} {found.numbers[key]}, and this fit has "
                f"{value}; fix: choose another run.folder"
            )
    stored = found.tree("weights")
    with torch.no_grad():
        for name, parameter in _trained(task).items():
            parameter.copy_(stored[name])
    optimizer.load(found.tree("optimizer"))
    keeping.run.cut_back(found.offsets)
    return found.step


class Imitation:
    """A causal language model on demonstrations: minus the mean log-probability of the response tokens.

    The mean is over all response tokens of the optimiser step, the one that ends a response included.
    """

    def __init__(self, language: Language, records: Sequence[Demonstration]) -> None:
        self.model: nn.Module = language.model
        self.records, tokenizer, stop = records, language.tokenizer, language.stops[0]
        prompts = [encode_prompt(tokenizer, record.prompt) for record in records]
        ends = [encode_response(tokenizer, record.response, stop=stop) for record in records]
        self.rows = [a + b for a, b in zip(prompts, ends, strict=True)]
        self.starts = [len(prompt) for prompt in prompts]
        self.lengths: Sequence[Sequence[int]] = [[len(row)] for row in self.rows]
        refuse_long(self, context_length(language.model))

    def name(self, unit: int) -> str:
        """The id of the prompt, or the start of the response."""
        record = self.records[unit]
        return record.prompt.id or repr(record.response[:40])

    def open(self, units: Sequence[int]) -> Part:
        """Weigh every response token of these units the same."""
        lengths = torch.tensor([len(self.rows[u]) for u in units])
        starts = torch.tensor([self.starts[u] for u in units])
        place = torch.arange(int(lengths.max()))
        respond = (place >= starts[:, None]) & (place < lengths[:, None])
        weight, device = token_weights(respond, "token"), device_of(self.model)

        def part(positions: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
            tokens, attend = pad_rows([self.rows[units[i]] for i in positions], device=device)
            index, width = list(positions), tokens.shape[1]
            logp = token_logp(self.model, tokens, attend, respond[index, :width].to(device))
            return -(logp * weight[index, :width].to(logp)).sum(), {}

        return part


def refuse_long(task: Task, most: int) -> None:
    """Refuse units with rows that are longer than the model can read.

    Raises:
        DataError: One line for each of them.
    """
    fix = "drop or shorten it"
    long = [(i, max(rows)) for i, rows in enumerate(task.lengths) if max(rows) > most]
    wrong = [
        complaint(task.name(i), None, None, "tokens", f"{n} tokens, and the model reads {most}", fix=fix)
        for i, n in long
    ]
    if wrong:
        raise DataError(joined(wrong))
