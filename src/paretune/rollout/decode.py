"""The token loop: rows of prompt ids in, response ids and their exact log-probabilities out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from paretune.models.adapt import bare
from paretune.models.forward import device_of, head_of, log_distribution, positions

CROWD = 8
"""Finished rows leave once they are one in so many: leaving copies the cache, staying computes in vain."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """Responses in the order of the rows that were asked for."""

    ids: tuple[list[int], ...]
    """Without the prompt, with the stop token where one was drawn."""
    logp: tuple[NDArray[np.float32], ...]
    """Of each token of `ids`, under softmax(logits / temperature)."""
    truncated: tuple[bool, ...]
    """No stop token was drawn within the limit."""


def draw(logp: Float[Tensor, "N V"], uniform: Float[Tensor, " N"]) -> Int[Tensor, " N"]:
    """The token at which the cumulative distribution passes a number in [0, 1), in double precision.

    One number a token, so that a row's tokens do not depend on the rows beside it.
    """
    mass = logp.double().exp().cumsum(-1)
    token = torch.searchsorted(mass, uniform[:, None] * mass[:, -1:], right=True)
    return token.squeeze(-1).clamp(max=logp.shape[-1] - 1)


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
) -> Decoded:
    """Sample one response a row; every prompt is read once, however many rows answer it.

    Args:
        model: A causal model in evaluation mode, with or without an adapter.
        prompts: Token ids, at least one each.
        row_prompt: For each row the number of its prompt.
        uniform: For each row one number in [0, 1) a token; its width is the longest response.
        stops: Ids that end a response.
        temperature: Logits are divided by it.
        pad: Id that fills the rows.
    """
    with bare(model) as base:
        return _decode(base, prompts, row_prompt, uniform, stops, temperature, pad)


def _decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    row_prompt: Sequence[int],
    uniform: NDArray[np.float64],
    stops: Sequence[int],
    temperature: float,
    pad: int,
) -> Decoded:
    """The loop itself, over a plain transformers model."""
    device, limit = device_of(model), uniform.shape[1]
    chance = torch.from_numpy(uniform).to(device)
    ends = torch.tensor(list(stops), device=device)
    ids = torch.full(uniform.shape, pad, device=device)
    logps = torch.zeros(uniform.shape, device=device)
    length = torch.full((len(row_prompt),), limit + 1, device=device)
    rows = torch.arange(len(row_prompt), device=device)
    going = torch.ones_like(rows, dtype=torch.bool)
    head, reader = head_of(model), _Reader(model, prompts, row_prompt, limit, pad)
    hidden = reader.last
    for t in range(limit):
        logp = log_distribution(head, hidden, temperature)
        new = draw(logp, chance[rows, t])
        ids[rows, t] = new
        logps[rows, t] = logp.gather(-1, new[:, None]).squeeze(-1).float()
        ended = torch.isin(new, ends)
        length[rows[ended & going]] = t + 1
        going &= ~ended
        left = int(going.sum())
        if left == 0 or t + 1 == limit:
            break
        if (len(rows) - left) * CROWD >= len(rows):
            keep = going.nonzero().squeeze(-1)
            rows, new, going = rows[keep], new[keep], going[keep]
            reader.keep(keep)
        hidden = reader.read(new)
    return _gather(ids, logps, length, limit)


def _gather(ids: Tensor, logps: Tensor, length: Tensor, limit: int) -> Decoded:
    """Cut every row at its end; a length beyond the limit says that no stop token was drawn."""
    lengths, table, logp = length.tolist(), ids.tolist(), logps.cpu().numpy()
    return Decoded(
        ids=tuple(row[:n] for row, n in zip(table, lengths, strict=True)),
        logp=tuple(row[:n] for row, n in zip(logp, lengths, strict=True)),
        truncated=tuple(n > limit for n in lengths),
    )


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
