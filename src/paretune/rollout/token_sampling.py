"""From a distribution and a number in [0, 1) to a token; and the responses that such tokens make."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from paretune.models.forward.lm_head import LmHead, next_token_logprobs

SPAN_SIZE = 64
"""Tokens whose mass is added up at once before any is looked at alone."""
MIN_DETERMINISTIC_ROWS = 12
"""Rows from which on the libraries below give each row the same bits whatever stands beside it."""


def deterministic_row_count(n: int) -> int:
    """Rows of a product that gives each of n the bits it would have among many; what fills up is ignored."""
    return n if n >= MIN_DETERMINISTIC_ROWS else -(-n // 4) * 4


@dataclass(frozen=True, slots=True)
class DecodedResponses:
    """Responses in the order of the rows that were asked for."""

    token_ids: tuple[list[int], ...]
    """Without the prompt, with the stop token where one was drawn."""
    logprobs: tuple[NDArray[np.float32], ...]
    """Of each token of `token_ids`, under softmax(logits / temperature)."""
    truncated: tuple[bool, ...]
    """No stop token was drawn within the limit."""


class ResponseBuffer:
    """The responses while they grow, in the order of the rows that were asked for."""

    def __init__(
        self, lm_head: LmHead, uniform: NDArray[np.float64], eos_ids: Sequence[int], temperature: float
    ) -> None:
        """As `decode` is asked."""
        device = lm_head.weight.device
        self._lm_head, self._temperature = lm_head, temperature
        self._uniform = torch.from_numpy(uniform).to(device)
        self._eos_ids = torch.tensor(list(eos_ids), device=device)
        self._token_ids = torch.zeros(uniform.shape, dtype=torch.long, device=device)
        self._logprobs = torch.zeros(uniform.shape, device=device)
        self._max_new_tokens = uniform.shape[1]
        self._lengths = torch.full((len(uniform),), self._max_new_tokens + 1, device=device)

    def sample_next(
        self, hidden: Float[Tensor, "N W"], rows: Int[Tensor, " N"], lengths: Int[Tensor, " N"]
    ) -> tuple[Int[Tensor, " N"], Bool[Tensor, " N"]]:
        """One more token in each of these rows, and whether it was the row's last.

        Args:
            hidden: The states from which the tokens are drawn.
            rows: Numbers of the rows.
            lengths: How many tokens each row has.
        """
        n = len(hidden)
        if n < deterministic_row_count(n):
            hidden = F.pad(hidden, (0, 0, 0, deterministic_row_count(n) - n))
        logp = next_token_logprobs(self._lm_head, hidden, self._temperature)[:n]
        new = sample_tokens(logp, self._uniform[rows, lengths])
        self._token_ids[rows, lengths] = new
        self._logprobs[rows, lengths] = logp.gather(-1, new[:, None]).squeeze(-1).float()
        ended = torch.isin(new, self._eos_ids)
        self._lengths[rows] = torch.where(ended, lengths + 1, self._lengths[rows])
        return new, ended | (lengths + 1 == self._max_new_tokens)

    def to_responses(self) -> DecodedResponses:
        """Every row cut at its end; a length beyond the limit says that no stop token was drawn."""
        lengths, table, logp = self._lengths.tolist(), self._token_ids.tolist(), self._logprobs.cpu().numpy()
        return DecodedResponses(
            token_ids=tuple(row[:n] for row, n in zip(table, lengths, strict=True)),
            logprobs=tuple(row[:n] for row, n in zip(logp, lengths, strict=True)),
            truncated=tuple(n > self._max_new_tokens for n in lengths),
        )


def sample_tokens(logprobs: Float[Tensor, "N V"], uniform: Float[Tensor, " N"]) -> Int[Tensor, " N"]:
    """The token at which the cumulative distribution passes a number in [0, 1).

    One number a token, so that a row's tokens do not depend on the rows beside it. First the span of tokens
    in which that happens is found, then the token: only one span a row is summed token by token. Spans are
    summed in the precision of `logprobs`, sums of spans in double.
    """
    mass = F.pad(logprobs.exp(), (0, -logprobs.shape[-1] % SPAN_SIZE)).unflatten(-1, (-1, SPAN_SIZE))
    spans = mass.sum(-1).double()
    upto = spans.cumsum(-1)
    target = uniform[:, None] * upto[:, -1:]
    span = _first_above(upto, target)
    before = upto.gather(-1, span) - spans.gather(-1, span)
    inside = mass.take_along_dim(span[..., None], 1).squeeze(1).cumsum(-1, dtype=torch.float64)
    token = span * SPAN_SIZE + _first_above(inside, target - before)
    return token.squeeze(-1).clamp(max=logprobs.shape[-1] - 1)


def _first_above(cumulative: Float[Tensor, "N M"], target: Float[Tensor, "N 1"]) -> Int[Tensor, "N 1"]:
    """The first sum above the target, or the last that grows where rounding put the target above all."""
    below = torch.nextafter(cumulative[:, -1:], torch.zeros_like(target))
    place = torch.searchsorted(cumulative, target.clamp(min=0.0).minimum(below), right=True)
    return place.clamp(max=cumulative.shape[-1] - 1)  # beyond the last where nothing is a number
