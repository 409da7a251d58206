"""Batches of rows of similar length, padded on the right."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def pad_sequences(
    sequences: Sequence[Sequence[int]], *, device: torch.device | None = None
) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Token ids padded with 0 on the right, and their attention mask."""
    lengths = torch.tensor([len(row) for row in sequences])
    width = int(lengths.max())
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in sequences])
    return ids.to(device), (torch.arange(width) < lengths[:, None]).to(device)


def batches_by_length(
    lengths: Sequence[int], max_tokens_per_pass: int, rows_per_item: Sequence[int] | None = None
) -> Iterator[list[int]]:
    """Split items into batches of similar length, longest first.

    A batch has at most `max_tokens_per_pass` tokens including padding; an item that exceeds the limit is a
    batch of its own. A batch also ends early where its next item would be padded by more than a third, if the
    batch already has an eighth of the limit: on real texts, whose lengths vary widely, the saved padding
    outweighs the smaller batches.

    Args:
        lengths: Length in tokens of each item's longest row.
        max_tokens_per_pass: Tokens per batch, padding included.
        rows_per_item: Number of rows of each item; default: 1.

    Yields:
        Indices of items.
    """
    batch: list[int] = []
    num_rows = width = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        item_rows = rows_per_item[i] if rows_per_item is not None else 1
        is_full = (num_rows + item_rows) * width > max_tokens_per_pass
        is_wasteful = num_rows * width * 8 >= max_tokens_per_pass and 4 * lengths[i] < 3 * width
        if batch and (is_full or is_wasteful):
            yield batch
            batch, num_rows = [], 0
        if not batch:
            width = lengths[i]
        batch.append(i)
        num_rows += item_rows
    if batch:
        yield batch
