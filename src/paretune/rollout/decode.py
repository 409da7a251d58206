"""The token loop: rows of prompt ids in, response ids and their exact log-probabilities out."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from paretune.models.adapt import bare
from paretune.models.attention import attending, can_attend
from paretune.models.head import head_of
from paretune.rollout.draw import Decoded, Written, draw
from paretune.rollout.reader import Reader
from paretune.rollout.waves import in_waves

__all__ = ["Decoded", "decode", "draw"]

ROWS = 256
"""Rows that are decoded at one time, where nobody says how many."""


@torch.no_grad()
def decode(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    row_prompt: Sequence[int],
    uniform: NDArray[np.float64],
    *,
    stops: Sequence[int],
    temperature: float,
    pad: int,
    rows: int = ROWS,
) -> Decoded:
    """Sample one response a row; every prompt is read once, however many rows answer it.

    Rows take places in the order given; a row that ends leaves its place to the next. Models that do not let
    their attention be replaced (`models.attention.can_attend`) decode whole waves of rows instead.

    Args:
        model: A causal model in evaluation mode, with or without an adapter.
        prompts: Token ids, at least one each.
        row_prompt: For each row the number of its prompt; rows of a prompt stand together.
        uniform: For each row one number in [0, 1) a token; its width is the longest response.
        stops: Ids that end a response.
        temperature: Logits are divided by it.
        pad: Id that fills the rows.
        rows: Rows that are decoded at one time; changes memory and speed only.
    """
    with bare(model) as base:
        written = Written(head_of(base), uniform, stops, temperature)
        if can_attend(base):
            reader = Reader(base, prompts, row_prompt, rows)
            with attending(base, reader.attention):
                _continuous(reader, written)
        else:
            in_waves(base, prompts, row_prompt, written, rows, uniform.shape[1], pad)
    return written.decoded()


def _continuous(reader: Reader, written: Written) -> None:
    """The loop over a cache whose rows come and go."""
    hidden = reader.next(reader.row)
    while len(hidden):
        new, over = written.extend(hidden, reader.row, reader.age)
        gone = over.nonzero().squeeze(-1).tolist()
        hidden = reader.next(reader.leave(gone, new) if gone else new)
