"""Imitation: the likelihood of responses, of all that are left or of the best."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from paretune.batch import Batch, Outputs
from paretune.loss.group import Reduction, group_weight, per_response, ranked_scored_rows, scalar_rewards
from paretune.loss.term import Loss


@dataclass(frozen=True)
class SftLoss(Loss):
    """Minus the log-probability of every response: supervised fine-tuning on the rows that are left.

    The mean is the recipe's: Weigh("token") is the token mean, Weigh("sequence_sum") the mean over responses
    of sums over their tokens.

    Reads: loss_weights. Writes: nothing.

    Source: the cross-entropy of fine-tuning; on the best of a policy's own samples (KeepBest) that of
    Mukobi et al. 2023, SuperHF (arXiv:2310.16763), and Dong et al. 2023, RAFT (arXiv:2304.06767).
    """

    def __call__(self, out: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss of these rows."""
        return -(out.logprobs * batch.require("loss_weights")).sum()


@dataclass(frozen=True)
class BestOfNSft(Loss):
    """Minus the log-probability of the best response of each group, which counts for its whole group.

    Of equally good ones the first row is the best; a group without a score teaches nothing.

    Reads: rewards, group, response_mask, loss_weights. Writes: nothing.

    Source: Song et al. 2023, PRO (arXiv:2306.17492), where the reduction is the sum.
    """

    reduction: Reduction = "mean"
    """Over the tokens of the response; after "mean", a response counts the same at any length."""
    requires_full_groups: ClassVar[bool] = True

    def __call__(self, out: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss of these rows."""
        lists = ranked_scored_rows(scalar_rewards(batch), batch.group)
        best = torch.cat([batch.group.new_zeros(0), *(rows[:1] for rows in lists)])
        logp = per_response(out.logprobs, batch.response_mask, self.reduction)
        return -(logp[best] * group_weight(batch)[best]).sum()
