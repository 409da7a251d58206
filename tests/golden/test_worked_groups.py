"""Numbers worked out by hand: pairs, drift, rankings, the choice of the best, the exact divergence."""

import math

import pytest
import torch
from byhand import near, one
from groupbatch import pairs_of, read

from paretune.core.batch import Outputs
from paretune.core.reductions import token_weights
from paretune.credit.selection import top_k_rows
from paretune.loss.auxiliary import BestOfNSft, SftLoss
from paretune.loss.kl import FullKl
from paretune.loss.listwise import PreferenceRanking, per_response, ranking_stage_losses
from paretune.loss.pairwise import Dpo, ModpoMargin, Tdpo, pair_loss
from toy import graded

pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.parametrize(
    ("part", "value", "slope"),
    [
        (Dpo(0.1), 0.554355, -0.0425557),
        (Dpo(0.1, label_smoothing=0.1), 0.584355, -0.0325557),
        (Dpo(0.1, label_smoothing=0.2), 0.614355, -0.0225557),
        (Dpo(0.1, "ipo"), 4.0, -4.0),
        (Dpo(0.1, "robust", 0.1), 0.516855, None),
    ],
    ids=repr,
)
def test_pair_losses_at_a_log_ratio_of_three_match_manual_values(part, value, slope):
    """lp -10 and -20, reference -12 and -19: h = 2 - (-1) = 3."""
    sides = [one(-10).requires_grad_(), one(-20).requires_grad_()]
    out, batch = pairs_of(*sides, one(-12), one(-19))
    loss = part(out, batch)
    near(loss, [value])
    chosen, rejected = torch.autograd.grad(loss, sides)
    assert torch.equal(chosen, -rejected)
    if slope is not None:
        near(chosen, [slope])


def test_pair_losses_at_the_reference_match_manual_values():
    out, batch = pairs_of(one(-3), one(-5), one(-3), one(-5))
    for part in (Dpo(), Dpo(label_smoothing=0.3), Dpo(loss_type="robust", label_smoothing=0.3)):
        near(part(out, batch), [math.log(2)])
    near(Dpo(0.1, "ipo")(out, batch), [25.0], 1e-9)


def test_smoothed_losses_have_a_finite_optimum():
    """Sigma(beta h) = 1 - e at h = ln 9 / 0.1."""
    h = one(21.9722458).requires_grad_()
    (slope,) = torch.autograd.grad(pair_loss(0.1 * h, 0 * h, "sigmoid", 0.1, 0.1).sum(), h)
    near(slope, [0.0], 1e-9)
    h = one(1 / (2 * 0.1)).requires_grad_()
    (slope,) = torch.autograd.grad(pair_loss(0.1 * h, 0 * h, "ipo", 0.1).sum(), h)
    near(slope, [0.0], 1e-9)


def test_dpo_optimum_is_the_tilted_reference():
    """Three arms of reward 1, 0, -1, beta 0.5, uniform reference: pi is proportional to exp(r / 0.5)."""
    reward, logits = torch.tensor([1.0, 0.0, -1.0]), torch.zeros(3, requires_grad=True)
    first, second = torch.cartesian_prod(torch.arange(3), torch.arange(3)).T
    wins = torch.sigmoid(reward[first] - reward[second])
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def expected():
        optimizer.zero_grad()
        implicit = 0.5 * (logits.log_softmax(-1) + math.log(3))
        loss = (wins * pair_loss(implicit[first], implicit[second], "sigmoid", 0.5)).sum()
        loss.backward()
        return loss

    optimizer.step(expected)
    near(logits.softmax(-1), [0.866813, 0.117310, 0.015876], 2e-6)


def one_word_pair():
    """Chosen word 0 under (.6, .2, .2), rejected word 1 under (.4, .4, .2); reference (.5, .3, .2)."""
    policy = torch.tensor([[0.6, 0.2, 0.2], [0.4, 0.4, 0.2]]).log()[:, None].expand(2, 2, 3)
    frozen = torch.tensor([0.5, 0.3, 0.2]).log().expand(2, 2, 3)
    out, batch = read(policy, torch.tensor([[-100, 0], [-100, 1]]), frozen)
    signal = torch.tensor([[1.0], [0.0]])
    return out, batch.replace(group=torch.zeros(2, dtype=torch.long), rewards=signal)


