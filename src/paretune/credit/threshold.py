"""What a score is worth before objectives meet: good enough is enough, or nearer to a target is better."""

from dataclasses import dataclass
from typing import Literal

import torch

from paretune.batch import Batch
from paretune.credit.aggregate import objective_index
from paretune.credit.step import CreditStep


@dataclass(frozen=True)
class Threshold(CreditStep):
    """A level that is good enough.

        cap: min(s, level)      pass: 1 where s >= level, else 0

    With "cap" more than enough counts no more; with "pass" nothing else counts. NaN stays NaN.

    Reads: rewards. Writes: rewards (the score_column of `objective`).

    Source: Gabor et al. 1998, thresholded values ("cap"); the rule rewards of Lambert et al. 2024
    (arXiv:2411.15124) ("pass").
    """

    objective: str
    threshold: float
    mode: Literal["cap", "pass"] = "cap"

    def apply(self, batch: Batch) -> Batch:
        """Cap the column, or turn it to passed or not."""
        k = objective_index(batch, self.objective, "Threshold")
        score, signal = batch.rewards[:, k], batch.rewards.clone()
        passed = (score >= self.threshold).to(score.dtype)
        worth = score.clamp(max=self.threshold) if self.mode == "cap" else passed
        signal[:, k] = torch.where(score.isnan(), torch.nan, worth)
        return batch.replace(rewards=signal)


@dataclass(frozen=True)
class DistanceToTarget(CreditStep):
    """Nearer to the target is better: -|s - at|. NaN stays NaN.

    Reads: rewards. Writes: rewards (the score_column of `objective`).

    Source: goal programming, Charnes and Cooper 1961; here for objectives, such as length, of which there can
    be too much.
    """

    objective: str
    target: float

    def apply(self, batch: Batch) -> Batch:
        """Minus the distance."""
        k = objective_index(batch, self.objective, "Target")
        signal = batch.rewards.clone()
        signal[:, k] = -(signal[:, k] - self.target).abs()
        return batch.replace(rewards=signal)
