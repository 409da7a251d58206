"""What a score is worth before objectives meet: good enough is enough, or nearer to a target is better."""

from dataclasses import dataclass
from typing import Literal

import torch

from paretune.batch import Batch
from paretune.credit.aggregate import column
from paretune.credit.step import Step


@dataclass(frozen=True)
class Threshold(Step):
    """A level that is good enough.

        cap: min(s, level)      pass: 1 where s >= level, else 0

    With "cap" more than enough counts no more; with "pass" nothing else counts. NaN stays NaN.

    Reads: signal. Writes: signal (the column of `objective`).

    Source: Gabor et al. 1998, thresholded values ("cap"); the rule rewards of Lambert et al. 2024
    (arXiv:2411.15124) ("pass").
    """

    objective: str
    level: float
    kind: Literal["cap", "pass"] = "cap"

    def apply(self, batch: Batch) -> Batch:
        """Cap the column, or turn it to passed or not."""
        k = column(batch, self.objective, "Threshold")
        score, signal = batch.signal[:, k], batch.signal.clone()
        passed = (score >= self.level).to(score.dtype)
        worth = score.clamp(max=self.level) if self.kind == "cap" else passed
        signal[:, k] = torch.where(score.isnan(), torch.nan, worth)
        return batch.set(signal=signal)


@dataclass(frozen=True)
class Target(Step):
    """Nearer to the target is better: -|s - at|. NaN stays NaN.

    Reads: signal. Writes: signal (the column of `objective`).

    Source: goal programming, Charnes and Cooper 1961; here for objectives, such as length, of which there can
    be too much.
    """

    objective: str
    at: float

    def apply(self, batch: Batch) -> Batch:
        """Minus the distance."""
        k = column(batch, self.objective, "Target")
        signal = batch.signal.clone()
        signal[:, k] = -(signal[:, k] - self.at).abs()
        return batch.set(signal=signal)
