"""Static batching for models without support for custom attention.

Families with keys and values only have batches of padded prompts and transformers' own cache. A recurrent
state runs on over padding: the prompts of a batch have equal lengths then. Families that take no cache of
transformers read their whole rows again in every step.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from paretune.core.errors import WiringError
from paretune.core.types import PreTrainedModel
from paretune.models.families import ModelSupport, model_support
from paretune.models.forward.length_batching import pad_sequences
from paretune.models.forward.logprobs import device_of, position_ids_of
from paretune.rollout.token_sampling import ResponseBuffer

# Finished rows are removed once they are one in 8 of the batch: removing them copies the cache, keeping them
# wastes compute.
COMPACT_IF_DONE_ONE_IN = 8

# Tokens of a pass that reads whole rows again; bounds its memory.
MAX_FULL_PASS_TOKENS = 16384


@runtime_checkable
class _RowBatch(Protocol):
    """A batch of rows that are decoded together."""

    last_hidden: Float[Tensor, "N W"]
    """Hidden states at the end of each row's prompt."""

    def decode_step(self, new_tokens: Int[Tensor, " N"]) -> Float[Tensor, "N W"]:
        """Read one more token per row; returns the hidden states after it."""
        ...

    def select_rows(self, rows: Int[Tensor, " M"]) -> None:
        """Keep only these rows."""
        ...


def decode_static_batches(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    prompt_of_row: Sequence[int],
    buffer: ResponseBuffer,
    max_rows: int,
    max_new_tokens: int,
    pad_id: int,
) -> Iterator[Int[Tensor, " N"]]:
    """Decode rows in batches; a prompt whose rows are in two batches is prefilled twice.

    Yields the new tokens of the active rows after each step.

    Args:
        model: A plain transformers model.
        prompts: Token ids, at least one per prompt.
        prompt_of_row: Prompt index of each row.
        buffer: Receives the responses.
        max_rows: Rows per batch.
        max_new_tokens: Maximum tokens of a response.
        pad_id: Padding token id.

    Raises:
        WiringError: The family cannot be sampled; see `model_support`.
    """
    support = model_support(model.config)
    if not support.is_supported:
        raise WiringError(support.reason)
    lengths = [len(prompts[prompt]) for prompt in prompt_of_row]
    for rows in _batches(lengths, support, max_rows, max_new_tokens):
        batch_prompts = [prompt_of_row[row] for row in rows]
        batch: _RowBatch
        if support.decoding == "full_pass":
            batch = _FullPassBatch(model, [prompts[i] for i in batch_prompts], max_new_tokens)
        else:
            unique_prompts = list(dict.fromkeys(batch_prompts))
            position = {prompt: i for i, prompt in enumerate(unique_prompts)}
            batch = _StaticBatch(
                model,
                [prompts[i] for i in unique_prompts],
                [position[i] for i in batch_prompts],
                max_new_tokens,
                pad_id,
                support,
            )
        yield from _decode_batch(batch, torch.tensor(rows, device=device_of(model)), buffer, max_new_tokens)


