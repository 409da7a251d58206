"""Stored responses as a batch: what offline methods have in the place of a sampler."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from paretune.core.batch import Batch
from paretune.data.chat import encode_prompt, encode_response
from paretune.data.loader import collate, encode_categories
from paretune.data.records import ResponseGroup, Sample
from paretune.models.load import PolicyModel


@dataclass(frozen=True)
class StoredResponseReader:
    """The lists of a step as rows, their labels as scores; a label that nobody gave is NaN."""

    policy: PolicyModel
    objectives: tuple[str, ...]
    candidates_at: Callable[[int], Sequence[ResponseGroup]]

    def __call__(self, step: int) -> tuple[Batch, tuple[Sample, ...]]:
        """The batch of a step, and its texts; `group` is the place of the list in the step."""
        prompts: list[list[int]] = []
        responses: list[list[int]] = []
        group: list[int] = []
        labels: list[list[float]] = []
        samples: list[Sample] = []
        tokenizer, stop = self.policy.tokenizer, self.policy.eos_ids[0]
        for place, found in enumerate(self.candidates_at(step)):
            ids = encode_prompt(tokenizer, found.prompt)
            for response, given in zip(found.responses, found.labels, strict=True):
                prompts.append(ids)
                responses.append(encode_response(tokenizer, response, eos_id=stop))
                group.append(place)
                labels.append([float(given.get(name, torch.nan)) for name in self.objectives])
                samples.append(Sample(prompt=found.prompt, response=response))
        batch = collate(prompts, responses, group, [False] * len(group), self.objectives, self.policy.pad_id)
        scores = torch.tensor(labels)
        kind, kinds = encode_categories(samples)
        return batch.replace(scores=scores, rewards=scores, category=kind, categories=kinds), tuple(samples)
