"""Losses of critic-free methods as TRL, verl and Dr. GRPO compute them: values, gradients, what they log."""

import pytest
import torch
from cases import Case, cases
from lossbatch import batch_of, outputs, token_mean, weights

from paretune.core.reductions import row_mean
from paretune.credit.importance_sampling import high_entropy_mask
from paretune.credit.normalization import group_normalize
from paretune.loss.auxiliary import EntropyBonus
from paretune.loss.base import WeightedLoss, total_loss
from paretune.loss.kl import KlToReference
from paretune.loss.policy import (
    ClippedIsWeight,
    ClippedSurrogate,
    GammaWeight,
    OffPolicyMask,
    SoftClip,
    clamp_log_ratio,
)

pytestmark = pytest.mark.usefixtures("double")


def policy_loss(p):
    """The part that TRL's options name."""
    high = p["eps"] if p["eps_high"] is None else p["eps_high"]
    part = {
        "cispo": lambda: ClippedIsWeight(max_ratio=high),
        "sapo": lambda: SoftClip(1.0, 1.05),
        "vespo": GammaWeight,
    }.get(p["loss_type"], lambda: ClippedSurrogate(p["eps"], high, p["delta"], p["level"]))()
    return part if p["off_policy_mask"] is None else OffPolicyMask(part, p["off_policy_mask"])


def trl_weights(p, mask):
    """TRL's denominators. `ga` divides all but the dapo family, which has spg in its place."""
    by = {
        "grpo": "seq_mean_token_mean",
        "sapo": "seq_mean_token_mean",
        "luspo": "seq_mean_token_sum",
        "dr_grpo": "seq_mean_token_sum_norm",
    }
    weight = weights(mask, by.get(p["loss_type"], "token_mean"), p["max_completion_length"])
    return weight * (p["spg"] if p["loss_type"] in {"dapo", "cispo", "vespo"} else 1) / p["ga"]


def trl_batch(case):
    p, mask = case.params, case.input("mask")
    logp = case.input("logps").requires_grad_()
    entropy = case.input("entropy")
    importance = high_entropy_mask(entropy, mask.bool(), p["top_entropy"]).double()
    batch = batch_of(
        mask,
        case.input("advantages"),
        weight=trl_weights(p, mask),
        old_logprobs=torch.where(mask.bool(), logp.detach() if p["on_policy"] else case.input("old"), 0.0),
        ref_logprobs=torch.where(mask.bool(), case.input("ref"), 0.0),
        importance_weights=importance,
    )
    if p["top_entropy"] == 1.0:
        batch = batch.replace(importance_weights=None)
    out = outputs(
        logp, mask, entropy=torch.where(batch.response_mask, torch.nn.functional.pad(entropy, (1, 0)), 0)
    )
    return logp, out, batch


@pytest.mark.parametrize("case", cases("trl_grpo_losses"))
def test_policy_losses_match_trl(case: Case):
    p = case.params
    logp, out, batch = trl_batch(case)
    policy = policy_loss(p)
    penalty = KlToReference("k3", p["level"] if p["bias_kl"] else "none")
    terms = [WeightedLoss(1.0, policy), WeightedLoss(p["beta"], penalty)]
    # Their bonus averages over kept tokens, by its own denominator.
    loss, _ = total_loss(terms, out, batch)
    bonus = batch.replace(loss_weights=batch.response_mask / batch.response_mask.sum())
    loss = loss + p["entropy_coef"] * EntropyBonus()(out, bonus)
    (slope,) = torch.autograd.grad(loss, logp)
    case.check(loss, case.expected["loss"])
    case.check(slope, case.grad["logps"])
    trl_metrics(case, policy.metrics(out, batch), penalty, out, batch)


