"""The token loop: prompt ids in, sampled response ids and their exact log-probabilities out."""

from collections.abc import Generator, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from paretune.core.types import PreTrainedModel
from paretune.models.forward.attention import supports_custom_attention, use_custom_attention
from paretune.models.forward.lm_head import lm_head_of
from paretune.models.lora import unwrap_model_for_forward
from paretune.rollout.continuous_batching import BatchScheduler
from paretune.rollout.static_batching import decode_static_batches
from paretune.rollout.token_sampling import DecodedResponses, ResponseBuffer, sample_tokens

__all__ = ["DecodedResponses", "decode", "decode_steps", "sample_tokens"]

DecodingSteps = Generator[Int[Tensor, " N"], None, DecodedResponses]
"""The new tokens of the active rows after each step; returns all responses."""

# Rows decoded at one time by default. 256 instead of 128 was 2-3 % faster with a 7M model and 23 % with a
# 0.35M model, whose steps are dominated by small operations.
MAX_ROWS = 256


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
        temperature: Divides the logits; 0: the most probable token, and log-probabilities at temperature 1.
        pad_id: Padding token id.
        max_rows: Rows decoded at one time; affects memory and speed only.

    Raises:
        WiringError: The model's family cannot be sampled.
    """
    steps = decode_steps(
        model,
        prompts,
        prompt_of_row,
        uniform,
        eos_ids=eos_ids,
        temperature=temperature,
        pad_id=pad_id,
        max_rows=max_rows,
    )
    while True:
        try:
            next(steps)
        except StopIteration as end:
            responses: DecodedResponses = end.value
            return responses


def decode_steps(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    prompt_of_row: Sequence[int],
    uniform: NDArray[np.float64],
    *,
    eos_ids: Sequence[int],
    temperature: float,
    pad_id: int,
    max_rows: int = MAX_ROWS,
) -> DecodingSteps:
    """The same, token by token: the steps of several models may take turns. See `decode`."""
    steps = _steps(model, prompts, prompt_of_row, uniform, eos_ids, temperature, pad_id, max_rows)
    while True:
        # Around each step, not around the loop: what the caller does between two of them is not affected.
        with torch.no_grad():
            try:
                new_tokens = next(steps)
            except StopIteration as end:
                responses: DecodedResponses = end.value
                return responses
        yield new_tokens


def _steps(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    prompt_of_row: Sequence[int],
    uniform: NDArray[np.float64],
    eos_ids: Sequence[int],
    temperature: float,
    pad_id: int,
    max_rows: int,
) -> DecodingSteps:
    with unwrap_model_for_forward(model) as base:
        buffer = ResponseBuffer(lm_head_of(base), uniform, eos_ids, temperature)
        if supports_custom_attention(base):
            scheduler = BatchScheduler(base, prompts, prompt_of_row, max_rows)
            yield from _decode_continuously(base, scheduler, buffer)
        else:
            yield from decode_static_batches(
                base, prompts, prompt_of_row, buffer, max_rows, uniform.shape[1], pad_id
            )
    return buffer.to_responses()


def _decode_continuously(
    base: PreTrainedModel, scheduler: BatchScheduler, buffer: ResponseBuffer
) -> Iterator[Int[Tensor, " N"]]:
    def read(new_tokens: Int[Tensor, " N"]) -> Float[Tensor, "M W"]:
        # Per step: the attention is one for all models, and those of two generators may take turns.
        with use_custom_attention(base, scheduler.attention):
            return scheduler.step(new_tokens)

    hidden = read(scheduler.row_ids)
    while len(hidden):
        new_tokens, is_finished = buffer.sample_next(hidden, scheduler.row_ids, scheduler.response_lengths)
        yield new_tokens
        finished_slots = is_finished.nonzero().squeeze(-1).tolist()
        hidden = read(scheduler.remove_finished(finished_slots, new_tokens) if finished_slots else new_tokens)
