import pytest
import torch

from paretune.core.batch import Outputs
from paretune.core.errors import WiringError
from paretune.core.reductions import token_weights
from paretune.loss.auxiliary import ClippedValueLoss, EntropyBonus, SquaredValueLoss
from paretune.loss.base import Loss, WeightedLoss, required_outputs, total_loss
from paretune.loss.kl import KL_ESTIMATORS, KlToReference
from paretune.loss.policy import (
    MAX_LOG_RATIO,
    ClippedIsWeight,
    ClippedSurrogate,
    GammaWeight,
    OffPolicyMask,
    PolicyLoss,
    SoftClip,
    clamp_log_ratio,
)
from paretune.run.metrics import find_metric
from toy import graded


def ready(advantage=1.0, objectives=1):
    batch = graded([1.0, 0.0], lengths=[2, 3])
    spread = torch.full((2, 4, objectives), advantage) * batch.response_mask[..., None]
    zero = torch.zeros(2, 4)
    weight = token_weights(batch.response_mask, "seq_mean_token_mean")
    return batch.replace(advantages=spread, old_logprobs=zero, ref_logprobs=zero, loss_weights=weight)


def test_prompt_and_padding_have_no_gradient():
    batch = ready()
    logp = torch.zeros(2, 4, requires_grad=True)
    loss, _ = total_loss(
        (WeightedLoss(1.0, ClippedSurrogate()), WeightedLoss(1.0, KlToReference())),
        Outputs(logprobs=logp),
        batch,
    )
    loss.backward()
    assert (logp.grad[~batch.response_mask] == 0).all()
    assert (logp.grad[batch.response_mask] != 0).all()


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "k3_value_k2_grad"])
def test_every_kl_estimator_has_a_gradient(estimator):
    batch = ready(0.0)
    logp = torch.where(batch.response_mask, 0.3, 0.0).requires_grad_()
    KlToReference(estimator)(Outputs(logprobs=logp), batch).backward()
    assert (logp.grad[batch.response_mask] > 0).all()


def test_clamped_log_ratios_are_finite_counted_and_keep_their_gradient():
    batch = ready(0.0)
    logp = torch.where(batch.response_mask, -100.0, 0.0).requires_grad_()
    out = Outputs(logprobs=logp)
    loss = KlToReference("k3")(out, batch)
    loss.backward()
    assert loss.isfinite()
    assert (logp.grad[batch.response_mask] < 0).all()
    assert KlToReference().metrics(out, batch)["ratio/clamped"].sum() == 5
    x = torch.tensor([25.0], requires_grad=True)
    assert clamp_log_ratio(x) == MAX_LOG_RATIO
    clamp_log_ratio(x).sum().backward()
    assert x.grad == 1


def test_clip_range_has_no_effect_on_policy():
    batch = ready(-1.5)
    slopes = []
    for bound in (0.0, 0.2, 0.9):
        logp = torch.zeros(2, 4, requires_grad=True)
        loss = ClippedSurrogate(bound, bound)(Outputs(logprobs=logp), batch)
        assert loss.item() == pytest.approx(1.5)
        if bound:
            slopes.append(torch.autograd.grad(loss, logp)[0])
    assert torch.equal(*slopes)


def test_invalid_wiring_raises():
    out = Outputs(logprobs=torch.zeros(2, 4))
    with pytest.raises(WiringError, match="of 2 objectives and must be of 1; fix: add an aggregator"):
        ClippedSurrogate()(out, ready(objectives=2))
    with pytest.raises(WiringError, match="ref_logprobs"):
        KlToReference()(out, ready().replace(ref_logprobs=None))
    with pytest.raises(WiringError, match="no losses"):
        total_loss((), out, ready())
    with pytest.raises(WiringError, match="does not implement __call__"):
        Loss()(out, ready())
    with pytest.raises(WiringError, match="clip bounds must be >= 0"):
        ClippedSurrogate(-0.1, 0.2)
    assert required_outputs((WeightedLoss(1.0, ClippedSurrogate()),)) == frozenset()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda: ClippedSurrogate(0.2, 0.5, dual_clip=1.4),
            r"dual_clip is 1\.4, below the clip bound 1 \+ clip_high = 1\.5",
        ),
        (lambda: ClippedIsWeight(0.5), "1 must lie between"),
        (lambda: ClippedIsWeight(5.0, 1.5), "1 must lie between"),
        (lambda: SoftClip(0.0), "both must be > 0"),
        (lambda: ClippedValueLoss(0.0), "must be > 0"),
        (lambda: KlToReference("k3_value_k2_grad", "token"), 'ratio_level="token" adds'),
        (lambda: KlToReference("k1_value_k2_grad", "sequence"), 'ratio_level="sequence" adds'),
    ],
)
def test_invalid_settings_raise(make, match):
    with pytest.raises(WiringError, match=match):
        make()


def test_missing_outputs_raise():
    out, batch = Outputs(logprobs=torch.zeros(2, 4)), ready()
    for loss, match in (
        (EntropyBonus(), "entropy"),
        (SquaredValueLoss(), "had no critic"),
        (PolicyLoss(), "does not implement per_token_loss"),
    ):
        with pytest.raises(WiringError, match=match):
            loss(out, batch)
    terms = (
        WeightedLoss(1.0, EntropyBonus()),
        WeightedLoss(1.0, ClippedValueLoss()),
        WeightedLoss(1.0, ClippedSurrogate()),
    )
    assert required_outputs(terms) == {"entropy", "values"}
    with pytest.raises(WiringError, match="old_logprobs"):
        KlToReference("k3", "token")(out, batch.replace(old_logprobs=None))


def test_off_policy_mask_masks_bad_off_policy_responses():
    """Row 0 fell by 1 nat a token, row 1 rose; only bad rows that fell are left out."""
    batch = graded([1.0, 0.0], lengths=[2, 3])
    fell = torch.tensor([[-1.0], [1.0]]) * batch.response_mask
    left = []
    for sign in (-1.0, 1.0):
        now = batch.replace(
            advantages=sign * batch.response_mask[..., None].float(),
            old_logprobs=torch.zeros(2, 4),
            loss_weights=token_weights(batch.response_mask, "token_mean"),
        )
        logp = fell.clone().requires_grad_()
        part, out = OffPolicyMask(SoftClip(), 0.5), Outputs(logprobs=logp)
        (slope,) = torch.autograd.grad(part(out, now), logp)
        left.append(part.metrics(out, now)["clip_fraction/off_policy_mask"].sum(-1).tolist())
        assert (slope[1][batch.response_mask[1]] != 0).all()
        assert bool((slope[0] == 0).all()) is (sign < 0)
    assert left == [[2.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    "loss",
    [
        ClippedSurrogate(dual_clip=2.0, level="sequence"),
        OffPolicyMask(ClippedSurrogate()),
        ClippedIsWeight(),
        SoftClip(),
        GammaWeight(),
        *(KlToReference(e) for e in KL_ESTIMATORS),
    ],
    ids=repr,
)
def test_all_metrics_are_in_the_dictionary(loss):
    seen = loss.metrics(Outputs(logprobs=torch.full((2, 4), -0.5)), ready())
    assert seen
    assert all(find_metric(key) for key in seen)
    assert all(x.shape == (2, 4) for x in seen.values())
