"""Numbers worked out by hand: advantages, KL estimators, clipping, aggregation, the four-objective group."""

import math

import pytest
import torch
from byhand import near

from paretune.core.batch import Outputs
from paretune.core.kl import k1, k2, k3
from paretune.core.reductions import token_weights
from paretune.credit.aggregation import Gate, WeightedSum, variance_share, weighted_sum
from paretune.credit.base import chain
from paretune.credit.normalization import BroadcastToTokens, GroupNormalize, group_normalize
from paretune.loss.base import WeightedLoss, total_loss
from paretune.loss.kl import KlToReference, k3_value_k2_grad
from paretune.loss.policy import ClippedSurrogate
from paretune.loss.policy import clipped_surrogate as clipped
from toy import advance, graded

ONE = torch.zeros(4, dtype=torch.long)
FOUR = [[0.9, 0.8, 0.7, 0.1], [0.8, 0.6, 0.5, 0.9], [0.9, 0.7, 0.2, 0.9], [0.6, 0.5, 0.6, 0.5]]
NAMES = ("polite", "meaning", "action", "safety")
EQUAL = dict.fromkeys(NAMES, 0.25)
PLAIN = GroupNormalize(std_estimator="population", eps=0.0)
GATES = tuple(Gate(name, "safety", 0.5) for name in NAMES[:3])
pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.parametrize(
    ("rewards", "population", "sample", "centred"),
    [
        ((1, 0, 0, 1), (1, -1, -1, 1), (0.866025, -0.866025, -0.866025, 0.866025), (0.5, -0.5, -0.5, 0.5)),
        (
            (1, 0, 0, 0),
            (1.732051, -0.577350, -0.577350, -0.577350),
            (1.5, -0.5, -0.5, -0.5),
            (0.75, -0.25, -0.25, -0.25),
        ),
        (
            (0.2, 0.5, 0.9, 0.4),
            (-1.176697, 0, 1.568929, -0.392232),
            (-1.019049, 0, 1.358732, -0.339683),
            (-0.3, 0, 0.4, -0.1),
        ),
    ],
)
def test_group_normalize_matches_manual_z_scores(rewards, population, sample, centred):
    x = torch.tensor(rewards, dtype=torch.float64)[:, None]
    near(group_normalize(x, ONE, "group", "population", 0.0), [float(v) for v in population])
    near(group_normalize(x, ONE, "group", "sample", 0.0), [float(v) for v in sample])
    near(group_normalize(x, ONE, "none"), [float(v) for v in centred])


def test_kl_estimators_have_manual_values_and_gradients():
    gap = torch.tensor([0.2, -0.5, math.log(2), 0.0], requires_grad=True)
    near(k1(gap), [0.2, -0.5, math.log(2), 0.0])
    near(k2(gap)[:2], [0.02, 0.125])
    near(k3(gap), [0.0187308, 0.1487213, 0.1931472, 0.0], 1e-7)
    k3(gap).sum().backward()
    near(gap.grad[:2], [0.181269, -0.648721])


def test_k3_value_k2_grad_has_value_of_k3_and_gradient_of_k2():
    gap = torch.tensor([0.2, -0.5, 3.0], requires_grad=True)
    near(k3_value_k2_grad(gap), k3(gap).tolist(), 1e-12)
    k3_value_k2_grad(gap).sum().backward()
    near(gap.grad, [0.2, -0.5, 3.0], 1e-12)


