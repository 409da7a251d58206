"""Keeps the responses of an evaluation chunk by chunk, so that a stopped run does not sample them again."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from paretune.core.batch import Batch
from paretune.data.records import Prompt, Sample
from paretune.rollout.sampler import OnPolicy, Sampler
from paretune.run.folder import Run
from paretune.training.checkpoint import Checkpoint, load_latest_checkpoint, save_checkpoint

STORED_SAMPLE_FIELDS = ("response", "truncated", "original_response", "response_ids")
"""What a chunk holds of its samples; their prompts are those of the data set."""


@dataclass(frozen=True)
class StoredChunks:
    """A sampler whose chunks are saved, and read back where they are saved already, bit for bit.

    A chunk that was made with other settings, prompts or weights is sampled again.
    """

    sampler: Sampler
    folder: Path
    run: Run
    """Its events tell of a chunk that is damaged."""
    weights_hash: str
    """Hash of the policy's weights."""

    def __call__(
        self,
        prompts: Sequence[Prompt],
        rollout: OnPolicy,
        *,
        seed: int,
        step: int,
        prompt_index: Sequence[int] | None = None,
    ) -> tuple[Batch, tuple[Sample, ...]]:
        """See `Sampler`."""
        index = list(range(len(prompts)) if prompt_index is None else prompt_index)
        settings = repr((self.weights_hash, list(prompts), rollout, seed, step, index))
        origin = hashlib.sha256(settings.encode("utf-8", "backslashreplace")).hexdigest()
        chunk_dir = self.folder / f"chunk-{index[0]:06d}"
        stored = load_latest_checkpoint(chunk_dir, self.run.log_event)
        if stored is not None and stored.metadata == origin:
            return _restore(stored, prompts, rollout)
        batch, samples = self.sampler(prompts, rollout, seed=seed, step=step, prompt_index=prompt_index)
        trees: dict[str, Any] = {
            "batch": {f.name: getattr(batch, f.name) for f in fields(batch)},
            "samples": [{name: getattr(sample, name) for name in STORED_SAMPLE_FIELDS} for sample in samples],
        }
        save_checkpoint(chunk_dir, 0, trees, origin, save_total_limit=1)
        return batch, samples


def _restore(
    stored: Checkpoint, prompts: Sequence[Prompt], rollout: OnPolicy
) -> tuple[Batch, tuple[Sample, ...]]:
    """The batch and the samples of a chunk; the samples of a prompt are consecutive."""
    samples = tuple(
        Sample(prompt=prompts[number // rollout.num_generations], **values)
        for number, values in enumerate(stored.load_tree("samples"))
    )
    return Batch(**stored.load_tree("batch")), samples
