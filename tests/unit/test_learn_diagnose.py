import math

import pytest
import torch

from paretune.core.batch import Outputs
from paretune.core.reductions import token_weights
from paretune.loss.base import WeightedLoss
from paretune.loss.kl import KlToReference
from paretune.loss.policy import ClippedSurrogate
from paretune.rl.metrics import (
    StepMetrics,
    advantage_metrics,
    finite_metrics,
    reward_metrics,
    rollout_metrics,
)
from toy import graded


def test_what_was_collected():
    batch = graded([[1.0, math.nan], [0.0, math.nan], [0.5, 2.0]], group=[0, 0, 1], lengths=[1, 2, 3])
    batch = batch.replace(truncated=torch.tensor([True, False, False]))
    seen = rollout_metrics(batch)
    assert seen == pytest.approx(
        {
            "score/k0/unscored_fraction": 0.0,
            "score/k0/mean": 0.5,
            "score/k0/std": 0.5,
            "score/k1/unscored_fraction": 2 / 3,
            "score/k1/mean": 2.0,
            "length": 2.0,
            "truncated": 1 / 3,
        }
    )


def test_flat_groups_are_counted_by_prompt():
    batch = graded([1.0, 1.0, 1.0, 0.0, 1.0, math.nan], group=[0, 0, 0, 1, 1, 2])
    seen = reward_metrics(batch)
    assert seen["groups/zero_variance"] == pytest.approx(2 / 3)
    assert seen["reward/mean"] == pytest.approx(0.8)
    assert advantage_metrics(batch) == {}
    assert advantage_metrics(
        batch.replace(advantages=torch.tensor([-3.0, 1.0]).repeat(3)[:, None, None].expand(6, 3, 1))
    ) == {"advantages/max_abs": 3.0}


def test_nothing_is_said_of_groups_where_every_prompt_has_one_response():
    seen = reward_metrics(graded([1.0, 0.0, 0.5], group=[0, 1, 2]))
    assert "groups/zero_variance" not in seen, (
        "one response differs from no other: no prompt teaches less for it"
    )
    assert seen["reward/mean"] == pytest.approx(0.5)


def test_tokens_are_averaged_over_micro_batches_and_updates():
    batch = graded([1.0, 0.0], lengths=[1, 3])
    mask = batch.response_mask.float()
    batch = batch.replace(
        advantages=mask[..., None],
        old_logprobs=torch.zeros_like(mask),
        ref_logprobs=-0.2 * mask,
        rollout_logprobs=0.1 * mask,
        loss_weights=token_weights(batch.response_mask, "token"),
    )
    out = Outputs(logprobs=torch.zeros_like(mask), entropy=torch.tensor([[2.0], [4.0]]) * mask)
    terms = (WeightedLoss(1.0, ClippedSurrogate()), WeightedLoss(1.0, KlToReference()))
    seen = StepMetrics()
    for rows in (torch.tensor([0]), torch.tensor([1])):
        part = Outputs(logprobs=out.logprobs[rows], entropy=out.entropy[rows])
        seen.add_forward_pass(terms, part, batch.select(rows))
        seen.add_losses(torch.tensor(0.25), {"Clipped": 0.5})
    seen.finish_update(3.0)
    numbers = seen.metrics()
    assert numbers["entropy"] == pytest.approx(3.5)
    assert numbers["kl/k1"] == pytest.approx(0.2)
    assert numbers["kl/k3"] == pytest.approx(0.0187308, abs=1e-6)
    assert numbers["kl/rollout"] == pytest.approx(math.exp(-0.1) + 0.1 - 1, abs=1e-6)
    assert (numbers["loss/total"], numbers["loss/Clipped"], numbers["grad_norm"]) == (0.5, 1.0, 3.0)
    assert (numbers["ratio/max"], numbers["ratio/clamped"]) == (1.0, 0.0)


def test_what_nobody_knows_is_left_out():
    assert finite_metrics({"a": 1.0, "b": math.nan, "c": math.inf}) == {"a": 1.0}


def test_the_gap_of_sampler_and_trainer_is_the_largest_of_the_first_update():
    batch = graded([1.0, 0.0], lengths=[1, 3])
    logp = torch.tensor([0.5, 0.25]).log()[:, None] * batch.response_mask
    batch = batch.replace(rollout_logprobs=logp)
    seen = StepMetrics()
    wrong = torch.where(batch.response_mask, torch.tensor([0.45, 0.32]).log()[:, None], torch.tensor(-9.0))
    for rows in (torch.tensor([1]), torch.tensor([0])):
        seen.add_forward_pass((), Outputs(logprobs=wrong[rows]), batch.select(rows))
    seen.finish_update(1.0)
    seen.add_forward_pass((), Outputs(logprobs=-9 * batch.response_mask.float()), batch)
    assert seen.metrics()["rollout/prob_diff_max"] == pytest.approx(0.07)