def _batches(
    lengths: Sequence[int], support: ModelSupport, max_rows: int, max_new_tokens: int
) -> Iterator[list[int]]:
    """Row numbers of each batch."""
    rows = list(range(len(lengths)))
    if support.decoding == "equal_length":
        groups = [[row for row in rows if lengths[row] == n] for n in sorted(set(lengths))]
    else:
        groups = [rows]
    if support.decoding == "full_pass":
        max_rows = max(1, min(max_rows, MAX_FULL_PASS_TOKENS // (max(lengths) + max_new_tokens)))
    for group in groups:
        for start in range(0, len(group), max_rows):
            yield group[start : start + max_rows]


def _decode_batch(
    batch: _RowBatch, rows: Int[Tensor, " N"], buffer: ResponseBuffer, max_new_tokens: int
) -> Iterator[Int[Tensor, " N"]]:
    hidden, is_active = batch.last_hidden, torch.ones_like(rows, dtype=torch.bool)
    for t in range(max_new_tokens):
        # Finished rows that are still in the batch read token 0; their output is ignored.
        new_tokens = torch.zeros_like(rows)
        sampled, is_finished = buffer.sample_next(
            hidden[is_active], rows[is_active], torch.full_like(rows[is_active], t)
        )
        yield sampled
        new_tokens[is_active] = sampled
        is_active[is_active.clone()] = ~is_finished
        num_active = int(is_active.sum())
        if num_active == 0:
            break
        if (len(rows) - num_active) * COMPACT_IF_DONE_ONE_IN >= len(rows):
            kept = is_active.nonzero().squeeze(-1)
            rows, new_tokens, is_active = rows[kept], new_tokens[kept], is_active[kept]
            batch.select_rows(kept)
        hidden = batch.decode_step(new_tokens)


class _StaticBatch:
    """A batch of rows with transformers' cache, attention mask and positions."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        prompt_of_row: Sequence[int],
        max_new_tokens: int,
        pad_id: int,
        support: ModelSupport,
    ) -> None:
        """Prefill the prompts, then repeat their cache entries for the rows."""
        from transformers import DynamicCache

        self.model, self.device = model, device_of(model)
        self.width = max(len(prompt) for prompt in prompts)
        input_ids, attention_mask = _left_pad(prompts, self.width, pad_id)
        input_ids, attention_mask = input_ids.to(self.device), attention_mask.to(self.device)
        # Without padding there is no mask: Mamba multiplies the one new token by the mask of all tokens.
        self.has_padding = support.decoding == "static"
        self.cache = DynamicCache(config=model.config)
        self.cache_argument = support.cache_argument or "past_key_values"
        last_hidden = self._forward(input_ids, attention_mask, position_ids_of(attention_mask))
        row = torch.tensor(list(prompt_of_row), device=self.device)
        self.last_hidden = last_hidden[row]
        # Made for beam search; unlike `batch_select_indices`, layers with a recurrent state have it too.
        self.cache.reorder_cache(row)
        self.position_ids = attention_mask.sum(-1)[row]
        self.attention_mask = torch.ones(
            len(row), self.width + max_new_tokens, dtype=torch.bool, device=self.device
        )
        self.attention_mask[:, : self.width] = attention_mask[row]

    def decode_step(self, new_tokens: Int[Tensor, " N"]) -> Float[Tensor, "N W"]:
        """See `_RowBatch`."""
        self.width += 1
        hidden = self._forward(
            new_tokens[:, None], self.attention_mask[:, : self.width], self.position_ids[:, None]
        )
        self.position_ids = self.position_ids + 1
        return hidden

    def select_rows(self, rows: Int[Tensor, " M"]) -> None:
        """See `_RowBatch`."""
        self.attention_mask, self.position_ids = self.attention_mask[rows], self.position_ids[rows]
        self.cache.reorder_cache(rows)

    def _forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        out = self.model.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask.long() if self.has_padding else None,
            position_ids=position_ids,
            use_cache=True,
            **{self.cache_argument: self.cache},
        )
        hidden = out.last_hidden_state[:, -1]
        assert isinstance(hidden, Tensor)
        return hidden


class _FullPassBatch:
    """A batch of rows that are read from their first token again in every step.

    Rows are padded on the right, where padding cannot reach the tokens before it in a causal model.
    """

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        self.model = model
        input_ids, attention_mask = pad_sequences(prompts, device=device_of(model))
        self.lengths = attention_mask.sum(-1)
        self.input_ids = torch.nn.functional.pad(input_ids, (0, max_new_tokens))
        self.last_hidden = self._forward()

    def decode_step(self, new_tokens: Int[Tensor, " N"]) -> Float[Tensor, "N W"]:
        """See `_RowBatch`."""
        self.input_ids.scatter_(1, self.lengths[:, None], new_tokens[:, None])
        self.lengths = self.lengths + 1
        return self._forward()

    def select_rows(self, rows: Int[Tensor, " M"]) -> None:
        """See `_RowBatch`."""
        self.input_ids, self.lengths = self.input_ids[rows], self.lengths[rows]

    def _forward(self) -> Float[Tensor, "N W"]:
        width = int(self.lengths.max())
        attention_mask = torch.arange(width, device=self.lengths.device) < self.lengths[:, None]
        out = self.model.base_model(
            input_ids=self.input_ids[:, :width],
            attention_mask=attention_mask.long(),
            position_ids=position_ids_of(attention_mask),
            use_cache=False,
        )
        hidden = out.last_hidden_state[torch.arange(len(self.lengths)), self.lengths - 1]
        assert isinstance(hidden, Tensor)
        return hidden


def _left_pad(
    prompts: Sequence[Sequence[int]], width: int, pad_id: int
) -> tuple[Int[Tensor, "P T"], Bool[Tensor, "P T"]]:
    """Prompts that all end in the last column, and their attention mask."""
    start = torch.tensor([[width - len(prompt)] for prompt in prompts])
    attention_mask = torch.arange(width) >= start
    input_ids = torch.full(attention_mask.shape, pad_id)
    input_ids[attention_mask] = torch.tensor([token for prompt in prompts for token in prompt])
    return input_ids, attention_mask