def test_tdpo_losses_of_one_token_match_manual_values():
    out, batch = one_word_pair()
    near(out.ref_policy_kl[:, 1], [0.0304788, 0.0252672], 1e-7)
    near(Dpo(0.1)(out, batch), [0.698429])
    near(Tdpo(1, 0.1)(out, batch), [0.698167])
    near(Tdpo(2, 0.1, 0.5)(out, batch), [0.698298])
    near(Tdpo(2, 0.1)(out, batch), [0.698298])
    near(Tdpo(2, 0.1, 0.0)(out, batch), [float(Dpo(0.1)(out, batch).detach())], 1e-15)
    near(Tdpo(2, 0.1, 1.0)(out, batch), [float(Tdpo(1, 0.1)(out, batch).detach())], 1e-15)


def test_tdpo_variant_2_has_no_gradient_in_the_chosen_kl():
    out, batch = one_word_pair()
    slopes = {}
    for name, part in (("first", Tdpo(1, 0.1)), ("second", Tdpo(2, 0.1, 0.5))):
        drift = out.ref_policy_kl.clone().requires_grad_()
        loss = part(Outputs(logprobs=out.logprobs, ref_policy_kl=drift), batch)
        slopes[name] = torch.autograd.grad(loss, drift)[0][:, 1]
    steep = 0.1 * (1 - math.exp(-0.698167))
    assert slopes["second"][0] == 0
    assert slopes["second"][1] > 0
    near(slopes["first"], [-steep, steep])


def test_full_kl_is_finite_for_tokens_of_zero_reference_probability():
    far = torch.tensor([[1e4, -1e4, -1e4], [-1e4, 1e4, -1e4]])[:, None].expand(2, 2, 3)
    policy = torch.zeros(2, 2, 3, requires_grad=True)
    out, batch = read(policy, torch.tensor([[-100, 0], [-100, 1]]), far)
    batch = batch.replace(group=torch.zeros(2, dtype=torch.long), rewards=torch.tensor([[1.0], [0.0]]))
    near(out.ref_policy_kl[:, 1], [math.log(3)] * 2)
    loss = Tdpo(1)(out, batch)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, policy)[0].isfinite().all()


def test_ranking_losses_match_manual_values():
    near(ranking_stage_losses(torch.tensor([-1.0, -1.5]), torch.tensor([2.0, 0.0])), [0.3132617], 1e-7)
    score, signal = torch.tensor([-1.0, -1.5, -2.0]), torch.tensor([2.0, 1.0, 0.0])
    near(ranking_stage_losses(score, signal), [1.0239091, 0.4740770], 1e-7)
    batch = graded([2.0, 1.0, 0.0], lengths=[10, 10, 10])
    batch = batch.replace(loss_weights=token_weights(batch.response_mask, "seq_mean_token_mean"))
    out = Outputs(logprobs=score[:, None] * batch.response_mask)
    near(PreferenceRanking()(out, batch), [1.4979860])
    near(0.05 * 4 * BestOfNSft("sum")(out, batch), [2.0])
    near(0.05 * 4 * BestOfNSft()(out, batch), [0.2])


def test_equal_rewards_have_no_gradient_and_count_as_ties():
    batch = graded([0.7, 0.7, 0.7], lengths=[1, 2, 3])
    batch = batch.replace(loss_weights=token_weights(batch.response_mask, "seq_mean_token_mean"))
    out = Outputs(logprobs=(-torch.rand(3, 4)).requires_grad_())
    loss = PreferenceRanking()(out, batch)
    near(loss, [math.log(3) + math.log(2)])
    assert (torch.autograd.grad(loss, out.logprobs)[0] == 0).all()
    assert (PreferenceRanking().group_metrics(out, batch)["ranking/ties"] == 1).all()


