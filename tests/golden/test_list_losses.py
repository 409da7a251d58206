"""PRO's losses on ranked lists, SuperHF's loss and choice of samples, as their repositories compute them."""

import math

import pytest
import torch
from cases import Case, cases
from groupbatch import read, rows_of

from paretune.core.reductions import token_weights
from paretune.credit.selection import top_k_rows
from paretune.loss.auxiliary import BestOfNSft, SftLoss
from paretune.loss.kl import FullKl
from paretune.loss.listwise import PreferenceRanking, per_response, ranking_stage_losses

ADDED = 1e-10
"""What their code adds to the sum inside the logarithm; ours is a log-sum-exp."""
pytestmark = pytest.mark.usefixtures("double")


def stages(out, batch, rewards):
    """Stage by stage the mean over prompts: ours, and ours with the added number."""
    score = per_response(out.logprobs, batch.response_mask, "mean").reshape(rewards.shape)
    ours = torch.stack([ranking_stage_losses(s, r) for s, r in zip(score, rewards, strict=True)])
    own = ((rewards - rewards[:, -1:]) * score)[:, :-1]
    theirs = torch.logaddexp(torch.full_like(own, math.log(ADDED)), ours + own) - own
    return ours.mean(0), theirs.mean(0)


def pro(case, out, batch, leaf):
    """The published total from our parts, the added number put in."""
    rewards, weight = case.input("rewards"), case.params["sft_weight"]
    num, n = rewards.shape
    ours, theirs = stages(out, batch, rewards)
    case.check(theirs, case.expected["rank_losses"])
    ranked = PreferenceRanking()(out, batch)
    torch.testing.assert_close(ranked, ours.sum())
    designated = torch.arange(num) * n + case.input("sft_index").long()
    taught = torch.zeros_like(batch.response_mask)
    taught[designated] = batch.response_mask[designated]
    sft = weight * (n - 1) ** 2 * SftLoss()(out, batch.replace(loss_weights=taught / num))
    case.check(sft, case.expected["sft_loss"])
    whole = ranked + (theirs - ours).sum() + sft
    case.check(whole, case.expected["total"])
    (slope,) = torch.autograd.grad(whole, leaf)
    return slope


@pytest.mark.parametrize("case", cases("pro_loss"))
def test_ranking_loss_matches_pro(case: Case):
    sums, rewards = case.input("sum_logps").requires_grad_(), case.input("rewards")
    group = torch.arange(len(sums)).repeat_interleave(sums.shape[1])
    out, batch = rows_of(sums.flatten(), case.input("lengths").flatten(), rewards.reshape(-1, 1), group)
    case.check(
        per_response(out.logprobs, batch.response_mask, "mean").reshape(rewards.shape),
        case.expected["scores"],
    )
    case.check(pro(case, out, batch, sums), case.grad["sum_logps"])
    torch.testing.assert_close(BestOfNSft("sum")(out, batch), -sums[:, 0].mean())


@pytest.mark.parametrize("case", cases("pro_loss_from_logits"))
def test_ranking_loss_from_logits_matches_pro(case: Case):
    """Their mask stands on the token before the one that is scored; so a short row scores its first pad."""
    logits, ids = case.input("logits").requires_grad_(), case.input("input_ids")
    num, n, width = ids.shape
    before = (case.input("attention_mask") * (1 - case.input("prefix_mask"))).bool().reshape(-1, width)
    respond = torch.nn.functional.pad(before[:, :-1], (1, 0))
    rows = logits.transpose(0, 1).reshape(num * n, width, -1)
    out, batch = read(rows, ids.reshape(-1, width), respond=respond)
    group = torch.arange(num).repeat_interleave(n)
    batch = batch.replace(group=group, rewards=case.input("rewards").reshape(-1, 1))
    case.check(pro(case, out, batch, logits), case.grad["logits"])


@pytest.mark.parametrize("case", cases("superhf_loss"))
def test_loss_matches_superhf(case: Case):
    """Their divergence is added up over rows and looks one token too late: our parts under that mask."""
    p, labels = case.params, case.input("labels")
    logits, frozen = case.input("logits").requires_grad_(), case.input("ref_logits")
    out, batch = read(logits, labels)
    loss = SftLoss()(out, batch.replace(loss_weights=token_weights(batch.response_mask, "token_mean")))
    case.check(loss, case.expected["ce"])
    if p["inverse_loss_penalty"] > 0:
        loss = loss + p["inverse_loss_penalty"] / loss
    if p["kl_coefficient"] >= 0:
        wide = (torch.nn.functional.pad(x, (0, 0, 0, 1)) for x in (logits, frozen))
        late = torch.nn.functional.pad(labels, (1, 0), value=-100)
        there, asked = read(next(wide), late, next(wide))
        divergence = len(labels) * FullKl()(there, asked)
        case.check(divergence, case.expected["kl_sum"])
        loss = loss + p["kl_coefficient"] * divergence
    case.check(loss, case.expected["loss"])
    (slope,) = torch.autograd.grad(loss, logits)
    case.check(slope, case.grad["logits"])


@pytest.mark.parametrize("case", cases("superhf_filter"))
def test_top_k_rows_match_superhf(case: Case):
    p, lengths = case.params, case.input("lengths")
    signal = case.input("scores")
    if p["length_penalty"]:
        signal = signal - p["length_penalty"] * lengths.log()
    expected = case.expected if isinstance(case.expected, dict) else {}
    group = torch.arange(p["num_prompts"]).repeat_interleave(p["superbatch_size"])
    best = top_k_rows(signal[:, None], group, lengths > 0, p["top_k"])
    if case.raises:  # theirs falls over a prompt without a response; ours leaves it out
        empty = [g for g in range(p["num_prompts"]) if (lengths[group == g] == 0).all()]
        assert empty
        assert not set(empty) & set(group[best].tolist())
        return
    case.check(signal, expected["penalized_scores"])
    assert best.tolist() == expected["indices"]
    case.check(signal[best], expected["scores"])
    case.check(lengths[best], expected["lengths"])
