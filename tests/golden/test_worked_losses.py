"""Numbers worked out by hand: bounds of ratios and values, ratios of responses, importance weights."""

import math

import pytest
import torch
from byhand import near, one

from paretune.core.batch import Outputs
from paretune.core.reductions import token_weights
from paretune.credit.importance_sampling import TruncatedImportanceSampling, rollout_is_ratio, truncated_ratio
from paretune.loss.auxiliary import ClippedValueLoss, clipped_squared_error, squared_error
from paretune.loss.policy import (
    ClippedIsWeight,
    ClippedSurrogate,
    clipped_surrogate,
    gamma_weight,
    policy_log_ratio,
    soft_clip,
)
from paretune.models.forward.lm_head import LmHead, next_token_logprobs
from toy import advance, graded

pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.parametrize(
    ("ratio", "advantage", "most", "gain"),
    [(4, -1, None, -4), (4, -1, 3.0, -3), (2, -1, 3.0, -2), (4, 1, 3.0, 1.2), (0.5, -1, 3.0, -0.8)],
)
def test_dual_clip_matches_manual_values(ratio, advantage, most, gain):
    near(-clipped_surrogate(one(ratio), one(advantage), 0.2, 0.2, most), [float(gain)], 1e-12)


def test_four_loss_aggregations_match_manual_values():
    respond = torch.arange(6)[None] < torch.tensor([[2], [6]])
    term = torch.tensor([[1.0], [-1.0]]).expand(2, 6)
    want = {
        "seq_mean_token_mean": 0.0,
        "token_mean": -0.5,
        "seq_mean_token_sum_norm": -0.25,
        "seq_mean_token_sum": -2.0,
    }
    for by, value in want.items():
        near((term * token_weights(respond, by, 8)).sum(), [value], 1e-12)
    empty = torch.cat([respond, torch.zeros(1, 6, dtype=torch.bool)])
    assert torch.equal(
        token_weights(empty, "seq_mean_token_mean", empty_rows="exclude")[:2],
        token_weights(respond, "seq_mean_token_mean"),
    )
    near(token_weights(empty, "seq_mean_token_mean").sum(), [2 / 3], 1e-12)


def test_clipped_value_loss_matches_manual_values():
    near(clipped_squared_error(one(0.9), one(0.4), one(1.0), 0.2), [0.08], 1e-12)
    near(squared_error(one(0.9), one(1.0)), [0.005], 1e-12)
    batch = graded([1.0], lengths=[1])
    state = torch.tensor([[[0.0], [0.4]]])
    batch = batch.replace(
        values=state, returns=torch.ones(1, 2, 1), loss_weights=batch.response_mask.double()
    )
    out = Outputs(logprobs=torch.zeros(1, 2), values=torch.tensor([[[0.0], [0.9]]]))
    near(ClippedValueLoss(0.2)(out, batch), [0.08], 1e-12)
    assert ClippedValueLoss(0.2).metrics(out, batch)["clip_fraction/value"].sum() == 1


def test_logprobs_at_another_temperature_give_a_wrong_ratio():
    """A log-probability at another temperature than the sampler's is of another distribution."""
    head, logits = LmHead(torch.eye(2)), torch.tensor([[2.0, 0.0]])
    recorded, drawn = (next_token_logprobs(head, logits, t)[0, 0].exp() for t in (1.0, 0.8))
    near(recorded, [0.880797])
    near(drawn, [0.924142])
    near(recorded / drawn, [0.953097])


def test_sequence_ratio_matches_manual_values():
    """log-ratios (.1, -.05, .25): s = exp(.1), clipped as a whole."""
    batch = graded([1.0], lengths=[3])
    old = torch.zeros(1, 4)
    logp = torch.tensor([[0.0, 0.1, -0.05, 0.25]], requires_grad=True)
    for level, want in (
        ("token", [1.105171, 0.951229, 1.284025]),
        ("sequence", [1.105171] * 3),
        ("sequence_token", [1.105171] * 3),
    ):
        near(policy_log_ratio(logp, old, batch.response_mask, level)[:, 1:].exp(), want)
    ready = batch.replace(
        advantages=batch.response_mask[..., None].double(),
        old_logprobs=old,
        loss_weights=token_weights(batch.response_mask, "seq_mean_token_mean"),
    )
    for level, free in (("sequence", True), ("sequence_token", True), ("token", False)):
        out = Outputs(logprobs=logp)
        (cut,) = torch.autograd.grad(ClippedSurrogate(3e-4, 4e-4, level=level)(out, ready), logp)
        assert bool((cut == 0).all()) is free
        (loose,) = torch.autograd.grad(ClippedSurrogate(0.9, 0.9, level=level)(out, ready), logp)
        near(loose[:, 1:], [-math.exp(0.1) / 3] * 3 if free else (-logp[0, 1:].exp() / 3).tolist(), 1e-12)


