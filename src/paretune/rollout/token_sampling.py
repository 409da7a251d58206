"""Sampling of tokens from distributions by inverse transform, and the buffer of growing responses."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from paretune.models.forward.lm_head import LmHead, next_token_logprobs

# Tokens whose probabilities are summed before single tokens are searched. A cumulative sum over the whole
# vocabulary took 1.9 ms per step of 96 rows; spans of 64 take 0.4 ms.
SPAN_SIZE = 64

# From this number of rows, matrix libraries compute each row with the same bits whatever the other rows are.
MIN_DETERMINISTIC_ROWS = 12


def deterministic_row_count(n: int) -> int:
    """Rows to compute so that each of n rows has the same bits as in a large batch; the rest is ignored."""
    return n if n >= MIN_DETERMINISTIC_ROWS else -(-n // 4) * 4


@dataclass(frozen=True, slots=True)
class DecodedResponses:
    """Responses in the order of the requested rows."""

    token_ids: tuple[list[int], ...]
    """Without the prompt, with the EOS token if one was sampled."""
    logprobs: tuple[NDArray[np.float32], ...]
    """Log-probability of each token of `token_ids` under softmax(logits / temperature)."""
    truncated: tuple[bool, ...]
    """No EOS token was sampled within the limit."""


class ResponseBuffer:
    """Responses under construction, in the order of the requested rows."""

    def __init__(
        self, lm_head: LmHead, uniform: NDArray[np.float64], eos_ids: Sequence[int], temperature: float
    ) -> None:
        """See `decode` for the arguments."""
        device = lm_head.weight.device
        self._lm_head, self._temperature = lm_head, temperature
        self._uniform = torch.from_numpy(uniform).to(device)
        self._eos_ids = torch.tensor(list(eos_ids), device=device)
        self._token_ids = torch.zeros(uniform.shape, dtype=torch.long, device=device)
        self._logprobs = torch.zeros(uniform.shape, dtype=torch.float32, device=device)
        self._max_new_tokens = uniform.shape[1]
        # One more than the limit until an EOS token is sampled, which marks truncated responses.
        self._lengths = torch.full((len(uniform),), self._max_new_tokens + 1, device=device)

    def sample_next(
        self, hidden: Float[Tensor, "N W"], rows: Int[Tensor, " N"], lengths: Int[Tensor, " N"]
    ) -> tuple[Int[Tensor, " N"], Bool[Tensor, " N"]]:
        """Sample one more token for each of these rows.

        Args:
            hidden: Hidden states from which the tokens are predicted.
            rows: Row numbers.
            lengths: Current number of response tokens per row.

        Returns:
            The tokens, and whether the row is finished.
        """
        n = len(hidden)
        if n < deterministic_row_count(n):
            hidden = F.pad(hidden, (0, 0, 0, deterministic_row_count(n) - n))
        logprobs = next_token_logprobs(self._lm_head, hidden, self._temperature or 1.0)[:n]
        is_greedy = self._temperature == 0
        new_tokens = (
            logprobs.argmax(-1) if is_greedy else sample_tokens(logprobs, self._uniform[rows, lengths])
        )
        self._token_ids[rows, lengths] = new_tokens
        self._logprobs[rows, lengths] = logprobs.gather(-1, new_tokens[:, None]).squeeze(-1).float()
        has_eos = torch.isin(new_tokens, self._eos_ids)
        self._lengths[rows] = torch.where(has_eos, lengths + 1, self._lengths[rows])
        return new_tokens, has_eos | (lengths + 1 == self._max_new_tokens)

    def to_responses(self) -> DecodedResponses:
        """All responses, cut at their ends."""
        lengths, token_ids = self._lengths.tolist(), self._token_ids.tolist()
        logprobs = self._logprobs.cpu().numpy()
        return DecodedResponses(
            token_ids=tuple(row[:n] for row, n in zip(token_ids, lengths, strict=True)),
            logprobs=tuple(row[:n] for row, n in zip(logprobs, lengths, strict=True)),
            truncated=tuple(n > self._max_new_tokens for n in lengths),
        )


def sample_tokens(logprobs: Float[Tensor, "N V"], uniform: Float[Tensor, " N"]) -> Int[Tensor, " N"]:
    """The token at which the cumulative distribution exceeds a uniform random number in [0, 1).

    One random number per token, so that a row's tokens do not depend on the other rows of the batch. The span
    of tokens is searched first, then the token within it. Spans are summed in the precision of `logprobs`,
    sums of spans in float64.

    Args:
        logprobs: Log-probabilities; rows need not be normalized exactly.
        uniform: One number per row.
    """
    probs = F.pad(logprobs.exp(), (0, -logprobs.shape[-1] % SPAN_SIZE)).unflatten(-1, (-1, SPAN_SIZE))
    span_mass = probs.sum(-1).double()
    cumulative = span_mass.cumsum(-1)
    # Relative to the total mass, which rounding makes differ from 1.
    target = uniform[:, None] * cumulative[:, -1:]
    span = _first_above(cumulative, target)
    mass_before = cumulative.gather(-1, span) - span_mass.gather(-1, span)
    within_span = probs.take_along_dim(span[..., None], 1).squeeze(1).cumsum(-1, dtype=torch.float64)
    token = span * SPAN_SIZE + _first_above(within_span, target - mass_before)
    return token.squeeze(-1).clamp(max=logprobs.shape[-1] - 1)


def _first_above(cumulative: Float[Tensor, "N M"], target: Float[Tensor, "N 1"]) -> Int[Tensor, "N 1"]:
    """Index of the first sum above the target; if rounding puts it above all, of the last increase."""
    largest_below_total = torch.nextafter(cumulative[:, -1:], torch.zeros_like(target))
    index = torch.searchsorted(cumulative, target.clamp(min=0.0).minimum(largest_below_total), right=True)
    # NaN sums are found nowhere; the guards of training report them.
    return index.clamp(max=cumulative.shape[-1] - 1)
