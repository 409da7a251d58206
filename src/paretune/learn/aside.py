"""Demonstrations learnt beside an alignment, a few in every optimiser step."""

from collections.abc import Sequence

import torch

from paretune.chance import generator
from paretune.learn.fit import Task
from paretune.learn.microbatch import unit_passes


class Stream:
    """The units of a supervised task, drawn anew for every optimiser step."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def units(self, rows: int, seed: int, step: int, epoch: int, place: int) -> list[int]:
        """`rows` units, or all there are; a function of the arguments alone."""
        rng = generator(seed, step, "aside", epoch, place)
        return torch.randperm(len(self.task.lengths), generator=rng)[:rows].tolist()

    def tokens(self, units: Sequence[int]) -> int:
        """Tokens of these units, prompts included."""
        return sum(sum(self.task.lengths[unit]) for unit in units)


def nudge(stream: Stream, units: Sequence[int], coefficient: float, micro_tokens: int) -> float:
    """Add the gradient of coefficient times the task's loss on these units; the loss itself is returned."""
    part = stream.task.open(units)
    lengths = [stream.task.lengths[unit] for unit in units]
    whole = 0.0
    for positions in unit_passes(lengths, micro_tokens, stream.task.model):
        loss, _ = part(positions)
        (coefficient * loss).backward()
        whole += float(loss.detach())
    return whole
