"""Records to the values that flow: the split by prompt, and right-padded rows of tokens.

Which prompts a step gets: a function of (seed, step), so that a resumed run reads on where it stopped.

Stored responses as offline methods read them: prompts with several responses and what those are worth.
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
    """A batch of prompts and responses, one a row, padded on the right; nothing is scored yet.

    The masks follow from the lengths alone, so that a token which happens to equal `pad_id` stays a token.
    """
    lengths = torch.tensor([[len(p), len(p) + len(r)] for p, r in zip(prompt_ids, response_ids, strict=True)])
    lengths = lengths.reshape(-1, 2)
    begin, end = lengths[:, :1], lengths[:, 1:]
    place = torch.arange(int(end.max()) if len(end) else 0)
    attend = place < end
    tokens = torch.full(attend.shape, pad_id)
    tokens[attend] = torch.tensor(
        [t for p, r in zip(prompt_ids, response_ids, strict=True) for t in (*p, *r)]
    ).long()
    scores = torch.full((len(lengths), len(objectives)), torch.nan)
    return Batch(
        input_ids=tokens,
        attention_mask=attend,
        response_mask=attend & (place >= begin),
        group=torch.tensor(group, dtype=torch.long),
        truncated=torch.tensor(truncated, dtype=torch.bool),
        objectives=objectives,
        scores=scores,
        rewards=scores.clone(),
    )


def encode_categories(samples: Sequence[Sample]) -> tuple[Int[Tensor, " B"], tuple[str, ...]]:
    """Of each sample the place of its prompt's kind among the kinds, and the kinds as they first come."""
    kinds = tuple(dict.fromkeys(sample.prompt.category for sample in samples))
    return torch.tensor([kinds.index(sample.prompt.category) for sample in samples], dtype=torch.long), kinds


def split_by_prompt(records: Sequence[R], test_fraction: float, seed: int) -> tuple[list[R], list[R]]:
    """Train and test records, about `test_fraction` of all prompts in test; both in their order.

    A prompt's side depends on its text and the seed alone: all its records are on one side, and the same
    prompt is on the same side in every file. Small files can therefore leave a side empty.
    """
    train: list[R] = []
    test: list[R] = []
    for record in records:
        digest = hashlib.sha256(f"split/{seed}/{prompt_key(record)}".encode()).digest()
        (test if int.from_bytes(digest[:8], "big") < test_fraction * 2**64 else train).append(record)
    return train, test


