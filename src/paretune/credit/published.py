"""What other libraries do and we do not by default, by name, so that their numbers can be had."""

from dataclasses import dataclass
from typing import Literal

import torch

from paretune.batch import Batch
from paretune.credit.step import CreditStep


@dataclass(frozen=True)
class MissingAsZero(CreditStep):
    """A score nobody gave counts as 0: a reward like any other, and not "unknown".

    rows "scored": only in a row that has some score; a row without any stays unscored (TRL). An objective of
    weight 0 makes a row scored too. "all": in every row (the code of the GDPO paper).

    Reads: rewards. Writes: rewards.

    Source: `nansum` over rewards in TRL 1.16 and in NVlabs/GDPO. Differs: our own recipes leave a missing
    score missing until a policy for it is named.
    """

    rows: Literal["scored", "all"] = "scored"

    def apply(self, batch: Batch) -> Batch:
        """Fill in zeros."""
        missing = batch.rewards.isnan()
        if self.rows == "scored":
            missing = missing & ~missing.all(-1, keepdim=True)
        return batch.replace(rewards=torch.where(missing, 0.0, batch.rewards))
