"""A sampler whose ranks each respond to a part of the prompts; afterwards all ranks have the whole batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from paretune.core import ranks
from paretune.core.batch import Batch
from paretune.credit.base import Metrics
from paretune.data.records import Prompt, Sample
from paretune.rollout.pending import PendingRollout, start_sampler
from paretune.rollout.sampler import OnPolicy, Rollout, Sampler
from paretune.rollout.synced import close_sampler, sleep_sampler, sync_sampler

T = TypeVar("T")

TOKEN_FIELDS = ("input_ids", "attention_mask", "response_mask", "rollout_logprobs")
"""Fields of a sampler's batch with one entry per token, which are padded to a common width."""
SAMPLE_FIELDS = ("response", "truncated", "original_response", "response_ids")
"""What is sent of a sample: all ranks have its prompt."""


@dataclass(frozen=True, slots=True)
class DistributedSampler:
    """Divides the prompts over the ranks; the responses are those of one process.

    A response depends on its prompt and `prompt_index` alone, so that it does not matter which rank samples
    it. Without further ranks the sampler is called as it is.
    """

    sampler: Sampler

    def __call__(
        self,
        prompts: Sequence[Prompt],
        rollout: OnPolicy,
        *,
        seed: int,
        step: int,
        prompt_index: Sequence[int] | None = None,
    ) -> tuple[Batch, tuple[Sample, ...]]:
        """See `Sampler`.

        Raises:
            RankError: The sampler of another rank failed.
        """
        if not ranks.is_distributed():
            return self.sampler(prompts, rollout, seed=seed, step=step, prompt_index=prompt_index)
        own = _own_prompts(prompts)
        part = _sample_own(self.sampler, own, prompts, rollout, seed, step, prompt_index)
        return _gather_rollout(part, own, prompts)

    def start(
        self,
        prompts: Sequence[Prompt],
        rollout: OnPolicy,
        *,
        seed: int,
        step: int,
        prompt_index: Sequence[int] | None = None,
    ) -> PendingRollout:
        """See `start_sampler`. The ranks exchange nothing until `result`.

        Raises:
            RankError: The sampler of another rank failed.
        """
        if not ranks.is_distributed():
            return start_sampler(
                self.sampler, prompts, rollout, seed=seed, step=step, prompt_index=prompt_index
            )
        own, start = _own_prompts(prompts), partial(start_sampler, self.sampler)
        part = _sample_own(start, own, prompts, rollout, seed, step, prompt_index)
        return _DistributedRollout(part, own, prompts)

    def sync(self, step: int) -> Metrics:
        """See `SyncedSampler`."""
        with ranks.fail_together("hand-over of the weights"):
            return sync_sampler(self.sampler, step)

    def sleep(self) -> None:
        """See `SyncedSampler`."""
        sleep_sampler(self.sampler)

    def close(self) -> None:
        """See `SyncedSampler`."""
        close_sampler(self.sampler)


@dataclass(frozen=True, slots=True)
class _DistributedRollout:
    """The part of a rollout that this rank started."""

    part: PendingRollout | None
    """None: there are fewer prompts than ranks."""
    own: Sequence[int]
    prompts: Sequence[Prompt]

    @property
    def seconds(self) -> float:
        """See `PendingRollout`."""
        return 0.0 if self.part is None else self.part.seconds

    def result(self) -> Rollout:
        """See `PendingRollout`."""
        with ranks.fail_together("rollout"):
            part = None if self.part is None else self.part.result()
        return _gather_rollout(part, self.own, self.prompts)

    def cancel(self) -> None:
        """See `PendingRollout`."""
        if self.part is not None:
            self.part.cancel()


def _own_prompts(prompts: Sequence[Prompt]) -> list[int]:
    """The prompts of this rank, in turn: nobody knows yet how long the responses are."""
    return list(range(ranks.rank(), len(prompts), ranks.world_size()))


def _sample_own(
    sample: Callable[..., T],
    own: Sequence[int],
    prompts: Sequence[Prompt],
    rollout: OnPolicy,
    seed: int,
    step: int,
    prompt_index: Sequence[int] | None,
) -> T | None:
    """What `sample` makes of the prompts of this rank, as one rank would; None without any.

    Raises:
        RankError: It failed on another rank.
    """
    index = own if prompt_index is None else [prompt_index[i] for i in own]
    with ranks.fail_together("rollout"):
        if not own:
            return None
        return sample([prompts[i] for i in own], rollout, seed=seed, step=step, prompt_index=index)


def _gather_rollout(
    part: Rollout | None, own: Sequence[int], prompts: Sequence[Prompt]
) -> tuple[Batch, tuple[Sample, ...]]:
    """The rollout of all ranks.

    Args:
        part: That of this rank, with `group` as numbers of its own prompts; None: it has none.
        own: The numbers of its prompts among all.
        prompts: All prompts.
    """
    batch: Batch | None = None
    samples: Sequence[Sample] = ()
    if part is not None:
        batch, samples = part
        batch = batch.replace(group=torch.tensor(own)[batch.group])
    numbers = [] if batch is None else batch.group.tolist()
    return _gather_batch(batch), _gather_samples(samples, numbers, prompts)


def _gather_batch(own: Batch | None) -> Batch:
    """The rows of all ranks, by prompt."""
    names = None if own is None else [f.name for f in fields(own) if isinstance(getattr(own, f.name), Tensor)]
    objectives = None if own is None else list(own.objectives)
    heads = [head for head in ranks.gather_json([names, objectives]) if head[0] is not None]
    columns: dict[str, Any] = {}
    for name in heads[0][0]:
        parts = [part for part in ranks.gather(None if own is None else getattr(own, name)) if len(part)]
        if name in TOKEN_FIELDS:
            width = max(part.shape[1] for part in parts)
            parts = [F.pad(part, (0, width - part.shape[1])) for part in parts]
        columns[name] = torch.cat(parts)
    batch = Batch(objectives=tuple(heads[0][1]), **columns)
    return batch.select(batch.group.argsort(stable=True))


def _gather_samples(
    own: Sequence[Sample], numbers: Sequence[int], prompts: Sequence[Prompt]
) -> tuple[Sample, ...]:
    """The samples of all ranks, by prompt.

    Args:
        own: The samples of this rank.
        numbers: The index in `prompts` of each.
        prompts: All prompts.
    """
    rows = [
        [number, {name: getattr(sample, name) for name in SAMPLE_FIELDS}]
        for number, sample in zip(numbers, own, strict=True)
    ]
    gathered = [row for part in ranks.gather_json(rows) for row in part]
    return tuple(
        Sample(prompt=prompts[number], **{**values, "response_ids": tuple(values["response_ids"])})
        for number, values in sorted(gathered, key=lambda row: row[0])
    )
