"""The responses that are judged, and how far their policy has moved."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from paretune.batch import Batch
from paretune.data.collate import prompt_key
from paretune.data.frame import Frame
from paretune.data.records import Prompt, Sample
from paretune.evaluate.statistics import simultaneous_intervals
from paretune.models.measure import response_logp
from paretune.rollout.sample import Online, Sampler


@dataclass(frozen=True, kw_only=True)
class Generations:
    """What one policy answered: `n` samples a prompt, those of a prompt together."""

    prompts: tuple[Prompt, ...]
    n: int
    samples: tuple[Sample, ...]
    lengths: tuple[int, ...]
    """Tokens of each response, the stop token included."""
    batches: tuple[Batch, ...]
    """The same responses as tokens."""


def generate(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    *,
    n: int = 1,
    max_new: int = 256,
    temperature: float = 1.0,
    frame: Frame = "",
    seed: int = 1000,
    at_once: int = 64,
    tell: Callable[[int, int], None] | None = None,
) -> Generations:
    """Answer every prompt `n` times.

    Each response depends on the seed, its prompt's place in `prompts` and its own number, not on what is
    sampled beside it.

    Args:
        sampler: Of the policy in question.
        prompts: In a fixed order.
        n: Samples a prompt.
        max_new: Longest response in tokens.
        temperature: Of sampling.
        frame: What is asked of the policy beside every prompt.
        seed: Of the evaluation; apart from the training's.
        at_once: Prompts handed to the sampler at a time.
        tell: Called with the prompts done and their number.
    """
    how = Online(n=n, max_new=max_new, temperature=temperature, frame=frame)
    samples: list[Sample] = []
    batches = []
    for start in range(0, len(prompts), at_once):
        part = prompts[start : start + at_once]
        index = range(start, start + len(part))
        batch, written = sampler(part, how, seed=seed, step=0, prompt_index=list(index))
        batches.append(batch)
        samples += written
        if tell is not None:
            tell(start + len(part), len(prompts))
    lengths = tuple(int(row) for batch in batches for row in batch.respond.sum(-1))
    return Generations(
        prompts=tuple(prompts), n=n, samples=tuple(samples), lengths=lengths, batches=tuple(batches)
    )


def divergence(
    after: Generations, start: nn.Module, *, temperature: float = 1.0, rows: int = 32
) -> dict[str, Any]:
    """KL(policy || start) in nats a response, estimated on the policy's own responses.

    k1 = sum_t log r_t and k3 = sum_t (1 / r_t - 1 + log r_t) with r_t = p(policy) / p(start), averaged over
    the samples; the interval is k1's, over prompts.

    Args:
        after: Responses with the sampler's log-probabilities.
        start: The policy before training.
        temperature: At which the responses were sampled.
        rows: Rows of a forward pass.

    Source: Schulman 2020, "Approximating KL divergence", k1 and k3.
    """
    k1: list[float] = []
    k3: list[float] = []
    for batch in after.batches:
        before = response_logp(start, batch, temperature=temperature, rows=rows).double()
        gap = batch.need("sampler_logp").double() - before
        k1 += gap.sum(-1).tolist()
        k3 += ((-gap).exp() - 1 + gap).sum(-1).tolist()
    each = np.array(k1).reshape(-1, after.n).mean(1)
    found = simultaneous_intervals(each[:, None], clusters=clusters_of(after.prompts))
    return {
        "k1": float(np.mean(k1)),
        "k3": float(np.mean(k3)),
        "low": float(found.low[0]),
        "high": float(found.high[0]),
        "per_token": float(np.sum(k3) / max(sum(after.lengths), 1)),
        "unit": "nats/response",
    }


def clusters_of(prompts: Sequence[Prompt]) -> NDArray[np.int64]:
    """Prompts that begin with the same request get the same number; each empty one its own."""
    seen: dict[str, int] = {}
    keys = (prompt_key(prompt) if prompt.messages else f"empty {i}" for i, prompt in enumerate(prompts))
    return np.array([seen.setdefault(key, len(seen)) for key in keys], dtype=np.int64)
