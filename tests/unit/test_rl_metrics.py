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


def test_rollout_metrics_of_scores_and_lengths():
    batch = graded([[1.0, math.nan], [0.0, math.nan], [0.5, 2.0]], group=[0, 0, 1], lengths=[1, 2, 3])
    batch = batch.replace(truncated=torch.tensor([True, False, False]))
    metrics = rollout_metrics(batch)
    assert metrics == pytest.approx(
        {
            "score/k0/unscored_fraction": 0.0,
            "score/k0/mean": 0.5,
            "score/k0/std": 0.5,
            "score/k1/unscored_fraction": 2 / 3,
            "score/k1/mean": 2.0,
            "responses/length": 2.0,
            "responses/truncated": 1 / 3,
        }
    )


def test_zero_variance_groups_are_counted_per_prompt():
    batch = graded([1.0, 1.0, 1.0, 0.0, 1.0, math.nan], group=[0, 0, 0, 1, 1, 2])
    metrics = reward_metrics(batch)
    assert metrics["groups/zero_variance"] == pytest.approx(2 / 3)
    assert metrics["reward/mean"] == pytest.approx(0.8)
    assert advantage_metrics(batch) == {}
    assert advantage_metrics(
        batch.replace(advantages=torch.tensor([-3.0, 1.0]).repeat(3)[:, None, None].expand(6, 3, 1))
    ) == {"advantages/max_abs": 3.0}


def test_no_group_metric_with_one_response_per_prompt():
    metrics = reward_metrics(graded([1.0, 0.0, 0.5], group=[0, 1, 2]))
    assert "groups/zero_variance" not in metrics, "a group of one has no variance to report"
    assert metrics["reward/mean"] == pytest.approx(0.5)


def test_token_metrics_are_means_over_microbatches_and_updates():
    batch = graded([1.0, 0.0], lengths=[1, 3])
    mask = batch.response_mask.float()
    batch = batch.replace(
        advantages=mask[..., None],
        old_logprobs=torch.zeros_like(mask),
        ref_logprobs=-0.2 * mask,
        rollout_logprobs=0.1 * mask,
        loss_weights=token_weights(batch.response_mask, "token_mean"),
    )
    out = Outputs(logprobs=torch.zeros_like(mask), entropy=torch.tensor([[2.0], [4.0]]) * mask)
    terms = (WeightedLoss(1.0, ClippedSurrogate()), WeightedLoss(1.0, KlToReference()))
    metrics = StepMetrics()
    for rows in (torch.tensor([0]), torch.tensor([1])):
        part = Outputs(logprobs=out.logprobs[rows], entropy=out.entropy[rows])
        metrics.add_forward_pass(terms, part, batch.select(rows))
        metrics.add_losses(torch.tensor(0.25), {"ClippedSurrogate": 0.5})
    metrics.finish_update(3.0)
    values = metrics.metrics()
    assert values["entropy"] == pytest.approx(3.5)
    assert values["kl/k1"] == pytest.approx(0.2)
    assert values["kl/k3"] == pytest.approx(0.0187308, abs=1e-6)
    assert values["kl/rollout"] == pytest.approx(math.exp(-0.1) + 0.1 - 1, abs=1e-6)
    assert (values["loss/total"], values["loss/ClippedSurrogate"], values["grad_norm"]) == (0.5, 1.0, 3.0)
    assert (values["ratio/max"], values["ratio/clamped"]) == (1.0, 0.0)


def test_non_finite_metrics_are_dropped():
    assert finite_metrics({"a": 1.0, "b": math.nan, "c": math.inf}) == {"a": 1.0}


def test_prob_diff_max_is_over_the_first_update_only():
    batch = graded([1.0, 0.0], lengths=[1, 3])
    logp = torch.tensor([0.5, 0.25]).log()[:, None] * batch.response_mask
    batch = batch.replace(rollout_logprobs=logp)
    metrics = StepMetrics()
    other = torch.where(batch.response_mask, torch.tensor([0.45, 0.32]).log()[:, None], torch.tensor(-9.0))
    for rows in (torch.tensor([1]), torch.tensor([0])):
        metrics.add_forward_pass((), Outputs(logprobs=other[rows]), batch.select(rows))
    metrics.finish_update(1.0)
    metrics.add_forward_pass((), Outputs(logprobs=-9 * batch.response_mask.float()), batch)
    assert metrics.metrics()["rollout/prob_diff_max"] == pytest.approx(0.07)
