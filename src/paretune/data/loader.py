"""From records to batches: collation, the train/test split, and the prompts or stored responses of each step.

The data of a step are a function of (seed, step), so that a resumed run continues where it stopped.
"""

import hashlib
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import isnan, nan
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from paretune.core.batch import Batch
from paretune.core.rng import numpy_generator
from paretune.data.records import (
    Demonstration,
    Message,
    PreferencePair,
    Prompt,
    Rating,
    Record,
    ResponseGroup,
    Sample,
)

R = TypeVar("R", bound=Record)


def collate(
    prompt_ids: Sequence[Sequence[int]],
    response_ids: Sequence[Sequence[int]],
    group: Sequence[int],
    truncated: Sequence[bool],
    objectives: tuple[str, ...],
    pad_id: int,
) -> Batch:
    """A right-padded batch with one prompt and response per row; all scores are NaN.

    The masks come from the lengths, so a real token with the id `pad_id` is not masked.
    """
    lengths = torch.tensor([[len(p), len(p) + len(r)] for p, r in zip(prompt_ids, response_ids, strict=True)])
    lengths = lengths.reshape(-1, 2)
    prompt_end, row_end = lengths[:, :1], lengths[:, 1:]
    position = torch.arange(int(row_end.max()) if len(row_end) else 0)
    attention_mask = position < row_end
    input_ids = torch.full(attention_mask.shape, pad_id)
    input_ids[attention_mask] = torch.tensor(
        [t for p, r in zip(prompt_ids, response_ids, strict=True) for t in (*p, *r)]
    ).long()
    scores = torch.full((len(lengths), len(objectives)), torch.nan)
    return Batch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        response_mask=attention_mask & (position >= prompt_end),
        group=torch.tensor(group, dtype=torch.long),
        truncated=torch.tensor(truncated, dtype=torch.bool),
        objectives=objectives,
        scores=scores,
        rewards=scores.clone(),
    )


def encode_categories(samples: Sequence[Sample]) -> tuple[Int[Tensor, " B"], tuple[str, ...]]:
    """Category index of each sample's prompt, and the categories in order of first appearance."""
    categories = tuple(dict.fromkeys(sample.prompt.category for sample in samples))
    index = [categories.index(sample.prompt.category) for sample in samples]
    return torch.tensor(index, dtype=torch.long), categories


def split_by_prompt(records: Sequence[R], test_fraction: float, seed: int) -> tuple[list[R], list[R]]:
    """Split into train and test records, `test_fraction` of the different prompts in test; order is kept.

    All records of a prompt are on the same side. Of two or more prompts each side gets at least one, unless
    the fraction is 0 or 1.
    """
    held_out = test_keys_of(map(prompt_key, records), test_fraction, seed)
    train: list[R] = []
    test: list[R] = []
    for record in records:
        (test if prompt_key(record) in held_out else train).append(record)
    return train, test


def test_keys_of(keys: Iterable[str], fraction: float, seed: int) -> set[str]:
    """The rounded fraction of the different keys that come first by a hash of seed and key.

    The order of two keys depends on nothing else, so a prompt is mostly on the same side in every file.
    """
    different = sorted(set(keys), key=lambda key: hashlib.sha256(f"split/{seed}/{key}".encode()).digest())
    count = round(fraction * len(different))
    if 0 < fraction < 1 and len(different) > 1:
        count = min(max(count, 1), len(different) - 1)
    return set(different[:count])


def hold_out_prompts(
    pools: Mapping[str, Sequence[Prompt]], test_fraction: float, seed: int
) -> tuple[dict[str, list[Prompt]], list[Prompt]]:
    """Training prompts by pool, and `test_fraction` of the different prompts of each pool, each of them once.

    A prompt that is held out of one pool is held out of all.
    """
    held_out: set[str] = set()
    for pool in pools.values():
        held_out |= test_keys_of(map(prompt_key, pool), test_fraction, seed)
    train: dict[str, list[Prompt]] = {}
    test: dict[object, Prompt] = {}
    for name, pool in pools.items():
        train[name] = [prompt for prompt in pool if prompt_key(prompt) not in held_out]
        for prompt in pool:
            if prompt_key(prompt) in held_out:
                test.setdefault(prompt.messages, prompt)
    return train, list(test.values())


def prompt_key(record: Record) -> str:
    """Key for finding duplicate prompts: the first user message without case, white space and punctuation.

    Without a prompt the key is the response. For a pair it is then the rejected response: the chosen one is
    usually a rewriting of it.
    """
    prompt = record if isinstance(record, Prompt) else record.prompt
    users = [message.content for message in prompt.messages if message.role == "user"]
    text = users[0] if users else "\n".join(message.content for message in prompt.messages)
    if not text and isinstance(record, Rating | Demonstration):
        text = record.response
    if not text and isinstance(record, PreferencePair):
        text = record.rejected
    return re.sub(r"[\W_]+", " ", text.casefold()).strip() or text


