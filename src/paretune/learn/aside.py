"""Demonstrations learnt beside an alignment, a few in every optimiser step."""

from collections.abc import Sequence

import torch

from paretune.chance import torch_generator
from paretune.learn.fit import SupervisedTask
from paretune.learn.microbatch import example_microbatch_indices


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