def prompt_key(record: Record) -> str:
    """What makes two prompts the same: the first user turn, or the text itself where there is no prompt.

    Case, white space and punctuation do not count. Of a pair without a prompt it is the rejected side, of
    which the chosen one is most often a rewriting.
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
    """Prompts of several pools, mixed by share, shuffled anew in every pass.

    A pass holds as many prompts as all pools together; a pool with a small share is not used up in one pass
    and goes on where it stopped in the next; one with a large share is repeated. A share that comes to less
    than half a prompt of a pass comes to none: `pool_quotas` says so.
    """

    pools: tuple[tuple[Prompt, ...], ...]
    sampling_weights: tuple[float, ...]
    prompts_per_step: int
    """Prompts a step."""
    seed: int

    def __post_init__(self) -> None:
        assert all(self.pools)
        assert all(share > 0 for share in self.sampling_weights)

    def __call__(self, step: int) -> tuple[Prompt, ...]:
        """The prompts of one step."""
        every = [prompt for pool in self.pools for prompt in pool]
        first = step * self.prompts_per_step
        places = range(first, first + self.prompts_per_step)
        return tuple(every[self._epoch_order(place // len(every))[place % len(every)]] for place in places)

    def pool_quotas(self) -> tuple[int, ...]:
        """How many prompts of a pass each pool gives."""
        return _pool_quotas(tuple(len(pool) for pool in self.pools), self.sampling_weights)

    def count_drawn(self, num_steps: int) -> tuple[int, ...]:
        """How many prompts each pool gives in so many steps."""
        ends = list(accumulate(len(pool) for pool in self.pools))
        if not ends:
            return ()
        passes, rest = divmod(num_steps * self.prompts_per_step, ends[-1])
        begun = Counter(bisect_right(ends, i) for i in self._epoch_order(passes)[:rest])
        return tuple(passes * quota + begun[k] for k, quota in enumerate(self.pool_quotas()))

    def _epoch_order(self, epoch: int) -> Sequence[int]:
        return _mix_pools(tuple(len(pool) for pool in self.pools), self.sampling_weights, epoch, self.seed)


@lru_cache(maxsize=4)
def _mix_pools(
    sizes: tuple[int, ...], sampling_weights: tuple[float, ...], epoch: int, seed: int
) -> tuple[int, ...]:
    """Prompt numbers of one pass, in order."""
    picked: list[int] = []
    for k, (size, quota) in enumerate(zip(sizes, _pool_quotas(sizes, sampling_weights), strict=True)):
        offset = sum(sizes[:k])
        for place in range(epoch * quota, (epoch + 1) * quota):
            order = _pool_permutation(size, place // size, k, seed)
            picked.append(offset + order[place % size])
    shuffle = numpy_generator(seed, epoch, "mix prompts").permutation(len(picked))
    return tuple(picked[i] for i in shuffle)


def _pool_quotas(sizes: tuple[int, ...], sampling_weights: tuple[float, ...]) -> tuple[int, ...]:
    """Prompts of each pool in a pass."""
    total, whole = sum(sizes), sum(sampling_weights)
    ends = [round(total * sum(sampling_weights[: k + 1]) / whole) for k in range(len(sizes))]
    return tuple(end - begin for begin, end in zip([0, *ends], ends, strict=False))


@lru_cache(maxsize=64)
def _pool_permutation(size: int, epoch: int, pool: int, seed: int) -> tuple[int, ...]:
    """The order in which one pool is read in its turn-th reading."""
    return tuple(numpy_generator(seed, epoch, "order prompts", pool).permutation(size).tolist())


def group_responses(records: Iterable[Rating | PreferencePair]) -> list[ResponseGroup]:
    """Rated responses to the same prompt as one list; every pair is a list of its own.

    The chosen response of a pair has 1 and the rejected one 0 in the pair's objective, whose other labels
    nobody gave. A prompt with a single rated response is a list of one: it can be imitated, not compared.
    """
    rated: dict[tuple[Message, ...], list[Rating]] = {}
    found: list[ResponseGroup] = []
    for record in records:
        if isinstance(record, Rating):
            # Not by the prompt itself: rows of one file have names of their own.
            rated.setdefault(record.prompt.messages, []).append(record)
            continue
        both = ({record.objective: 1.0}, {record.objective: 0.0})
        found.append(
            ResponseGroup(prompt=record.prompt, responses=(record.chosen, record.rejected), labels=both)
        )
    for ratings in rated.values():
        prompt, responses = ratings[0].prompt, tuple(rating.response for rating in ratings)
        found.append(
            ResponseGroup(
                prompt=prompt, responses=responses, labels=tuple(rating.labels for rating in ratings)
            )
        )
    return found


def has_distinct_scores(group: ResponseGroup, weights: Mapping[str, float], *, fill_missing: bool) -> bool:
    """Whether two of the responses are worth something different by the weighted sum of their labels.

    Args:
        group: The responses to one prompt.
        weights: Of the objectives; those of weight 0 do not count.
        fill_missing: A label that nobody gave is made up for by the others; else its response is worth nothing.
    """
    used = [name for name, weight in weights.items() if weight]
    worth = set()
    for labels in group.labels:
        known = {name: labels[name] for name in used if not isnan(labels.get(name, nan))}
        if known and (fill_missing or len(known) == len(used)):
            worth.add(tuple(sorted(known.items())))
    return len(worth) > 1


@dataclass(frozen=True)
class ResponseGroupStream:
    """Which lists a step gets: all of them in every pass, shuffled anew; a function of (seed, step)."""

    groups: tuple[ResponseGroup, ...]
    groups_per_step: int
    """Lists a step."""
    seed: int

    def __call__(self, step: int) -> tuple[ResponseGroup, ...]:
        """The lists of one step."""
        places = range(step * self.groups_per_step, (step + 1) * self.groups_per_step)
        count = len(self.groups)
        orders = {turn: self._permutation(turn) for turn in {place // count for place in places}}
        return tuple(self.groups[orders[place // count][place % count]] for place in places)

    def _permutation(self, epoch: int) -> list[int]:
        order: list[int] = (
            numpy_generator(self.seed, epoch, "order stored").permutation(len(self.groups)).tolist()
        )
        return order
