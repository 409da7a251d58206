"""A sampler of one's own: the best of several responses, by a scorer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

import paretune as pt
from paretune.core.batch import Batch
from paretune.data.records import Prompt, Sample
from paretune.models.load import PolicyModel
from paretune.rollout.sampler import LocalSampler, OnPolicy


@dataclass
class BestOf:
    """Samples `candidates` responses for each one that is asked for, and keeps the best."""

    policy: PolicyModel
    objectives: tuple[str, ...]
    scorer: pt.Scorer
    candidates: int = 4

    def __call__(
        self,
        prompts: Sequence[Prompt],
        rollout: OnPolicy,
        *,
        seed: int,
        step: int,
        prompt_index: Sequence[int] | None = None,
    ) -> tuple[Batch, tuple[Sample, ...]]:
        """The batch of the kept responses, and their texts."""
        local = LocalSampler(self.policy, self.objectives)
        more = replace(rollout, num_generations=rollout.num_generations * self.candidates)
        batch, samples = local(prompts, more, seed=seed, step=step, prompt_index=prompt_index)
        scores = self.scorer(samples)[:, 0].reshape(-1, self.candidates)
        best = scores.argmax(1) + torch.arange(len(scores)) * self.candidates
        return batch.select(best), tuple(samples[i] for i in best.tolist())


class Short:
    """Minus the number of characters."""

    names = ("short",)

    def __call__(self, samples: Sequence[Sample]) -> torch.Tensor:
        """Scores [B, 1]."""
        return -torch.tensor([[float(len(sample.response))] for sample in samples])


if __name__ == "__main__":
    from tiny import tiny_policy

    policy, prompts = tiny_policy(), ["hello", "good morning"]
    for sampler in (LocalSampler, lambda policy, objectives: BestOf(policy, objectives, Short())):
        responses = pt.sample(policy, prompts, num_generations=8, max_new_tokens=8, sampler=sampler)
        lengths = [len(text) for texts in responses for text in texts]
        print(f"{sum(lengths) / len(lengths):.1f} characters on average")
