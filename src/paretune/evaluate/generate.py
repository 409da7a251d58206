"""Responses of a policy to the evaluation prompts, and their KL divergence from the starting policy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from paretune.core.batch import Batch
from paretune.data.loader import prompt_key
from paretune.data.prompt_formats import PromptFormat
from paretune.data.records import Prompt, Sample
from paretune.evaluate.statistics import simultaneous_intervals
from paretune.models.model_passes import response_logprobs
from paretune.rollout.sampler import OnPolicy, Sampler


@dataclass(frozen=True, kw_only=True)
class Generations:
    """Responses of one policy: `num_generations` consecutive samples per prompt."""

    prompts: tuple[Prompt, ...]
    num_generations: int
    samples: tuple[Sample, ...]
    response_lengths: tuple[int, ...]
    """Tokens per response, including the EOS token."""
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
    """Sample `num_generations` responses to every prompt.

    Each response depends on the seed, the index of its prompt in `prompts` and its index among the prompt's
    samples, not on the batch that it is sampled in.

    Args:
        sampler: Sampler of the policy.
        prompts: Prompts in a fixed order.
        num_generations: Samples per prompt.
        max_new_tokens: Maximum length of a response in tokens.
        temperature: Sampling temperature.
        prompt_format: Format instruction that is added to every prompt.
        seed: Seed of the evaluation, different from that of the training.
        prompts_per_batch: Prompts per call of the sampler.
        on_progress: Called with the number of finished prompts and the number of all prompts.
    """
    rollout = OnPolicy(
        num_generations=num_generations,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        prompt_format=prompt_format,
    )
    samples: list[Sample] = []
    batches = []
    for start in range(0, len(prompts), prompts_per_batch):
        chunk = prompts[start : start + prompts_per_batch]
        index = range(start, start + len(chunk))
        # The index over all prompts seeds each response, so batch boundaries do not change it.
        batch, chunk_samples = sampler(chunk, rollout, seed=seed, step=0, prompt_index=list(index))
        batches.append(batch)
        samples += chunk_samples
        if on_progress is not None:
            on_progress(start + len(chunk), len(prompts))
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
    """KL(policy || start) in nats per response, estimated on the policy's own responses.

    k1 = sum_t log r_t and k3 = sum_t (1 / r_t - 1 + log r_t) with r_t = p(policy) / p(start), averaged over
    the samples; the confidence interval is that of k1, over prompts.

    Args:
        generations: Responses with the log-probabilities of the sampler.
        start_model: The policy before training.
        temperature: Sampling temperature of the responses.
        rows_per_pass: Rows per forward pass.

    Source: Schulman 2020, "Approximating KL divergence", k1 and k3.
    """
    k1: list[float] = []
    k3: list[float] = []
    for batch in generations.batches:
        # In float64: k1 is a small difference of large sums over tokens.
        start_logprobs = response_logprobs(
            start_model, batch, temperature=temperature, rows_per_pass=rows_per_pass
        ).double()
        log_ratio = batch.require("rollout_logprobs").double() - start_logprobs
        k1 += log_ratio.sum(-1).tolist()
        k3 += ((-log_ratio).exp() - 1 + log_ratio).sum(-1).tolist()
    prompt_means = np.array(k1).reshape(-1, generations.num_generations).mean(1)
    intervals = simultaneous_intervals(prompt_means[:, None], clusters=prompt_clusters(generations.prompts))
    return {
        "k1": float(np.mean(k1)),
        "k3": float(np.mean(k3)),
        "low": float(intervals.low[0]),
        "high": float(intervals.high[0]),
        # k3 is never negative, unlike k1.
        "per_token": float(np.sum(k3) / max(sum(generations.response_lengths), 1)),
        "unit": "nats/response",
    }


def prompt_clusters(prompts: Sequence[Prompt]) -> NDArray[np.int64]:
    """[P] equal numbers for prompts that begin with the same request; each empty prompt has its own."""
    index: dict[str, int] = {}
    keys = (prompt_key(prompt) if prompt.messages else f"empty {i}" for i, prompt in enumerate(prompts))
    return np.array([index.setdefault(key, len(index)) for key in keys], dtype=np.int64)
