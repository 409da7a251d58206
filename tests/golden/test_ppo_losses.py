"""Losses of policy and critic as TRL, MOSS, OpenRLHF, verl and Safe RLHF compute them, and gradients."""

import pytest
import torch
from cases import Case, cases, numbers
from lossbatch import asked, batch_of, outputs, shifted, token_mean, weights
from torch.nn.functional import pad

from paretune.core.kl import k3
from paretune.credit.aggregation import weighted_sum
from paretune.credit.base import chain
from paretune.credit.normalization import whiten
from paretune.credit.returns import Gae
from paretune.credit.shaping import KlPenalty, TerminalReward
from paretune.loss.auxiliary import ClippedValueLoss, EntropyBonus, SquaredValueLoss, entropy_target_distance
from paretune.loss.policy import ClippedSurrogate
from toy import advance

pytestmark = pytest.mark.usefixtures("double")


def critic_loss(part, values, old, returns, weight):
    """Loss and gradient of a critic with one head."""
    mask = torch.ones_like(weight)
    batch = batch_of(mask, weight=weight, values=old[..., None], returns=returns[..., None])
    out = outputs(mask, mask, values=pad(values[..., None], (0, 0, 1, 0)))
    return part(out, batch), part.metrics(out, batch).get("clip_fraction/value"), batch


@pytest.mark.parametrize("case", cases("ppo_losses"))
def test_ppo_losses_match_trl(case: Case):
    p = case.params
    mask, value_mask = ~case.input("padding_mask").bool(), ~case.input("padding_mask_p1").bool()
    logp, values = (case.input(key).requires_grad_() for key in ("new_logprobs", "vpred"))
    batch = batch_of(
        mask,
        case.input("advantages"),
        weight=weights(mask, "token_mean"),
        old_logprobs=torch.where(mask, case.input("old_logprobs"), 0.0),
    )
    out, part = outputs(logp, mask), ClippedSurrogate(p["cliprange"], p["cliprange"])
    policy, seen = part(out, batch), part.metrics(out, batch)
    value, held, _ = critic_loss(
        ClippedValueLoss(p["cliprange_value"]),
        values,
        case.input("old_values"),
        case.input("returns"),
        weights(value_mask, "token_mean"),
    )
    loss = policy + p["vf_coef"] * value
    slopes = torch.autograd.grad(loss, (logp, values))
    case.check(policy, case.expected["pg_loss"])
    case.check(value, case.expected["vf_loss"])
    case.check(loss, case.expected["loss"])
    case.check(
        token_mean(seen["clip_fraction/low"] + seen["clip_fraction/high"], batch),
        case.expected["pg_clipfrac"],
    )
    case.check(held[shifted(value_mask)].mean(), case.expected["vf_clipfrac"])
    case.check(slopes[0], case.grad["new_logprobs"])
    case.check(slopes[1], case.grad["vpred"])


@pytest.mark.parametrize("case", cases("verl_value_loss"))
def test_value_loss_matches_verl(case: Case):
    mask = case.input("response_mask").bool()
    mode = case.params["loss_agg_mode"].replace("-", "_")
    length = mask.shape[1] if mode == "seq_mean_token_sum_norm" else 1
    values = case.input("vpreds").requires_grad_()
    loss, held, _ = critic_loss(
        ClippedValueLoss(case.params["cliprange_value"]),
        values,
        case.input("values"),
        case.input("returns"),
        weights(mask, mode, length, "exclude"),
    )
    (slope,) = torch.autograd.grad(loss, values)
    case.check(loss, case.expected["vf_loss"])
    case.check(held[shifted(mask)].mean(), case.expected["vf_clipfrac"])
    case.check(slope, case.grad["vpreds"])


