"""Rows decoded in waves through the caches of transformers, for models whose attention stays their own."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from paretune.elsewhere import PreTrainedModel
from paretune.models.forward import device_of, positions
from paretune.rollout.draw import Written

CROWD = 8
"""Finished rows leave once they are one in so many: leaving copies the cache, staying computes in vain."""


def in_waves(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    row_prompt: Sequence[int],
    written: Written,
    rows: int,
    limit: int,
    pad: int,
) -> None:
    """Decode all rows, so many at a time; a prompt cut in two by a wave is read twice.

    Args:
        model: A plain transformers model.
        prompts: Token ids, at least one each.
        row_prompt: For each row the number of its prompt.
        written: Where the responses go.
        rows: Rows of a wave.
        limit: Tokens of the longest response.
        pad: Id that fills the prompts.
    """
    for first in range(0, len(row_prompt), rows):
        wave = row_prompt[first : first + rows]
        used = list(dict.fromkeys(wave))
        where = {prompt: place for place, prompt in enumerate(used)}
        reader = _Reader(model, [prompts[i] for i in used], [where[i] for i in wave], limit, pad)
        _wave(reader, torch.arange(first, first + len(wave), device=device_of(model)), written, limit)


def _wave(reader: "_Reader", rows: Int[Tensor, " N"], written: Written, limit: int) -> None:
    hidden, going = reader.last, torch.ones_like(rows, dtype=torch.bool)
    for t in range(limit):
        new = torch.zeros_like(rows)
        new[going], over = written.extend(hidden[going], rows[going], torch.full_like(rows[going], t))
        going[going.clone()] = ~over
        left = int(going.sum())
        if left == 0:
            break
        if (len(rows) - left) * CROWD >= len(rows):
            keep = going.nonzero().squeeze(-1)
            rows, new, going = rows[keep], new[keep], going[keep]
            reader.keep(keep)
        hidden = reader.read(new)


class _Reader:
    """A model reading rows token by token: the prompts' and responses' keys and values, masks and places."""

    last: Float[Tensor, "N W"]
    """Hidden states at the end of each row's prompt."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        row_prompt: Sequence[int],
        limit: int,
        pad: int,
    ) -> None:
        from transformers import DynamicCache

        self.model, self.device = model, device_of(model)
        self.width = max(len(prompt) for prompt in prompts)
        tokens, attend = _left_padded(prompts, self.width, pad)
        tokens, attend = tokens.to(self.device), attend.to(self.device)
        self.cache = DynamicCache(config=model.config)
        last = self._body(tokens, attend, positions(attend))
        row = torch.tensor(list(row_prompt), device=self.device)
        self.last = last[row]
        self.cache.batch_select_indices(row)
        self.place = attend.sum(-1)[row]
        self.attend = torch.ones(len(row), self.width + limit, dtype=torch.bool, device=self.device)
        self.attend[:, : self.width] = attend[row]

    def read(self, new: Int[Tensor, " N"]) -> Float[Tensor, "N W"]:
        """One more token in every row; the hidden states there."""
        self.width += 1
        hidden = self._body(new[:, None], self.attend[:, : self.width], self.place[:, None])
        self.place = self.place + 1
        return hidden

    def keep(self, rows: Int[Tensor, " M"]) -> None:
        """Forget all rows but these."""
        self.attend, self.place = self.attend[rows], self.place[rows]
        self.cache.batch_select_indices(rows)

    def _body(self, tokens: Tensor, attend: Tensor, place: Tensor) -> Tensor:
        out = self.model.base_model(
            input_ids=tokens,
            attention_mask=attend.long(),
            position_ids=place,
            past_key_values=self.cache,
            use_cache=True,
        )
        hidden = out.last_hidden_state[:, -1]
        assert isinstance(hidden, Tensor)
        return hidden


def _left_padded(
    prompts: Sequence[Sequence[int]], width: int, pad: int
) -> tuple[Int[Tensor, "P T"], Bool[Tensor, "P T"]]:
    """Prompts that all end in the last column, and where their tokens are."""
    start = torch.tensor([[width - len(prompt)] for prompt in prompts])
    attend = torch.arange(width) >= start
    tokens = torch.full(attend.shape, pad)
    tokens[attend] = torch.tensor([token for prompt in prompts for token in prompt])
    return tokens, attend
