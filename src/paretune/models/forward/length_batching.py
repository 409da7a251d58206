"""Batches of rows of similar length, padded on the right."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def pad_sequences(
    sequences: Sequence[Sequence[int]], *, device: torch.device | None = None
) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Rows of token ids padded on the right, and where a real token stands."""
    lengths = torch.tensor([len(row) for row in sequences])
    width = int(lengths.max())
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in sequences])
    return ids.to(device), (torch.arange(width) < lengths[:, None]).to(device)


def batches_by_length(
    lengths: Sequence[int], max_tokens_per_pass: int, rows_per_item: Sequence[int] | None = None
) -> Iterator[list[int]]:
    """Indices in parts of like length, longest first, each of at most `max_tokens_per_pass` padded tokens, or alone.

    A part that fills an eighth of that also ends where its next item would be padded by more than a third:
    on real texts, whose lengths differ much, this saves more than larger parts do.

    Args:
        lengths: Of each item, the tokens of its longest row.
        max_tokens_per_pass: Of a part, padding included.
        rows_per_item: How many rows an item has; one, where not given.
    """
    part: list[int] = []
    held = width = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        more = rows_per_item[i] if rows_per_item is not None else 1
        full = (held + more) * width > max_tokens_per_pass
        wasteful = held * width * 8 >= max_tokens_per_pass and 4 * lengths[i] < 3 * width
        if part and (full or wasteful):
            yield part
            part, held = [], 0
        if not part:
            width = lengths[i]
        part.append(i)
        held += more
    if part:
        yield part