def test_ranking_loss_of_improbable_responses_is_finite():
    score = torch.tensor([-800.0, -801.0], requires_grad=True)
    loss = ranking_stage_losses(score, torch.tensor([5.0, 0.0])).sum()
    assert loss.isfinite()
    near(loss, [math.log1p(math.exp(-5))], 1e-9)
    assert (torch.autograd.grad(loss, score)[0] != 0).all()


@pytest.mark.parametrize(
    ("scores", "k", "rows"),
    [
        ([[0.1, 0.9, 0.3], [-1.0, -2.0, -0.5]], 1, [1, 5]),
        ([[0.5, 0.5, 0.1], [0.0, 2.0, 2.0]], 1, [0, 4]),
        ([[0.1, 0.9, 0.3], [-1.0, -2.0, -0.5]], 7, [1, 2, 0, 5, 3, 4]),
        ([[math.nan, 0.9, 0.3], [math.nan] * 3], 2, [1, 2]),
    ],
)
def test_top_k_rows_of_each_group(scores, k, rows):
    signal = torch.tensor(scores).reshape(-1, 1)
    group = torch.arange(2).repeat_interleave(3)
    assert top_k_rows(signal, group, torch.ones(6, dtype=torch.bool), k).tolist() == rows


def test_top_k_rows_skip_empty_responses():
    signal, able = torch.tensor([[3.0], [2.0], [1.0]]), torch.tensor([False, True, True])
    assert top_k_rows(signal, torch.zeros(3, dtype=torch.long), able, 1).tolist() == [1]


def test_full_kl_is_from_reference_to_policy():
    frozen, policy = (torch.tensor(p).log().expand(1, 2, 2) for p in ([0.5, 0.5], [0.9, 0.1]))
    for first, second, want in ((frozen, policy, 0.5108256), (policy, frozen, 0.3680642)):
        out, batch = read(second, torch.tensor([[-100, 0]]), first)
        near(FullKl()(out, batch), [want], 1e-7)
    out, batch = read(policy, torch.tensor([[-100, 0]]), policy)
    near(FullKl()(out, batch), [0.0], 1e-15)


def test_repeated_rows_do_not_change_sft_and_kl_losses():
    logits, frozen = torch.randn(2, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[-100, 1, 2, 3], [-100, -100, 4, -100]])
    values = []
    for again in (1, 2):
        leaf = logits.clone().requires_grad_()
        out, batch = read(leaf.repeat(again, 1, 1), labels.repeat(again, 1), frozen.repeat(again, 1, 1))
        batch = batch.replace(loss_weights=token_weights(batch.response_mask, "token_mean"))
        loss = SftLoss()(out, batch) + 0.35 * FullKl()(out, batch)
        values.append((loss, torch.autograd.grad(loss, leaf)[0]))
    for a, b in zip(*values, strict=True):
        torch.testing.assert_close(a, b, atol=1e-14, rtol=1e-12)


def test_modpo_margin_matches_manual_value():
    """Beta h = 0.3, w = (0.5, 0.5), margin 0.3: (0.3 - 0.15) / 0.5 = 0.3. Weight 1 on the first is DPO."""
    others = torch.tensor([[0.4], [0.1]])
    out, batch = pairs_of(one(-10), one(-20), one(-12), one(-19), others=others)
    for weights in ({"preferred": 0.5, "other1": 0.5}, {"preferred": 1.0, "other1": 0.0}):
        near(Dpo(0.1, margin=ModpoMargin("preferred", weights))(out, batch), [0.554355])


def test_per_response_mean_and_sum():
    x, respond = (
        torch.tensor([[9.0, 1.0, 3.0], [9.0, 9.0, 9.0]]),
        torch.tensor([[False, True, True], [False] * 3]),
    )
    near(per_response(x, respond, "sum"), [4.0, 0.0])
    near(per_response(x, respond, "mean"), [2.0, 0.0])