def test_k3_is_unbiased_and_only_k2_has_the_gradient_of_the_kl():
    logits = torch.zeros(2, requires_grad=True)
    logp, reference = logits.log_softmax(0), torch.tensor([0.25, 0.75]).log()
    exact = (logp.exp() * (logp - reference)).sum()
    (want,) = torch.autograd.grad(exact, logits, retain_graph=True)
    near(want, [0.274653, -0.274653])
    p = logp.exp().detach()
    near(exact.detach(), [0.1438410])
    near((p * k3(logp - reference).detach()).sum(), [0.1438410], 1e-7)
    near((p * k1(logp - reference).detach()).sum(), [0.1438410], 1e-7)
    slopes = {
        estimator: torch.autograd.grad((p * estimator(logp - reference)).sum(), logits, retain_graph=True)[0]
        for estimator in (k1, k2, k3, k3_value_k2_grad)
    }
    near(slopes[k1], [0.0, 0.0])
    near(slopes[k2], want.tolist())
    near(slopes[k3], [0.25, -0.25])
    near(slopes[k3_value_k2_grad], want.tolist())


@pytest.mark.parametrize(
    ("ratio", "advantage", "high", "surrogate"),
    [
        (1.5, 1, 0.2, 1.2),
        (1.5, -1, 0.2, -1.5),
        (0.5, 1, 0.2, 0.5),
        (0.5, -1, 0.2, -0.8),
        (1.25, 1, 0.28, 1.25),
        (1.5, 1, 0.28, 1.28),
    ],
)
def test_clipped_surrogate_matches_manual_values(ratio, advantage, high, surrogate):
    near(-clipped(torch.tensor([ratio]), torch.tensor([float(advantage)]), 0.2, high), [surrogate], 1e-12)


def test_token_weights_give_manual_means():
    respond = torch.arange(6)[None] < torch.tensor([[2], [6]])
    term = torch.tensor([[1.0], [-1.0]]).expand(2, 6)
    for by, want in (("seq_mean_token_mean", 0.0), ("token_mean", -0.5), ("seq_mean_token_sum_norm", -0.25)):
        near((term * token_weights(respond, by, 8)).sum(), [want], 1e-12)


def two_answers(ratios, gaps, advantage, by):
    """Two responses with these probability ratios and log-ratios to the reference, ready for a loss."""
    lengths = [len(r) for r in ratios]
    batch = graded([1.0, 0.0], lengths=lengths)
    logp = torch.zeros(batch.input_ids.shape)
    old, reference = logp.clone(), logp.clone()
    for i, (r, g) in enumerate(zip(ratios, gaps, strict=True)):
        old[i, 1 : 1 + len(r)] = -torch.tensor(r).log()
        reference[i, 1 : 1 + len(g)] = -torch.tensor(g)
    spread = torch.tensor(advantage)[:, None, None] * batch.response_mask[..., None]
    return Outputs(logprobs=logp), batch.replace(
        old_logprobs=old,
        ref_logprobs=reference,
        advantages=spread,
        loss_weights=token_weights(batch.response_mask, by),
    )


def test_grpo_loss_matches_manual_value():
    out, batch = two_answers([[1.0, 1.0], [1.0]], [[0.2, 0.0], [-0.5]], [1.0, -1.0], "seq_mean_token_mean")
    loss, parts = total_loss(
        (WeightedLoss(1.0, ClippedSurrogate()), WeightedLoss(0.04, KlToReference())), out, batch
    )
    near(loss, [0.003161733], 1e-9)
    assert parts["ClippedSurrogate"] == pytest.approx(0, abs=1e-12)
    assert parts["KlToReference"] == pytest.approx(0.003161733 / 0.04, abs=1e-7)


def test_clipped_loss_matches_manual_value_under_two_aggregations():
    out, batch = two_answers([[1.0, 1.5], [0.7]], [[0.0, 0.0], [0.0]], [1.0, -1.0], "seq_mean_token_mean")
    near(ClippedSurrogate()(out, batch), [-0.15], 1e-12)
    out, batch = two_answers([[1.0, 1.5], [0.7]], [[0.0, 0.0], [0.0]], [1.0, -1.0], "token_mean")
    near(ClippedSurrogate(0.2, 0.28)(out, batch), [-0.493333])
    seen = ClippedSurrogate().metrics(out, batch)
    assert seen["clip_fraction/high"].sum() == 1
    assert seen["clip_fraction/low"].sum() == 1
    assert seen["ratio/max"].max() == pytest.approx(1.5)