def trl_metrics(case, seen, penalty, out, batch):
    """What TRL logs can be had from what ours watch."""
    p, want = case.params, case.expected["metrics"]
    mean = batch_mean(p, batch)
    if "kl" in want:
        each = batch.replace(loss_weights=batch.response_mask / batch.response_mask.sum())
        assert float(penalty(out, each).detach()) == pytest.approx(want["kl"], rel=1e-6)
    if "clip_ratio/low_mean" in want:
        low, high = seen["clip_fraction/low"], seen["clip_fraction/high"]
        got = {"low_mean": mean(low), "high_mean": mean(high), "region_mean": mean(low) + mean(high)}
        got["low_min"] = row_mean(low, batch.response_mask).min()
        got["high_max"] = row_mean(high, batch.response_mask).max()
        for key, value in got.items():
            assert float(value) == pytest.approx(want[f"clip_ratio/{key}"], abs=1e-6), key
    if "vespo/phi_seq_mean" in want:
        rows = row_mean(seen["ratio/mean_loss_weight"], batch.response_mask)
        assert float(rows.mean()) == pytest.approx(want["vespo/phi_seq_mean"], rel=1e-6)
    if "cispo_clip_ratio" in want:
        good = seen["clip_fraction/high"] * (batch.advantages[..., 0] > 0)
        assert float(token_mean(good, batch)) == pytest.approx(want["cispo_clip_ratio"], abs=1e-6)


def batch_mean(p, batch):
    """TRL averages a ratio of tokens over tokens, and a ratio of responses over responses."""
    if p["level"] == "token":
        return lambda x: token_mean(x, batch)
    return lambda x: row_mean(x, batch.response_mask).mean()


@pytest.mark.parametrize("case", cases("verl_policy_loss"))
def test_policy_loss_matches_verl(case: Case):
    p, mask = case.params, case.input("response_mask")
    mode = p["loss_agg_mode"].replace("-", "_")
    length = mask.shape[1] if mode == "seq_mean_token_sum_norm" else 1
    logp = case.input("log_prob").requires_grad_()
    batch = batch_of(
        mask,
        case.input("advantages"),
        weight=weights(mask, mode, length, "exclude"),
        old_logprobs=torch.where(mask.bool(), case.input("old_log_prob"), 0.0),
    )
    out = outputs(logp, mask)
    part = ClippedSurrogate(p["cliprange_low"], p["cliprange_high"], p["clip_ratio_c"])
    loss = part(out, batch)
    (slope,) = torch.autograd.grad(loss, logp)
    seen = part.metrics(out, batch)
    case.check(loss, case.expected["pg_loss"])
    case.check(slope, case.grad["log_prob"])
    # verl counts a token above its dual bound in both fractions.
    case.check(
        token_mean(seen["clip_fraction/low"] + seen["clip_fraction/high"], batch),
        case.expected["pg_clipfrac"],
    )
    case.check(
        token_mean(-clamp_log_ratio(out.logprobs - batch.old_logprobs), batch), case.expected["ppo_kl"]
    )
    case.check(token_mean(seen["clip_fraction/dual"], batch), case.expected["pg_clipfrac_lower"])


@pytest.mark.parametrize("case", cases("drgrpo"))
def test_loss_matches_dr_grpo(case: Case):
    p, mask = case.params, case.input("response_mask")
    reward = case.input("rewards").sum(-1, keepdim=True)
    group = torch.arange(len(reward)) // p["num_samples"]
    divide = "group" if p["critic_type"] == "grpo" else "none"
    advantages = group_normalize(reward, group, divide, "sample", 1e-8)[:, 0]
    by = "seq_mean_token_mean" if p["critic_type"] == "grpo" else "seq_mean_token_sum_norm"
    weight = weights(mask, by, p["generate_max_length"]) * case.input("loss_mask")[:, None]
    logp = case.input("new_logps").requires_grad_()
    batch = batch_of(
        mask,
        advantages,
        weight=weight,
        old_logprobs=torch.where(mask.bool(), case.input("old_logps"), 0.0),
        ref_logprobs=torch.where(mask.bool(), case.input("ref_logps"), 0.0),
    )
    clip = ClippedSurrogate(p["cliprange"], p["cliprange"])
    loss, parts = total_loss(
        (WeightedLoss(1.0, clip), WeightedLoss(p["beta"], KlToReference("k3"))), outputs(logp, mask), batch
    )
    (slope,) = torch.autograd.grad(loss, logp)
    case.check(advantages, case.expected["advantages"])
    case.check(torch.tensor(parts["ClippedSurrogate"]), case.expected["pg_loss"])
    case.check(p["beta"] * torch.tensor(parts["KlToReference"]), case.expected["reg_loss"])
    case.check(loss, case.expected["loss"])
    case.check(slope, case.grad["new_logps"])
