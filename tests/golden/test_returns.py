"""Published rewards on tokens, advantages by a critic, whitening, running scales and length penalties."""

import math

import pytest
import torch
from cases import cases, tolerance

from paretune.core.reductions import masked_mean, masked_var, row_mean
from paretune.credit.base import chain
from paretune.credit.normalization import RunningNormalize, Whiten, whiten
from paretune.credit.returns import Gae, gae
from paretune.credit.shaping import (
    ClipReward,
    KlPenalty,
    OverlongPenalty,
    TerminalReward,
    kl_estimate,
    soft_overlong_penalty,
)
from toy import advance, graded

pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.parametrize("case", cases("ppo_masked_whiten"))
def test_masked_whitening_matches_trl(case):
    x, mask, want = case.input("values"), case.input("mask").bool(), case.expected
    case.check(masked_mean(x, mask), want["mean"])
    case.check(row_mean(x, mask), want["row_mean"])
    case.check(masked_var(x, mask, "population"), want["var_population"])
    case.check(masked_var(x, mask), want["var_unbiased"])
    case.check(whiten(x, mask), want["whitened"])
    case.check(whiten(x, mask, shift_mean="restore"), want["whitened_no_shift"])
    case.check(whiten(x, mask, "population"), want["whitened_population"])
    case.check(whiten(x, mask, "population", "restore"), want["whitened_no_shift_population"])


@pytest.mark.parametrize("case", cases("moss_whiten"))
def test_whitening_matches_moss_rlhf(case):
    x, mask = case.input("xs"), case.input("mask").bool()
    white = whiten(x, mask, "population", eps=1e-6)
    case.check(white, case.expected["whitened"])
    case.check(whiten(x, mask, "population", "restore", 1e-6), case.expected["whitened_no_shift"])
    clip = case.params["clip"]
    if clip is not None:
        batch = graded(torch.zeros(len(x)), respond=torch.ones_like(mask))
        cut, _ = advance(
            ClipReward(-clip, clip, apply_to="advantages"), batch.replace(advantages=white[..., None])
        )
        case.check(cut.advantages[..., 0], case.expected["clipped"])


def ppo_batch(case):
    """A batch of TRL: it pays the score one place after the response, so ours is one place longer."""
    last, scores = case.input("sequence_lengths").long(), case.input("scores")
    values, width = case.input("values"), case.input("values").shape[1]
    at = torch.arange(width)[None]
    padding, past = at > last[:, None], at > last[:, None] + 1
    batch = graded(scores, respond=~past).replace(
        old_logprobs=torch.where(padding, 1.0, case.input("logprobs")),
        ref_logprobs=torch.where(padding, 1.0, case.input("ref_logprobs")),
        values=torch.where(past, 0.0, values)[..., None],
    )
    return batch, padding


@pytest.mark.parametrize("case", cases("ppo_rewards_gae"))
def test_rewards_and_gae_match_trl_ppo(case):
    p, want = case.params, case.expected
    batch, padding = ppo_batch(case)
    case.check(padding, want["padding_mask"])
    case.check(~batch.response_mask, want["padding_mask_p1"])
    case.check(batch.values[..., 0], want["values_masked"])
    gap = batch.old_logprobs - batch.ref_logprobs
    case.check(kl_estimate(gap, p["kl_estimator"]), want["kl"])
    rewards = [TerminalReward(), KlPenalty(p["kl_coef"], p["kl_estimator"])]
    form = {"trl": "sample", "summarize": "population"}[p["implementation"]]
    if p["whiten_rewards"]:
        rewards.append(Whiten(form, "restore", apply_to="token_rewards"))
    batch, _ = advance(chain(*rewards, Gae(p["gamma"], p["lam"])), batch)
    case.check(batch.token_rewards[..., 0], want["rewards"])
    case.check(batch.advantages[..., 0], want["advantages_raw"])
    case.check(batch.returns[..., 0], want["returns"])
    # Over the response without the place after it; by the plain function, for its NaN of a single token.
    white = whiten(batch.advantages[..., 0], ~padding, form)
    case.check(torch.where(padding, 0.0, white), want["advantages"])


