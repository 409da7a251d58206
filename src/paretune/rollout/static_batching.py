"""Rows decoded in waves through the caches of transformers, for models whose attention stays their own."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from paretune.core.types import PreTrainedModel
from paretune.models.forward.logprobs import device_of, position_ids_of
from paretune.rollout.token_sampling import ResponseBuffer

COMPACT_IF_DONE_ONE_IN = 8
"""Finished rows leave once they are one in so many: leaving copies the cache, staying computes in vain."""


def decode_static_batches(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    prompt_of_row: Sequence[int],
    buffer: ResponseBuffer,
    max_rows: int,
    max_new_tokens: int,
    pad_id: int,
) -> None:
    """Decode all rows, so many at a time; a prompt cut in two by a wave is read twice.

    Args:
        model: A plain transformers model.
        prompts: Token ids, at least one each.
        prompt_of_row: For each row the number of its prompt.
        buffer: Where the responses go.
        max_rows: Rows of a wave.
        max_new_tokens: Tokens of the longest response.
        pad_id: Id that fills the prompts.
    """
    for first in range(0, len(prompt_of_row), max_rows):
        wave = prompt_of_row[first : first + max_rows]
        used = list(dict.fromkeys(wave))
        where = {prompt: place for place, prompt in enumerate(used)}
        reader = _StaticBatch(
            model, [prompts[i] for i in used], [where[i] for i in wave], max_new_tokens, pad_id
        )
        _decode_batch(
            reader, torch.arange(first, first + len(wave), device=device_of(model)), buffer, max_new_tokens
        )


def _decode_batch(
    batch: "_StaticBatch", rows: Int[Tensor, " N"], buffer: ResponseBuffer, max_new_tokens: int
) -> None:
    hidden, going = batch.last_hidden, torch.ones_like(rows, dtype=torch.bool)
    for t in range(max_new_tokens):
        new = torch.zeros_like(rows)
        new[going], over = buffer.sample_next(hidden[going], rows[going], torch.full_like(rows[going], t))
        going[going.clone()] = ~over
        left = int(going.sum())
        if left == 0:
            break
        if (len(rows) - left) * COMPACT_IF_DONE_ONE_IN >= len(rows):
            keep = going.nonzero().squeeze(-1)
            rows, new, going = rows[keep], new[keep], going[keep]
            batch.select_rows(keep)
        hidden = batch.decode_step(new)


class _StaticBatch:
    """A model reading rows token by token: the prompts' and responses' keys and values, masks and places."""

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
        from transformers import DynamicCache

        self.model, self.device = model, device_of(model)
        self.width = max(len(prompt) for prompt in prompts)
        tokens, attend = _left_pad(prompts, self.width, pad_id)
        tokens, attend = tokens.to(self.device), attend.to(self.device)
        self.cache = DynamicCache(config=model.config)
        last = self._forward(tokens, attend, position_ids_of(attend))
        row = torch.tensor(list(prompt_of_row), device=self.device)
        self.last_hidden = last[row]
        self.cache.batch_select_indices(row)
        self.position_ids = attend.sum(-1)[row]
        self.attention_mask = torch.ones(
            len(row), self.width + max_new_tokens, dtype=torch.bool, device=self.device
        )
        self.attention_mask[:, : self.width] = attend[row]

    def decode_step(self, new_tokens: Int[Tensor, " N"]) -> Float[Tensor, "N W"]:
        """One more token in every row; the hidden states there."""
        self.width += 1
        hidden = self._forward(
            new_tokens[:, None], self.attention_mask[:, : self.width], self.position_ids[:, None]
        )
        self.position_ids = self.position_ids + 1
        return hidden

    def select_rows(self, rows: Int[Tensor, " M"]) -> None:
        """Forget all rows but these."""
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
    """Prompts that all end in the last column, and where their tokens are."""
    start = torch.tensor([[width - len(prompt)] for prompt in prompts])
    attend = torch.arange(width) >= start
    tokens = torch.full(attend.shape, pad_id)
    tokens[attend] = torch.tensor([token for prompt in prompts for token in prompt])
    return tokens, attend