@pytest.mark.parametrize("case", cases("openrlhf_ppo_losses"))
def test_weighted_losses_match_openrlhf(case: Case):
    """A row without tokens makes their loss NaN; ours leaves that row at 0 and is that of the other rows."""
    p, mask = case.params, case.input("mask").bool()
    logp, values = (case.input(key).requires_grad_() for key in ("log_probs", "values"))
    each = weights(mask, "seq_mean_token_mean")
    batch = batch_of(
        mask,
        case.input("advantages"),
        weight=each,
        old_logprobs=torch.where(mask, case.input("old_log_probs"), 0.0),
        importance_weights=case.input("policy_w"),
    )
    policy = ClippedSurrogate(p["clip_eps"], p["clip_eps"])(outputs(logp, mask), batch)
    clip = p["value_clip_eps"]
    value, _, _ = critic_loss(
        SquaredValueLoss() if clip is None else ClippedValueLoss(clip),
        values,
        case.input("old_values"),
        case.input("returns"),
        each * case.input("value_w"),
    )
    found = {
        "policy_loss": policy,
        "value_loss": value,
        "policy_loss/log_probs": torch.autograd.grad(policy, logp)[0],
        "value_loss/values": torch.autograd.grad(value, values)[0],
    }
    empty = ~mask.any(-1)
    for name, want in (case.expected | case.grad).items():
        expected, ours = numbers(want), found[name].detach()
        assert ours.isfinite().all()
        if empty.any():
            broken = expected.isnan()
            assert broken.any()
            expected = torch.where(broken, ours, expected)
            assert (ours[empty] == 0).all() if ours.ndim else True
        case.check(ours, expected.tolist())


@pytest.mark.parametrize("case", cases("moss_ppo_loss"))
def test_losses_match_moss_rlhf(case: Case):
    p = case.params
    logits, values = (case.input(key).requires_grad_() for key in ("policy_logits", "values"))
    tokens, respond = case.input("text_vec").long(), case.input("loss_mask").bool()
    respond[:, 0] = False
    mask = respond[:, 1:]
    out = asked(logits, tokens, respond)
    advantages = moss_advantages(case, mask)
    batch = batch_of(
        mask, advantages, weight=weights(mask, "token_mean"), old_logprobs=case.input("old_logprobs")
    )
    batch = batch.replace(input_ids=tokens, old_logprobs=torch.where(respond, batch.old_logprobs, 0.0))
    # Without their switch the surrogate is not clipped, which is a bound that nothing reaches.
    part = (
        ClippedSurrogate(p["pg_clip"], p["pg_clip"])
        if p["use_policy_loss_clip"]
        else ClippedSurrogate(1.0, 1e30)
    )
    policy, critic = part(out, batch), (values[:, :-1], case.input("old_values"), case.input("returns"))
    value, _, _ = critic_loss(
        ClippedValueLoss(p["value_clip"]) if p["use_critic_loss_clip"] else SquaredValueLoss(),
        *critic,
        weights(mask, "token_mean"),
    )
    loss = policy + p["vf_loss_weight"] * value
    if p["use_entropy_loss"]:
        target = entropy_target_distance(-EntropyBonus()(out, batch), p["entropy_clip"])
        case.check(target, case.expected["entro_loss"])
        loss = loss + p["entropy_loss_weight"] * target
    slopes = torch.autograd.grad(loss, (logits, values))
    case.check(policy, case.expected["pg_loss"])
    case.check(value, case.expected["vf_loss"])
    case.check(loss, case.expected["loss"])
    case.check(slopes[0], case.grad["policy_logits"])
    case.check(slopes[1], case.grad["values"])
    case.check(token_mean(k3(batch.old_logprobs - out.logprobs), batch), case.expected["approx_kl"])
    moss_fractions(case, out, critic, batch)


def moss_advantages(case, mask):
    """Their whitening and their cut, by our parts."""
    p, x = case.params, torch.where(mask, case.input("advantages"), 0.0)
    if p["use_advantage_norm"]:
        x = whiten(x, mask, "population", eps=1e-6)
    return x.clamp(-p["advantage_clip"], p["advantage_clip"]) if p["use_advantage_clip"] else x