def test_clipped_is_weight_keeps_its_gradient():
    """Ratio 6, cap 5, A 1, log p = -2: contribution +10, slope -5."""
    batch = graded([1.0], lengths=[1])
    logp = torch.tensor([[0.0, -2.0]], requires_grad=True)
    ready = batch.replace(
        advantages=batch.response_mask[..., None].double(),
        old_logprobs=torch.tensor([[0.0, -2.0 - math.log(6)]]),
        loss_weights=token_weights(batch.response_mask, "token_mean"),
    )
    loss = ClippedIsWeight(max_ratio=5.0)(Outputs(logprobs=logp), ready)
    near(loss, [10.0], 1e-12)
    near(torch.autograd.grad(loss, logp)[0], [0.0, -5.0], 1e-12)


@pytest.mark.parametrize(("advantage", "tau"), [(1.0, 1.0), (-1.0, 1.05)])
def test_soft_clip_at_ratio_one_has_the_policy_gradient(advantage, tau):
    """Value -2 A / tau, slope -A."""
    ratio = torch.ones(1, requires_grad=True)
    loss = soft_clip(ratio, one(advantage), 1.0, 1.05)
    near(loss, [-2 * advantage / tau], 1e-12)
    near(torch.autograd.grad(loss.sum(), ratio)[0], [-advantage], 1e-12)


def test_gamma_weight_is_one_on_policy_and_decays():
    mask, up, down = torch.ones(1, 2, dtype=torch.bool), (2.0, 3.0), (3.0, 2.0)
    for advantage, k, decay in ((1.0, 2.0, 3.0), (-1.0, 3.0, 2.0)):
        signs = torch.full((1, 2), advantage)
        near(gamma_weight(torch.zeros(1, 2), signs, mask, up, down), [1.0, 1.0], 1e-12)
        w = math.exp(0.3)
        want = w**k * math.exp(decay * (1 - w))
        near(gamma_weight(torch.tensor([[0.5, -0.2]]), signs, mask, up, down), [want] * 2, 1e-12)
        assert gamma_weight(torch.full((1, 2), 9.0), signs, mask, up, down).max() == 0


def test_rollout_ratio_and_truncation_match_manual_values():
    """log p_trainer - log p_sampler = (.5, 1.2, -.3)."""
    respond = torch.tensor([[False, True, True, True]])
    trainer, sampler = torch.tensor([[0.0, 0.5, 1.2, -0.3]]), torch.zeros(1, 4)
    token = rollout_is_ratio(trainer, sampler, respond, "token")
    near(token, [1.0, 1.648721, 3.320117, 0.740818])
    near(truncated_ratio(token, 0.0, 2.0, "truncate"), [1.0, 1.648721, 2.0, 0.740818])
    near(truncated_ratio(token, 0.0, 3.0, "mask"), [1.0, 1.648721, 0.0, 0.740818])
    near(truncated_ratio(token, 0.8, 3.0, "mask"), [1.0, 1.648721, 0.0, 0.0])
    whole = rollout_is_ratio(trainer, sampler, respond, "sequence")
    near(whole, [1.0, 4.0552, 4.0552, 4.0552], 1e-4)
    near(truncated_ratio(whole, 0.0, 2.0, "truncate")[:, 1:], [2.0] * 3)
    near(truncated_ratio(whole, 0.0, 3.0, "mask")[:, 1:], [0.0] * 3)


def test_importance_sampling_logs_truncated_fraction():
    batch = graded([1.0], lengths=[3]).replace(
        rollout_logprobs=torch.zeros(1, 4), old_logprobs=torch.tensor([[0.0, 0.5, 1.2, -0.3]])
    )
    weighed, seen = advance(TruncatedImportanceSampling(), batch)
    near(weighed.importance_weights, [1.0, 1.648721, 2.0, 0.740818])
    assert seen == pytest.approx(
        {
            "importance_weights/mean": (1.648721 + 3.320117 + 0.740818) / 3,
            "importance_weights/max": 3.320117,
            "importance_weights/min": 0.740818,
            "importance_weights/truncated": 1 / 3,
        },
        abs=1e-6,
    )
