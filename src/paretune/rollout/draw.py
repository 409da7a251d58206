"""From a distribution and a number in [0, 1) to a token; and the responses that such tokens make."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from paretune.models.head import Head, log_distribution

SPAN = 64
"""Tokens whose mass is added up at once before any is looked at alone."""
EVEN = 12
"""Rows from which on the libraries below give each row the same bits whatever stands beside it."""


def filled(n: int) -> int:
    """Rows of a product that gives each of n the bits it would have among many; what fills up is ignored."""
    return n if n >= EVEN else -(-n // 4) * 4


@dataclass(frozen=True, slots=True)
class Decoded:
    """Responses in the order of the rows that were asked for."""

    ids: tuple[list[int], ...]
    """Without the prompt, with the stop token where one was drawn."""
    logp: tuple[NDArray[np.float32], ...]
    """Of each token of `ids`, under softmax(logits / temperature)."""
    truncated: tuple[bool, ...]
    """No stop token was drawn within the limit."""


class Written:
    """The responses while they grow, in the order of the rows that were asked for."""

    def __init__(
        self, head: Head, uniform: NDArray[np.float64], stops: Sequence[int], temperature: float
    ) -> None:
        """As `decode` is asked."""
        device = head.weight.device
        self._head, self._temperature = head, temperature
        self._chance = torch.from_numpy(uniform).to(device)
        self._ends = torch.tensor(list(stops), device=device)
        self._ids = torch.zeros(uniform.shape, dtype=torch.long, device=device)
        self._logp = torch.zeros(uniform.shape, device=device)
        self._limit = uniform.shape[1]
        self._length = torch.full((len(uniform),), self._limit + 1, device=device)

    def extend(
        self, hidden: Float[Tensor, "N W"], rows: Int[Tensor, " N"], place: Int[Tensor, " N"]
    ) -> tuple[Int[Tensor, " N"], Bool[Tensor, " N"]]:
        """One more token in each of these rows, and whether it was the row's last.

        Args:
            hidden: The states from which the tokens are drawn.
            rows: Numbers of the rows.
            place: How many tokens each row has.
        """
        n = len(hidden)
        if n < filled(n):
            hidden = F.pad(hidden, (0, 0, 0, filled(n) - n))
        logp = log_distribution(self._head, hidden, self._temperature)[:n]
        new = draw(logp, self._chance[rows, place])
        self._ids[rows, place] = new
        self._logp[rows, place] = logp.gather(-1, new[:, None]).squeeze(-1).float()
        ended = torch.isin(new, self._ends)
        self._length[rows] = torch.where(ended, place + 1, self._length[rows])
        return new, ended | (place + 1 == self._limit)

    def decoded(self) -> Decoded:
        """Every row cut at its end; a length beyond the limit says that no stop token was drawn."""
        lengths, table, logp = self._length.tolist(), self._ids.tolist(), self._logp.cpu().numpy()
        return Decoded(
            ids=tuple(row[:n] for row, n in zip(table, lengths, strict=True)),
            logp=tuple(row[:n] for row, n in zip(logp, lengths, strict=True)),
            truncated=tuple(n > self._limit for n in lengths),
        )


def draw(logp: Float[Tensor, "N V"], uniform: Float[Tensor, " N"]) -> Int[Tensor, " N"]:
    """The token at which the cumulative distribution passes a number in [0, 1).

    One number a token, so that a row's tokens do not depend on the rows beside it. First the span of tokens
    in which that happens is found, then the token: only one span a row is summed token by token. Spans are
    summed in the precision of `logp`, sums of spans in double.
    """
    mass = F.pad(logp.exp(), (0, -logp.shape[-1] % SPAN)).unflatten(-1, (-1, SPAN))
    spans = mass.sum(-1).double()
    upto = spans.cumsum(-1)
    target = uniform[:, None] * upto[:, -1:]
    span = _passed(upto, target)
    before = upto.gather(-1, span) - spans.gather(-1, span)
    inside = mass.take_along_dim(span[..., None], 1).squeeze(1).cumsum(-1, dtype=torch.float64)
    token = span * SPAN + _passed(inside, target - before)
    return token.squeeze(-1).clamp(max=logp.shape[-1] - 1)


def _passed(upto: Float[Tensor, "N M"], target: Float[Tensor, "N 1"]) -> Int[Tensor, "N 1"]:
    """The first sum above the target, or the last that grows where rounding put the target above all."""
    below = torch.nextafter(upto[:, -1:], torch.zeros_like(target))
    place = torch.searchsorted(upto, target.clamp(min=0.0).minimum(below), right=True)
    return place.clamp(max=upto.shape[-1] - 1)  # beyond the last where nothing is a number