def moss_fractions(case, out, values, batch):
    """They count what their bounds would hold back, in use or not."""
    p = case.params
    seen = ClippedSurrogate(p["pg_clip"], p["pg_clip"]).metrics(out, batch)
    case.check(
        token_mean(seen["clip_fraction/low"] + seen["clip_fraction/high"], batch), case.expected["pg_clip"]
    )
    _, held, _ = critic_loss(ClippedValueLoss(p["value_clip"]), *values, torch.zeros_like(values[0]))
    case.check(token_mean(held, batch), case.expected["vf_clip"])


SIDES = {
    "reward": ("reward_advantages", "reward_returns", 1.0),
    "cost": ("cost_advantages", "cost_returns", -1.0),
}
"""A cost is a reward with the sign turned round."""


@pytest.mark.parametrize("case", cases("safe_rlhf_rl"))
def test_rl_step_matches_safe_rlhf(case: Case):
    p, mask, start = case.params, case.input("mask").bool(), case.params["start"]
    respond = mask & (torch.arange(mask.shape[1]) >= start)
    batch = safe_batch(case, mask, respond)
    priced, _ = advance(chain(TerminalReward(), KlPenalty(p["kl_coeff"])), batch)
    limit = p["clip_range_score"]
    credited, _ = advance(
        Gae(p["gamma"], p["gae_lambda"]),
        priced.replace(token_rewards=priced.token_rewards.clamp(-limit, limit)),
    )
    for k, (side, (advantages, returns, sign)) in enumerate(SIDES.items()):
        paid = torch.where(respond, credited.token_rewards[:, 1:, k], 0.0)
        want = torch.where(respond, numbers(case.expected[f"kl_{side}s"]), 0.0)
        case.check(sign * paid, want.tolist())
        case.check(sign * credited.advantages[:, 1 + start :, k], case.expected[advantages])
        case.check(sign * credited.returns[:, 1 + start :, k], case.expected[returns])
    scale = 1 + p["lambda"]
    whole = weighted_sum(credited.advantages, torch.tensor([1 / scale, p["lambda"] / scale]))
    case.check(whole[:, 1 + start :, 0], case.expected["combined_advantages"])
    logp = case.input("log_probs").requires_grad_()
    clip = p["clip_range_ratio"]
    actor = ClippedSurrogate(clip, clip)(outputs(logp, respond), credited.replace(advantages=whole))
    (slope,) = torch.autograd.grad(actor, logp)
    case.check(actor, case.expected["actor_loss"])
    case.check(slope[:, start:], case.grad["actor_loss/log_probs"])
    values = case.input("new_reward_values").requires_grad_()
    old, returns = credited.values[:, 1:, 0], credited.returns[:, 1:, 0]
    critic, _, _ = critic_loss(
        ClippedValueLoss(p["clip_range_value"]), values, old, returns, credited.loss_weights[:, 1:]
    )
    (slope,) = torch.autograd.grad(critic, values)
    case.check(critic, case.expected["critic_loss"])
    case.check(slope[:, start:], case.grad["critic_loss/new_reward_values"])


def safe_batch(case, mask, respond):
    """Reward and safety as two objectives before a critic of two heads."""
    signal = torch.stack([case.input("reward"), -case.input("cost")], -1)
    fields = {"old_logprobs": case.input("old_log_probs"), "ref_logprobs": case.input("ref_log_probs")}
    values = torch.stack([case.input("reward_values"), -case.input("cost_values")], -1)
    batch = batch_of(
        respond,
        weight=weights(respond, "seq_mean_token_mean"),
        values=torch.where(mask[..., None], values, 0.0),
        **{name: torch.where(respond, x, 0.0) for name, x in fields.items()},
    )
    return batch.replace(scores=signal, rewards=signal, objectives=tuple(SIDES))
