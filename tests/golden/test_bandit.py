"""The three-action bandit: with a KL term of 1 the optimum is known, and our parts reach it."""

import pytest
import torch

from paretune.core.batch import Batch, Outputs
from paretune.credit.base import chain
from paretune.credit.normalization import BroadcastToTokens, GroupNormalize
from paretune.loss.base import WeightedLoss, total_loss
from paretune.loss.kl import KlToReference, k3_value_k2_grad
from paretune.loss.policy import ClippedSurrogate
from paretune.rl.algorithm_spec import LossAggregation

REFERENCE = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REWARD = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
OPTIMUM = torch.tensor([0.179000, 0.291944, 0.529056], dtype=torch.float64)
BEST = 1.0272222
N = 1024


def value(p):
    return float((p * (REWARD - (p / REFERENCE).log())).sum())


def test_exact_gradient_ascent_reaches_the_optimum():
    logits = REFERENCE.log().clone().requires_grad_()
    for _ in range(500):
        logp = logits.log_softmax(0)
        p = logp.exp().detach()
        # The expectation over actions, of the same per-sample terms the losses use.
        gain = (p * (logp * (REWARD - (p * REWARD).sum()) - k3_value_k2_grad(logp - REFERENCE.log()))).sum()
        (slope,) = torch.autograd.grad(gain, logits)
        with torch.no_grad():
            logits += 0.5 * slope
    p = logits.softmax(0).detach()
    torch.testing.assert_close(p, OPTIMUM, atol=1e-6, rtol=0)
    assert value(p) == pytest.approx(BEST, abs=1e-7)


def drawn(logits, rng, n):
    """One group of `n` one-token responses, drawn from the policy, at the second place of two."""
    action = torch.multinomial(logits.softmax(0), n, replacement=True, generator=rng)
    respond = torch.tensor([[False, True]]).expand(n, 2)
    logp = torch.zeros(n, 2, dtype=torch.float64)
    old, reference = logp.clone(), logp.clone()
    old[:, 1], reference[:, 1] = logits.log_softmax(0)[action], REFERENCE.log()[action]
    score = REWARD[action][:, None]
    return action, Batch(
        input_ids=torch.stack([torch.zeros_like(action), action], 1),
        attention_mask=torch.ones_like(respond),
        response_mask=respond,
        group=torch.zeros(n, dtype=torch.long),
        truncated=torch.zeros(n, dtype=torch.bool),
        objectives=("reward",),
        scores=score,
        rewards=score,
        old_logprobs=old,
        ref_logprobs=reference,
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sampled_groups_reach_the_optimum(seed):
    rng = torch.Generator().manual_seed(seed)
    logits = REFERENCE.log().clone().requires_grad_()
    credit = chain(GroupNormalize("none"), BroadcastToTokens())
    terms, trail = (WeightedLoss(1.0, ClippedSurrogate()), WeightedLoss(1.0, KlToReference())), []
    for step in range(120):
        action, batch = drawn(logits.detach(), rng, N)
        batch, _, _ = credit.apply_stateful(batch, credit.init_state(), rng)
        batch = batch.replace(
            loss_weights=LossAggregation("seq_mean_token_mean")(batch.response_mask).double()
        )
        logp = torch.stack([torch.zeros(N, dtype=torch.float64), logits.log_softmax(0)[action]], 1)
        loss, _ = total_loss(terms, Outputs(logprobs=logp), batch)
        (slope,) = torch.autograd.grad(loss, logits)
        with torch.no_grad():
            logits -= 0.6 * slope
        if step >= 40:
            trail.append(logits.detach().softmax(0))
    p = torch.stack(trail).mean(0)
    torch.testing.assert_close(p, OPTIMUM, atol=0.015, rtol=0)
    assert value(p) == pytest.approx(BEST, abs=2e-3)


def test_gradient_of_k3_alone_misses_the_optimum():
    logits = REFERENCE.log().clone().requires_grad_()
    for _ in range(500):
        logp = logits.log_softmax(0)
        p = logp.exp().detach()
        gap = logp - REFERENCE.log()
        gain = (p * (logp * (REWARD - (p * REWARD).sum()) - ((-gap).exp() + gap - 1))).sum()
        (slope,) = torch.autograd.grad(gain, logits)
        with torch.no_grad():
            logits += 0.3 * slope
    assert (logits.softmax(0) - OPTIMUM).abs().max() > 0.03