@dataclass(frozen=True)
class PromptStream:
    """Prompts of each step, mixed from several pools by sampling weight and reshuffled every epoch.

    An epoch has as many prompts as all pools together. A pool with a small weight is not exhausted in one
    epoch and continues in the next; a pool with a large weight is repeated. A weight that amounts to less
    than half a prompt per epoch is rounded to none: see `pool_quotas`.
    """

    pools: tuple[tuple[Prompt, ...], ...]
    sampling_weights: tuple[float, ...]
    prompts_per_step: int
    """Number of prompts per step."""
    seed: int

    def __post_init__(self) -> None:
        assert all(self.pools)
        assert all(weight > 0 for weight in self.sampling_weights)

    def __call__(self, step: int) -> tuple[Prompt, ...]:
        """The prompts of one step."""
        prompts = [prompt for pool in self.pools for prompt in pool]
        first = step * self.prompts_per_step
        positions = range(first, first + self.prompts_per_step)
        return tuple(prompts[self._epoch_order(i // len(prompts))[i % len(prompts)]] for i in positions)

    def pool_quotas(self) -> tuple[int, ...]:
        """Number of prompts from each pool per epoch."""
        return _pool_quotas(tuple(len(pool) for pool in self.pools), self.sampling_weights)

    def count_drawn(self, num_steps: int) -> tuple[int, ...]:
        """Number of prompts from each pool in the first `num_steps` steps."""
        ends = list(accumulate(len(pool) for pool in self.pools))
        if not ends:
            return ()
        full_epochs, remainder = divmod(num_steps * self.prompts_per_step, ends[-1])
        last_epoch = Counter(bisect_right(ends, i) for i in self._epoch_order(full_epochs)[:remainder])
        return tuple(full_epochs * quota + last_epoch[k] for k, quota in enumerate(self.pool_quotas()))

    def _epoch_order(self, epoch: int) -> Sequence[int]:
        return _mix_pools(tuple(len(pool) for pool in self.pools), self.sampling_weights, epoch, self.seed)


@lru_cache(maxsize=4)
def _mix_pools(
    sizes: tuple[int, ...], sampling_weights: tuple[float, ...], epoch: int, seed: int
) -> tuple[int, ...]:
    """Prompt indices of one epoch, in order."""
    indices: list[int] = []
    for k, (size, quota) in enumerate(zip(sizes, _pool_quotas(sizes, sampling_weights), strict=True)):
        offset = sum(sizes[:k])
        for position in range(epoch * quota, (epoch + 1) * quota):
            order = _pool_permutation(size, position // size, k, seed)
            indices.append(offset + order[position % size])
    shuffle = numpy_generator(seed, epoch, "mix prompts").permutation(len(indices))
    return tuple(indices[i] for i in shuffle)


def _pool_quotas(sizes: tuple[int, ...], sampling_weights: tuple[float, ...]) -> tuple[int, ...]:
    """Number of prompts from each pool per epoch; they add up to the size of all pools."""
    num_prompts, total_weight = sum(sizes), sum(sampling_weights)
    # Rounding the cumulative sums, not each quota, keeps the total exact.
    ends = [round(num_prompts * sum(sampling_weights[: k + 1]) / total_weight) for k in range(len(sizes))]
    return tuple(end - start for start, end in zip([0, *ends], ends, strict=False))


@lru_cache(maxsize=64)
def _pool_permutation(size: int, epoch: int, pool: int, seed: int) -> tuple[int, ...]:
    """Order of one pool in its epoch-th pass."""
    return tuple(numpy_generator(seed, epoch, "order prompts", pool).permutation(size).tolist())


def group_responses(records: Iterable[Rating | PreferencePair]) -> list[ResponseGroup]:
    """Group rated responses by prompt; each preference pair is a group of its own.

    The chosen response of a pair gets label 1 and the rejected one label 0 for the pair's objective, and no
    other label. A prompt with a single rated response makes a group of one, which can be imitated but not
    compared.
    """
    rated: dict[tuple[Message, ...], list[Rating]] = {}
    groups: list[ResponseGroup] = []
    for record in records:
        if isinstance(record, Rating):
            # By messages, not by the prompt: prompts of different rows have different ids.
            rated.setdefault(record.prompt.messages, []).append(record)
            continue
        responses = (record.chosen, record.rejected)
        labels = ({record.objective: 1.0}, {record.objective: 0.0})
        groups.append(ResponseGroup(prompt=record.prompt, responses=responses, labels=labels))
    for ratings in rated.values():
        groups.append(
            ResponseGroup(
                prompt=ratings[0].prompt,
                responses=tuple(rating.response for rating in ratings),
                labels=tuple(rating.labels for rating in ratings),
            )
        )
    return groups


def has_distinct_scores(group: ResponseGroup, weights: Mapping[str, float], *, fill_missing: bool) -> bool:
    """True if at least two responses of the group differ in the labels of the weighted objectives.

    Args:
        group: The responses to one prompt.
        weights: Weight of each objective; objectives of weight 0 are ignored.
        fill_missing: Use responses that lack some of the labels; otherwise they count as not scored.
    """
    objectives = [name for name, weight in weights.items() if weight]
    distinct = set()
    for labels in group.labels:
        known = {name: labels[name] for name in objectives if not isnan(labels.get(name, nan))}
        if known and (fill_missing or len(known) == len(objectives)):
            distinct.add(tuple(sorted(known.items())))
    return len(distinct) > 1


@dataclass(frozen=True)
class ResponseGroupStream:
    """Stored response groups of each step: all groups once per epoch, reshuffled every epoch."""

    groups: tuple[ResponseGroup, ...]
    groups_per_step: int
    """Number of groups per step."""
    seed: int

    def __call__(self, step: int) -> tuple[ResponseGroup, ...]:
        """The groups of one step."""
        positions = range(step * self.groups_per_step, (step + 1) * self.groups_per_step)
        count = len(self.groups)
        orders = {epoch: self._permutation(epoch) for epoch in {i // count for i in positions}}
        return tuple(self.groups[orders[i // count][i % count]] for i in positions)

    def _permutation(self, epoch: int) -> list[int]:
        order: list[int] = (
            numpy_generator(self.seed, epoch, "order stored").permutation(len(self.groups)).tolist()
        )
        return order