@pytest.mark.parametrize("case", cases("verl_gae"))
def test_gae_that_skips_masked_tokens_matches_verl(case):
    respond = case.input("response_mask").bool()
    batch = graded(torch.zeros(len(respond)), respond=respond).replace(
        token_rewards=case.input("token_level_rewards")[..., None], values=case.input("values")[..., None]
    )
    batch, _ = advance(chain(Gae(case.params["gamma"], case.params["lam"]), Whiten()), batch)
    case.check(batch.advantages[..., 0], case.expected["advantages_masked"])
    case.check(batch.returns[..., 0], case.expected["returns_masked"])


@pytest.mark.parametrize("case", cases("moss_gae"))
def test_gae_matches_moss_rlhf(case):
    reward, values = case.input("rewards")[None, :, None], case.input("values")[None, :, None]
    respond = torch.ones(1, reward.shape[1], dtype=torch.bool)
    advantage = gae(reward, values, respond, case.params["gamma"], case.params["lam"])
    case.check(advantage.flatten(), case.expected["advantages"])
    case.check((advantage + values).flatten(), case.expected["returns"])


def fed(step, batches):
    """The step on one batch of scores after another: its state and the signal, each time."""
    state = step.init_state()
    for scores in batches:
        batch, state, _ = step.apply_stateful(graded(scores), state, torch.Generator())
        yield state, batch.rewards[:, 0]


@pytest.mark.parametrize("case", cases("moss_running_reward"))
def test_running_reward_scale_matches_moss_rlhf(case):
    p = case.params
    scale = RunningNormalize("subtract" if p["use_norm"] else "none")
    assert p["use_scaling"]
    cut = ClipReward(-p["clip"], p["clip"]) if p["use_clip"] else chain()
    seen = fed(scale, case.inputs["batches"])
    for (state, signal), want in zip(seen, case.expected["steps"], strict=True):
        case.check(advance(cut, graded(signal))[0].rewards[:, 0], want["rewards"])
        case.check(state.mean.flatten()[0], want["running_mean"])
        case.check(state.count.flatten()[0], want["count"])
        # The published code divides by a standard deviation of about 1e-12, digits of noise, where ours is
        # infinite, so that nothing is blown up.
        unknown = float(want["running_std"]) < 1e-11
        case.check(scale.std(state).flatten()[0], math.inf if unknown else want["running_std"])


@pytest.mark.parametrize("case", cases("safe_rlhf_normalizer"))
def test_running_normalizer_matches_safe_rlhf(case):
    p = case.params
    memory = {"RunningMeanStd": "inflated", "ExponentialMovingAverage": "ema"}[p["type"]]
    mean = {"affine": "subtract", "scale": "none", "identity": "none"}[p["function"]]
    scale = RunningNormalize(mean, memory, p["momentum"] or 0.9, eps=1e-8)
    batches = [[row[0] for row in batch] for batch in case.inputs["batches"]]
    seen = zip(fed(scale, batches), batches, case.expected["steps"], strict=True)
    for (state, signal), raw, want in seen:
        got = torch.tensor(raw) if p["function"] == "identity" else signal
        case.check(got[:, None], want["normalized"])
        case.check(state.mean.reshape(1), want["mean"])
        case.check(state.var.reshape(1), want["var"])
        case.check(state.count.flatten()[0], want["count"])


@pytest.mark.parametrize("case", cases("dapo_overlong"))
def test_unbounded_overlong_penalty_matches_verl(case):
    p = case.params
    lengths = torch.tensor(case.inputs["lengths"])
    got = soft_overlong_penalty(lengths, p["max_resp_len"], p["buffer_len"], p["factor"], -math.inf)
    case.check(got, case.expected["penalty"])


@pytest.mark.parametrize("case", cases("trl_helpers", "soft_overlong"))
def test_overlong_penalty_matches_trl(case):
    p = case.params
    lengths = case.inputs["lengths"]
    case.check(
        soft_overlong_penalty(torch.tensor(lengths), p["max_completion_len"], p["soft_punish_cache"]),
        case.expected["penalty"],
    )
    part = OverlongPenalty(p["max_completion_len"], p["soft_punish_cache"])
    batch, seen = advance(part, graded([0.0] * len(lengths), lengths=lengths))
    case.check(batch.rewards[:, 0], case.expected["penalty"])
    assert seen["penalty/overlong"] == pytest.approx(-float(batch.rewards.mean()))
    assert tolerance(case.topic) == 1e-7
