"""The token loop: prompt ids in, sampled response ids and their exact log-probabilities out."""

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

# Rows decoded at one time by default. 256 instead of 128 was 2-3 % faster with a 7M model and 23 % with a
# 0.35M model, whose steps are dominated by small operations.
MAX_ROWS = 256


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
    """Sample one response per row; each prompt is prefilled once for all of its rows.

    Rows are decoded with continuous batching in the given order. Models without support for custom attention
    (`supports_custom_attention`) use static batches instead; see `model_support`.

    Args:
        model: A causal model in evaluation mode, with or without an adapter.
        prompts: Token ids, at least one per prompt.
        prompt_of_row: Prompt index of each row; rows of a prompt are consecutive.
        uniform: Random numbers in [0, 1), [rows, max_new_tokens]: one per row and token.
        eos_ids: Token ids that end a response.
        temperature: Divides the logits.
        pad_id: Padding token id.
        max_rows: Rows decoded at one time; affects memory and speed only.

    Raises:
        WiringError: The model's family cannot be sampled.
    """
    with unwrap_model_for_forward(model) as base:
        buffer = ResponseBuffer(lm_head_of(base), uniform, eos_ids, temperature)
        if supports_custom_attention(base):
            scheduler = BatchScheduler(base, prompts, prompt_of_row, max_rows)
            with use_custom_attention(base, scheduler.attention):
                _decode_continuously(scheduler, buffer)
        else:
            decode_static_batches(base, prompts, prompt_of_row, buffer, max_rows, uniform.shape[1], pad_id)
    return buffer.to_responses()


def _decode_continuously(scheduler: BatchScheduler, buffer: ResponseBuffer) -> None:
    hidden = scheduler.step(scheduler.row_ids)
    while len(hidden):
        new_tokens, is_finished = buffer.sample_next(hidden, scheduler.row_ids, scheduler.response_lengths)
        finished_slots = is_finished.nonzero().squeeze(-1).tolist()
        hidden = scheduler.step(
            scheduler.remove_finished(finished_slots, new_tokens) if finished_slots else new_tokens
        )
