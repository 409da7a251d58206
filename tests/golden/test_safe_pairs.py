"""Reward and cost models of Safe RLHF against the numbers of published code."""

import pytest
import torch
from cases import Case, cases

from paretune.core.reductions import row_mean
from paretune.reward.losses import CostModelLoss, RegularizedBradleyTerryLoss, differing_span_mask


def halves(case: Case, key: str) -> tuple[torch.Tensor, torch.Tensor]:
    """First the rows that they put first."""
    first, second = torch.tensor(case.inputs[key]).chunk(2)
    return first, second


def counted(case: Case, scores: torch.Tensor):
    """The scores of both rows of every pair that a loss is of, and how to take its mean."""
    x, y = scores.chunk(2)
    attend = halves(case, "attention_mask")
    if case.params["loss_type"] == "sequence-wise":
        x, y = (z.gather(1, a.sum(-1, keepdim=True) - 1) for z, a in zip((x, y), attend, strict=True))
        return x, y, torch.Tensor.mean
    span = differing_span_mask(*halves(case, "input_ids"), *attend)
    return x, y, lambda loss: row_mean(loss, span).mean()


@pytest.mark.parametrize("case", cases("safe_rlhf_reward_loss"))
def test_pairs_whose_scores_stay_near_zero(case: Case) -> None:
    scores = case.input("scores").requires_grad_()
    chosen, rejected, mean = counted(case, scores)
    loss = mean(RegularizedBradleyTerryLoss(regularization=case.params["regularization"])(chosen, rejected))
    loss.backward()
    case.check(loss, case.expected["loss"])
    case.check(scores.grad, case.grad["scores"])


@pytest.mark.parametrize("case", cases("safe_rlhf_cost_loss"))
def test_costs_with_a_zero_that_means_something(case: Case) -> None:
    """Their sign is +1 for safe, that of a cost is -1."""
    scores = case.input("scores").requires_grad_()
    better, worse, mean = counted(case, scores)
    signs = (-case.input("safety_sign")).chunk(2)
    better_sign, worse_sign = (s[:, None].expand(better.shape) for s in signs)
    part = CostModelLoss(regularization=case.params["regularization"])
    loss = mean(part(worse, better, worse_sign, better_sign))
    loss.backward()
    case.check(loss, case.expected["loss"])
    case.check(scores.grad, case.grad["scores"])
