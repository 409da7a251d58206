"""Static batching with transformers' own KV cache, for models without support for custom attention."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from paretune.core.types import PreTrainedModel
from paretune.models.forward.logprobs import device_of, position_ids_of
from paretune.rollout.token_sampling import ResponseBuffer

# Finished rows are removed once they are one in 8 of the batch: removing them copies the cache, keeping them
# wastes compute.
COMPACT_IF_DONE_ONE_IN = 8


def decode_static_batches(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    prompt_of_row: Sequence[int],
    buffer: ResponseBuffer,
    max_rows: int,
    max_new_tokens: int,
    pad_id: int,
) -> None:
    """Decode rows in consecutive batches; a prompt whose rows are in two batches is prefilled twice.

    Args:
        model: A plain transformers model.
        prompts: Token ids, at least one per prompt.
        prompt_of_row: Prompt index of each row.
        buffer: Receives the responses.
        max_rows: Rows per batch.
        max_new_tokens: Maximum tokens of a response.
        pad_id: Padding token id.
    """
    for start in range(0, len(prompt_of_row), max_rows):
        batch_prompts = prompt_of_row[start : start + max_rows]
        unique_prompts = list(dict.fromkeys(batch_prompts))
        position = {prompt: i for i, prompt in enumerate(unique_prompts)}
        batch = _StaticBatch(
            model,
            [prompts[i] for i in unique_prompts],
            [position[i] for i in batch_prompts],
            max_new_tokens,
            pad_id,
        )
        rows = torch.arange(start, start + len(batch_prompts), device=device_of(model))
        _decode_batch(batch, rows, buffer, max_new_tokens)


def _decode_batch(
    batch: "_StaticBatch", rows: Int[Tensor, " N"], buffer: ResponseBuffer, max_new_tokens: int
) -> None:
    hidden, is_active = batch.last_hidden, torch.ones_like(rows, dtype=torch.bool)
    for t in range(max_new_tokens):
        # Finished rows that are still in the batch read token 0; their output is ignored.
        new_tokens = torch.zeros_like(rows)
        new_tokens[is_active], is_finished = buffer.sample_next(
            hidden[is_active], rows[is_active], torch.full_like(rows[is_active], t)
        )
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
    """A batch of rows with their KV cache, attention mask and positions."""

    last_hidden: Float[Tensor, "N W"]
    """Hidden states at the end of each row's prompt."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        prompt_of_row: Sequence[int],
        max_new_tokens: int,
        pad_id: int,
    ) -> None:
        """Prefill the prompts, then repeat their cache entries for the rows."""
        from transformers import DynamicCache

        self.model, self.device = model, device_of(model)
        self.width = max(len(prompt) for prompt in prompts)
        input_ids, attention_mask = _left_pad(prompts, self.width, pad_id)
        input_ids, attention_mask = input_ids.to(self.device), attention_mask.to(self.device)
        self.cache = DynamicCache(config=model.config)
        last_hidden = self._forward(input_ids, attention_mask, position_ids_of(attention_mask))
        row = torch.tensor(list(prompt_of_row), device=self.device)
        self.last_hidden = last_hidden[row]
        self.cache.batch_select_indices(row)
        self.position_ids = attention_mask.sum(-1)[row]
        self.attention_mask = torch.ones(
            len(row), self.width + max_new_tokens, dtype=torch.bool, device=self.device
        )
        self.attention_mask[:, : self.width] = attention_mask[row]

    def decode_step(self, new_tokens: Int[Tensor, " N"]) -> Float[Tensor, "N W"]:
        """Read one more token per row; returns the hidden states after it."""
        self.width += 1
        hidden = self._forward(
            new_tokens[:, None], self.attention_mask[:, : self.width], self.position_ids[:, None]
        )
        self.position_ids = self.position_ids + 1
        return hidden

    def select_rows(self, rows: Int[Tensor, " M"]) -> None:
        """Keep only these rows."""
        self.attention_mask, self.position_ids = self.attention_mask[rows], self.position_ids[rows]
        self.cache.batch_select_indices(rows)

    def _forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        out = self.model.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask.long(),
            position_ids=position_ids,
            past_key_values=self.cache,
            use_cache=True,
        )
        hidden = out.last_hidden_state[:, -1]
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