def test_weighted_sum_then_group_normalize_matches_manual_values():
    batch, seen = advance(WeightedSum(EQUAL), graded(FOUR, objectives=NAMES))
    near(batch.rewards, [0.625, 0.7, 0.675, 0.55], 1e-12)
    near(
        PLAIN.apply(batch).rewards,
        [-0.218218, 1.091089, 0.654654, -1.527525],
    )
    near(GroupNormalize(eps=0.0).apply(batch).rewards, [-0.188982, 0.944911, 0.566947, -1.322876])
    assert seen["weighted_score/polite/mean"] == pytest.approx(0.2)


def test_variance_shares_match_manual_values():
    _, seen = advance(WeightedSum(EQUAL), graded(FOUR, objectives=NAMES))
    shares = [seen[f"variance_share/{name}"] for name in NAMES]
    assert shares == pytest.approx([0.380952, 0.190476, -0.428571, 0.857143], abs=1e-6)
    assert sum(shares) == pytest.approx(1)
    x = torch.tensor(FOUR) * 0.25
    near(variance_share(x, x.sum(-1, keepdim=True), ONE), shares)


def test_normalizing_first_puts_unsafe_response_on_top():
    parts = chain(PLAIN, WeightedSum(EQUAL))
    batch, _ = advance(parts, graded(FOUR, objectives=NAMES))
    near(batch.rewards, [0.429906, 0.114330, 0.141169, -0.685406])


def test_gate_puts_unsafe_response_at_the_bottom():
    batch, _ = advance(chain(*GATES, WeightedSum(EQUAL)), graded(FOUR, objectives=NAMES))
    near(batch.rewards, [0.025, 0.7, 0.675, 0.55], 1e-12)
    near(
        PLAIN.apply(batch).rewards,
        [-1.694114, 0.778377, 0.686803, 0.228934],
    )
    normalised = chain(*GATES, PLAIN, WeightedSum(EQUAL))
    batch, _ = advance(normalised, graded(FOUR, objectives=NAMES))
    near(batch.rewards, [-1.547162, 0.709981, 0.559954, 0.277227])


def test_large_safety_weight_puts_unsafe_response_at_the_bottom():
    weights = {"polite": 1 / 6, "meaning": 1 / 6, "action": 1 / 6, "safety": 0.5}
    batch, _ = advance(WeightedSum(weights), graded(FOUR, objectives=NAMES))
    near(batch.rewards, [0.45, 0.766667, 0.75, 0.533333])
    near(
        PLAIN.apply(batch).rewards,
        [-1.280393, 1.036508, 0.914566, -0.670682],
    )


def test_group_normalize_of_the_minimum_objective():
    worst = torch.tensor([0.1, 0.5, 0.2, 0.5])[:, None]
    near(group_normalize(worst, ONE, "group", "population", 0.0), [-1.260252, 0.980196, -0.700140, 0.980196])


def test_gated_grpo_credit_ranks_unsafe_response_last():
    credit = chain(*GATES, WeightedSum(EQUAL), GroupNormalize(), BroadcastToTokens())
    batch, _ = advance(credit, graded(FOUR, objectives=NAMES))
    assert batch.advantages[:, 1, 0].argmin() == 0
    assert (batch.advantages[:, 0] == 0).all()


def test_eps_bounds_advantages_of_a_saturated_objective():
    x = torch.tensor([[0.990], [0.991], [0.990], [0.989]])
    assert group_normalize(x, ONE, "group", eps=0.0).abs().max() > 1.2
    assert group_normalize(x * 1e-2, ONE, "group", eps=1e-4).abs().max() < 0.2


def test_weighted_sum_accepts_any_rank():
    near(weighted_sum(torch.ones(2, 3, 2), torch.tensor([0.25, 0.5])), [0.75] * 6)
