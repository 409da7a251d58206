"""What every loss must satisfy: parts add up, the gradient is the slope, only response tokens are taught."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.core.batch import Outputs
from paretune.loss.auxiliary import ClippedValueLoss, EntropyBonus, SftLoss, SquaredValueLoss
from paretune.loss.kl import FullKl, KlToReference
from paretune.loss.policy import ClippedIsWeight, ClippedSurrogate, GammaWeight, OffPolicyMask, SoftClip
from paretune.rl.algorithm_spec import LossAggregation
from toy import graded

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

quick = settings(max_examples=8, deadline=None, derandomize=True)
WORDS, WIDTH = 4, 4
POLICY = (
    ClippedSurrogate(),
    ClippedSurrogate(0.2, 0.28, dual_clip=3.0),
    ClippedSurrogate(0.05, 0.05, level="sequence"),
    ClippedSurrogate(0.05, 0.05, level="sequence_token"),
    ClippedIsWeight(1.1),
    SoftClip(),
    SoftClip(level="sequence"),
    GammaWeight(),
    OffPolicyMask(ClippedSurrogate(), 0.05),
)
LOSSES = (
    *POLICY,
    *(
        KlToReference(e)
        for e in (
            "k3_value_k2_grad",
            "k1",
            "k2",
            "k3",
            "k1_value_k2_grad",
            "k3_clamped",
            "k3_clamped_value_k2_grad",
            "abs",
        )
    ),
    KlToReference("k3", "token"),
    KlToReference("k3", "sequence"),
    EntropyBonus(),
    SquaredValueLoss(),
    ClippedValueLoss(0.1),
    SftLoss(),
    FullKl(),
)
every = pytest.mark.parametrize("loss", LOSSES, ids=repr)
means = st.sampled_from(
    [
        "token_mean",
        "seq_mean_token_mean",
        "seq_mean_token_sum",
        "seq_mean_token_sum_norm",
    ]
)


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def drawn(lengths, seed):
    """A batch that an older policy wrote, before a critic of two heads."""
    rng = torch.Generator().manual_seed(seed)

    def noise(*more):
        return torch.randn(len(lengths), WIDTH, *more, generator=rng) * 0.5

    batch = graded([0.0] * len(lengths), lengths=list(lengths))
    tokens = torch.randint(0, WORDS, (len(lengths), WIDTH), generator=rng)
    width = batch.input_ids.shape[1]
    batch = batch.replace(input_ids=tokens[:, :width])
    inside = batch.response_mask.double()
    return batch.replace(
        advantages=(noise()[:, :width] * inside)[..., None],
        old_logprobs=(noise()[:, :width] - 1.4) * inside,
        ref_logprobs=(noise()[:, :width] - 1.4) * inside,
        importance_weights=noise()[:, :width].exp() * inside,
        values=noise(2)[:, :width] * inside[..., None],
        returns=noise(2)[:, :width] * inside[..., None],
    )


def answers(batch, seed):
    """Logits and values that a model and a critic would give."""
    rng = torch.Generator().manual_seed(seed + 1)
    logits = torch.randn(*batch.input_ids.shape, WORDS, generator=rng).requires_grad_()
    values = torch.randn(*batch.input_ids.shape, 2, generator=rng).requires_grad_()
    return logits, values


def outputs(logits, values, batch):
    distribution = logits.log_softmax(-1)
    logp = distribution.gather(-1, batch.input_ids[..., None]).squeeze(-1)
    entropy = -(distribution.exp() * distribution).sum(-1)
    uniform = -math.log(WORDS) - distribution.mean(-1)  # the reference says all words alike
    return Outputs(
        logprobs=torch.where(batch.response_mask, logp, 0.0),
        entropy=torch.where(batch.response_mask, entropy, 0.0),
        ref_policy_kl=torch.where(batch.response_mask, uniform, 0.0),
        values=torch.where(batch.response_mask[..., None], values, 0.0),
    )


def sliced(out, rows):
    return Outputs(
        logprobs=out.logprobs[rows],
        entropy=out.entropy[rows],
        values=out.values[rows],
        ref_policy_kl=out.ref_policy_kl[rows],
    )


lengths = st.lists(st.integers(1, WIDTH - 1), min_size=1, max_size=4)


@every
@quick
@given(lengths=lengths, seed=st.integers(0, 99), by=means, data=st.data())
def test_losses_of_micro_batches_add_up(loss, lengths, seed, by, data):
    batch = drawn(lengths, seed)
    batch = batch.replace(loss_weights=LossAggregation(by, 7)(batch.response_mask))
    out = outputs(*answers(batch, seed), batch)
    cut = data.draw(st.integers(0, len(batch)))
    halves = [torch.arange(cut), torch.arange(cut, len(batch))]
    parts = sum(loss(sliced(out, rows), batch.select(rows)) for rows in halves)
    torch.testing.assert_close(parts, loss(out, batch), atol=1e-12, rtol=1e-12)


@every
@quick
@given(lengths=lengths, seed=st.integers(0, 99))
def test_only_response_tokens_have_gradients(loss, lengths, seed):
    batch = drawn(lengths, seed)
    batch = batch.replace(loss_weights=LossAggregation("seq_mean_token_mean")(batch.response_mask))
    logp = outputs(*answers(batch, seed), batch).logprobs.detach().requires_grad_()
    values = torch.zeros(*logp.shape, 2, requires_grad=True)
    out = Outputs(logprobs=logp, entropy=logp * 1.0, values=values * 1.0, ref_policy_kl=logp * 1.0)
    slopes = torch.autograd.grad(loss(out, batch), (logp, values), allow_unused=True)
    for slope in slopes:
        assert slope is None or (slope[~batch.response_mask] == 0).all()


CONSTANTS = {ClippedIsWeight, GammaWeight}
"""Their weights are constants by definition: the value has another slope than the one that is meant."""
STRAIGHT = {"k3_value_k2_grad": "k2", "k1_value_k2_grad": "k2", "k3_clamped_value_k2_grad": "k2"}
"""Value of one estimator, slope of another."""


def meant(loss, out, batch):
    """A function whose value has the slope that the loss declares."""
    if isinstance(loss, KlToReference) and loss.kl_estimator in STRAIGHT:
        return KlToReference(STRAIGHT[loss.kl_estimator])
    if type(loss) in CONSTANTS:
        # The same loss with every weight frozen at this point.
        unit = Outputs(logprobs=torch.where(batch.response_mask, -1.0, 0.0))
        seen = loss.metrics(out, batch)
        weight = seen.get(
            "ratio/mean_loss_weight", seen["ratio/max"].clamp(max=getattr(loss, "max_ratio", 1e9))
        )
        frozen = weight.detach() * batch.importance_weights * batch.advantages[..., 0] * batch.loss_weights
        return lambda o, b: -(frozen * o.logprobs * -unit.logprobs).sum()
    if getattr(loss, "level", "token") == "sequence_token":
        return ClippedSurrogate(loss.clip_low, loss.clip_high, level="sequence")
    return loss


@every
@pytest.mark.parametrize("seed", [0, 1])
def test_gradient_matches_finite_differences(loss, seed):
    """Against central differences, through the softmax, on three tokens and four words."""
    batch = drawn([3, 2], seed)
    batch = batch.replace(loss_weights=LossAggregation("seq_mean_token_mean")(batch.response_mask))
    # With advantages of one sign a row, a ratio of the response spreads its slope over the tokens evenly.
    if getattr(loss, "level", "token") == "sequence_token":
        row = torch.tensor([1.0, -1.0])[:, None] * batch.response_mask
        batch = batch.replace(advantages=row[..., None], importance_weights=None)
    logits, values = answers(batch, seed)
    at = outputs(logits, values, batch)
    slopes = torch.autograd.grad(loss(at, batch), (logits, values), allow_unused=True)
    function = meant(loss, at, batch)
    step = 1e-6
    for x, slope in zip((logits, values), slopes, strict=True):
        numeric = torch.zeros_like(x)
        for i in range(x.numel()):
            ends = []
            for way in (step, -step):
                moved = x.detach().clone()
                moved.view(-1)[i] += way
                pair = (moved, values.detach()) if x is logits else (logits.detach(), moved)
                ends.append(function(outputs(*pair, batch), batch))
            numeric.view(-1)[i] = (ends[0] - ends[1]) / (2 * step)
        ours = torch.zeros_like(x) if slope is None else slope
        torch.testing.assert_close(ours, numeric, atol=2e-8, rtol=1e-6)


@pytest.mark.parametrize("loss", POLICY, ids=repr)
def test_importance_weights_multiply_policy_losses_only(loss):
    batch = drawn([3, 2, 1], 5)
    batch = batch.replace(loss_weights=LossAggregation("token_mean")(batch.response_mask))
    out = outputs(*answers(batch, 5), batch)
    plain = loss(out, batch.replace(importance_weights=None))
    assert torch.equal(
        plain, loss(out, batch.replace(importance_weights=torch.ones_like(batch.loss_weights)))
    )
    torch.testing.assert_close(
        2 * plain, loss(out, batch.replace(importance_weights=2 * torch.ones_like(batch.loss_weights)))
    )
    assert loss(out, batch.replace(importance_weights=torch.zeros_like(batch.loss_weights))) == 0
    kl = KlToReference()
    assert torch.equal(kl(out, batch), kl(out, batch.replace(importance_weights=None)))


@pytest.mark.parametrize("loss", POLICY, ids=repr)
def test_all_policy_losses_have_the_same_gradient_on_policy(loss):
    """At ratio 1 the bounds, gates and weights do not matter (SoftGate: its value does, its slope not)."""
    batch = drawn([3, 2], 3)
    row = torch.tensor([1.3, -0.7])[:, None] * batch.response_mask
    logp = outputs(*answers(batch, 3), batch).logprobs.detach().requires_grad_()
    batch = batch.replace(
        advantages=row[..., None],
        old_logprobs=logp.detach(),
        loss_weights=LossAggregation("seq_mean_token_mean")(batch.response_mask),
    ).replace(importance_weights=None)
    (slope,) = torch.autograd.grad(loss(Outputs(logprobs=logp), batch), logp)
    torch.testing.assert_close(slope, -row * batch.loss_weights, atol=1e-14, rtol=1e-12)
