"""The token loop: rows of prompt ids in, response ids and their exact log-probabilities out."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from paretune.models.forward.attention import supports_custom_attention, use_custom_attention
from paretune.models.forward.lm_head import lm_head_of
from paretune.models.lora import unwrap_model_for_forward
from paretune.rollout.continuous_batching import BatchScheduler
from paretune.rollout.static_batching import decode_static_batches
from paretune.rollout.token_sampling import DecodedResponses, ResponseBuffer, sample_tokens

__all__ = ["DecodedResponses", "decode", "sample_tokens"]

MAX_ROWS = 256
"""Rows that are decoded at one time, where nobody says how many."""


@torch.no_grad()
def decode(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    prompt_of_row: Sequence[int],
    uniform: NDArray[np.float64],
    *,
    eos_ids: Sequence[int],
    temperature: float,
    pad_id: int,
    max_rows: int = MAX_ROWS,
) -> DecodedResponses:
    """Sample one response a row; every prompt is read once, however many rows answer it.

    Rows take places in the order given; a row that ends leaves its place to the next. Models that do not let
    their attention be replaced (`models.attention.can_attend`) decode whole waves of rows instead.

    Args:
        model: A causal model in evaluation mode, with or without an adapter.
        prompts: Token ids, at least one each.
        prompt_of_row: For each row the number of its prompt; rows of a prompt stand together.
        uniform: For each row one number in [0, 1) a token; its width is the longest response.
        eos_ids: Ids that end a response.
        temperature: Logits are divided by it.
        pad_id: Id that fills the rows.
        max_rows: Rows that are decoded at one time; changes memory and speed only.
    """
    with unwrap_model_for_forward(model) as base:
        written = ResponseBuffer(lm_head_of(base), uniform, eos_ids, temperature)
        if supports_custom_attention(base):
            reader = BatchScheduler(base, prompts, prompt_of_row, max_rows)
            with use_custom_attention(base, reader.attention):
                _decode_continuously(reader, written)
        else:
            decode_static_batches(base, prompts, prompt_of_row, written, max_rows, uniform.shape[1], pad_id)
    return written.to_responses()


def _decode_continuously(scheduler: BatchScheduler, buffer: ResponseBuffer) -> None:
    """The loop over a cache whose rows come and go."""
    hidden = scheduler.step(scheduler.row_ids)
    while len(hidden):
        new, over = buffer.sample_next(hidden, scheduler.row_ids, scheduler.response_lengths)
        gone = over.nonzero().squeeze(-1).tolist()
        hidden = scheduler.step(scheduler.remove_finished(gone, new) if gone else new)
