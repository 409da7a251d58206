"""Stored responses as a batch: the rollout of offline algorithms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from paretune.core.batch import Batch
from paretune.data.chat import encode_rows
from paretune.data.loader import collate, encode_categories
from paretune.data.records import ResponseGroup, Sample
from paretune.models.load import PolicyModel


@dataclass(frozen=True)
class StoredResponseReader:
    """Reads the response groups of a step as rows, with their labels as scores; missing labels are NaN."""

    policy: PolicyModel
    objectives: tuple[str, ...]
    candidates_at: Callable[[int], Sequence[ResponseGroup]]
    """Response groups of a step."""

    def __call__(self, step: int) -> tuple[Batch, tuple[Sample, ...]]:
        """The batch of a step and its texts; `group` is the index of the response group in the step."""
        prompt_ids: list[list[int]] = []
        response_ids: list[list[int]] = []
        group: list[int] = []
        labels: list[list[float]] = []
        samples: list[Sample] = []
        tokenizer, eos_id = self.policy.tokenizer, self.policy.eos_ids[0]
        for index, candidates in enumerate(self.candidates_at(step)):
            pairs = [(candidates.prompt, response) for response in candidates.responses]
            rows = encode_rows(tokenizer, pairs, eos_id=eos_id)
            for row, (_, response), response_labels in zip(rows, pairs, candidates.labels, strict=True):
                prompt_ids.append(row.prompt_ids)
                response_ids.append(row.response_ids)
                group.append(index)
                labels.append([float(response_labels.get(name, torch.nan)) for name in self.objectives])
                samples.append(Sample(prompt=candidates.prompt, response=response))
        truncated = [False] * len(group)
        batch = collate(prompt_ids, response_ids, group, truncated, self.objectives, self.policy.pad_id)
        scores = torch.tensor(labels)
        category, categories = encode_categories(samples)
        return batch.replace(scores=scores, rewards=scores, category=category, categories=categories), tuple(
            samples
        )
