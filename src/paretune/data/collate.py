"""Records to the values that flow: the split by prompt, and right-padded rows of tokens."""

import hashlib
import re
from collections.abc import Sequence
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from paretune.batch import Batch
from paretune.data.records import Demonstration, PreferencePair, Prompt, Rating, Record, Sample

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
