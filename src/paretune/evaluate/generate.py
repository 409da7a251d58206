"""The responses that are judged, and how far their policy has moved."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from paretune.core.batch import Batch
from paretune.data.chat import PromptFormat
from paretune.data.loader import prompt_key
from paretune.data.records import Prompt, Sample
from paretune.evaluate.statistics import simultaneous_intervals
from paretune.models.model_passes import response_logprobs
from paretune.rollout.sampler import OnPolicy, Sampler


@dataclass(frozen=True, kw_only=True)
class Generations:
    """What one policy answered: `num_generations` samples a prompt, those of a prompt together."""

    prompts: tuple[Prompt, ...]
    num_generations: int
    samples: tuple[Sample, ...]
    response_lengths: tuple[int, ...]
    """Tokens of each response, the stop token included."""
    batches: tuple[Batch, ...]
    """The same responses as tokens."""


def generate(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    *,
    num_generations: int = 1,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    prompt_format: PromptFormat = "",
    seed: int = 1000,
    prompts_per_batch: int = 64,
    on_progress: Callable[[int, int], None] | None = None,
) -> Generations:
    """Answer every prompt `num_generations` times.

    Each response depends on the seed, its prompt's place in `prompts` and its own number, not on what is
    sampled beside it.

    Args:
        sampler: Of the policy in question.
        prompts: In a fixed order.
        num_generations: Samples a prompt.
        max_new_tokens: Longest response in tokens.
        temperature: Of sampling.
        prompt_format: What is asked of the policy beside every prompt.
        seed: Of the evaluation; apart from the training's.
        prompts_per_batch: Prompts handed to the sampler at a time.
        on_progress: Called with the prompts done and their number.
    """
    how = OnPolicy(
        num_generations=num_generations,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        prompt_format=prompt_format,
    )
    samples: list[Sample] = []
    batches = []
    for start in range(0, len(prompts), prompts_per_batch):
        part = prompts[start : start + prompts_per_batch]
        index = range(start, start + len(part))
        batch, written = sampler(part, how, seed=seed, step=0, prompt_index=list(index))
        batches.append(batch)
        samples += written
        if on_progress is not None:
            on_progress(start + len(part), len(prompts))
    lengths = tuple(int(row) for batch in batches for row in batch.response_mask.sum(-1))
    return Generations(
        prompts=tuple(prompts),
        num_generations=num_generations,
        samples=tuple(samples),
        response_lengths=lengths,
        batches=tuple(batches),
    )


def estimate_kl(
    generations: Generations, start_model: nn.Module, *, temperature: float = 1.0, rows_per_pass: int = 32
) -> dict[str, Any]:
    """KL(policy || start) in nats a response, estimated on the policy's own responses.

    k1 = sum_t log r_t and k3 = sum_t (1 / r_t - 1 + log r_t) with r_t = p(policy) / p(start), averaged over
    the samples; the interval is k1's, over prompts.

    Args:
        generations: Responses with the sampler's log-probabilities.
        start_model: The policy before training.
        temperature: At which the responses were sampled.
        rows_per_pass: Rows of a forward pass.

    Source: Schulman 2020, "Approximating KL divergence", k1 and k3.
    """
    k1: list[float] = []
    k3: list[float] = []
    for batch in generations.batches:
        before = response_logprobs(
            start_model, batch, temperature=temperature, rows_per_pass=rows_per_pass
        ).double()
        gap = batch.require("rollout_logprobs").double() - before
        k1 += gap.sum(-1).tolist()
        k3 += ((-gap).exp() - 1 + gap).sum(-1).tolist()
    each = np.array(k1).reshape(-1, generations.num_generations).mean(1)
    found = simultaneous_intervals(each[:, None], clusters=prompt_clusters(generations.prompts))
    return {
        "k1": float(np.mean(k1)),
        "k3": float(np.mean(k3)),
        "low": float(found.low[0]),
        "high": float(found.high[0]),
        "per_token": float(np.sum(k3) / max(sum(generations.response_lengths), 1)),
        "unit": "nats/response",
    }


def prompt_clusters(prompts: Sequence[Prompt]) -> NDArray[np.int64]:
    """Prompts that begin with the same request get the same number; each empty one its own."""
    seen: dict[str, int] = {}
    keys = (prompt_key(prompt) if prompt.messages else f"empty {i}" for i, prompt in enumerate(prompts))
    return np.array([seen.setdefault(key, len(seen)) for key in keys], dtype=np.int64)
