"""What losses that compare the responses of a group must satisfy, beside what every loss must."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.core.batch import Outputs
from paretune.loss.auxiliary import BestOfNSft
from paretune.loss.listwise import PreferenceRanking, best_worst_pairs, group_weight, ranking_stage_losses
from paretune.loss.pairwise import Dpo, ModpoMargin, Tdpo, pair_loss
from paretune.rl.algorithm_spec import LossAggregation
from paretune.training.microbatch import padded_microbatch_indices
from toy import graded

quick = settings(max_examples=8, deadline=None, derandomize=True)
WORDS, WIDTH = 4, 4
MARGIN = ModpoMargin("k0", {"k0": 0.6, "k1": 0.4})
PAIRS = (
    Dpo(),
    Dpo(0.5, "sigmoid", 0.1, "mean"),
    Dpo(0.5, "sigmoid", reference="none"),
    Dpo(0.5, "robust", 0.2),
    Dpo(0.5, "exo_pair", 0.01),
    *(
        Dpo(0.5, form)
        for form in ("ipo", "hinge", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down", "discopop")
    ),
    Dpo(0.5, margin=MARGIN),
    Tdpo(1, 0.5),
    Tdpo(2, 0.5),
)
LOSSES = (*PAIRS, PreferenceRanking(), BestOfNSft(), BestOfNSft("sum"))
every = pytest.mark.parametrize("loss", LOSSES, ids=repr)
means = st.sampled_from(
    [
        "token_mean",
        "seq_mean_token_mean",
        "seq_mean_token_sum",
        "seq_mean_token_sum_norm",
    ]
)
groups = st.lists(st.integers(0, 2), min_size=1, max_size=7)


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def drawn(loss, group, seed, *, whole=False, by="seq_mean_token_mean"):
    """Responses of drawn length and signal; unless `whole` some are unscored and some alike."""
    rng = torch.Generator().manual_seed(seed)
    rows = len(group)
    signal = torch.randn(rows, 2, generator=rng)
    if not whole:
        signal = signal.round()
        signal[torch.rand(rows, generator=rng) < 0.2, 0] = math.nan
    lengths = torch.randint(1, WIDTH, (rows,), generator=rng)
    batch = graded(signal, group, lengths=lengths.tolist())
    if getattr(loss, "margin", None) is None:
        batch = batch.replace(objectives=("k0",), rewards=signal[:, :1], scores=signal[:, :1])
    shape = batch.input_ids.shape
    reference = torch.randn(*shape, generator=rng) * 0.5 - 1.4
    batch = batch.replace(
        input_ids=torch.randint(0, WORDS, shape, generator=rng),
        ref_logprobs=reference * batch.response_mask,
        loss_weights=LossAggregation(by, 7)(batch.response_mask),
    )
    return batch, torch.randn(*shape, WORDS, generator=rng).requires_grad_()


def outputs(logits, batch):
    """What a forward pass gives under these logits, beside a reference that says all words alike."""
    distribution = logits.log_softmax(-1)
    logp = distribution.gather(-1, batch.input_ids[..., None]).squeeze(-1)
    drift = -math.log(WORDS) - distribution.mean(-1)
    return Outputs(
        logprobs=torch.where(batch.response_mask, logp, 0.0),
        ref_policy_kl=torch.where(batch.response_mask, drift, 0.0),
    )


def some(out, rows):
    return Outputs(logprobs=out.logprobs[rows], ref_policy_kl=out.ref_policy_kl[rows])


@every
@quick
@given(group=groups, seed=st.integers(0, 99), by=means, budget=st.integers(1, 30))
def test_losses_of_micro_batches_add_up(loss, group, seed, by, budget):
    batch, logits = drawn(loss, group, seed, by=by)
    lengths = batch.attention_mask.sum(-1).tolist()
    out = outputs(logits, batch)
    whole = loss(out, batch)
    (slope,) = torch.autograd.grad(whole, logits, retain_graph=True)
    parts = [torch.tensor(rows) for rows in padded_microbatch_indices(lengths, budget, group)]
    losses = [loss(some(out, rows), batch.select(rows)) for rows in parts]
    assert all(part.requires_grad for part in losses)
    torch.testing.assert_close(sum(losses), whole, atol=1e-12, rtol=1e-12)
    (again,) = torch.autograd.grad(sum(losses), logits)
    torch.testing.assert_close(again, slope, atol=1e-12, rtol=1e-12)


@every
@quick
@given(group=groups, seed=st.integers(0, 99))
def test_only_response_tokens_have_gradients(loss, group, seed):
    batch, _ = drawn(loss, group, seed)
    logp = torch.randn(batch.input_ids.shape, requires_grad=True)
    loss(Outputs(logprobs=logp, ref_policy_kl=logp * 1.0), batch).backward()
    assert logp.grad.isfinite().all()
    assert (logp.grad[~batch.response_mask] == 0).all()


@every
@pytest.mark.parametrize("seed", [0, 1])
def test_gradient_matches_finite_differences(loss, seed):
    """Against central differences, through the softmax; in form 2 the drift of the chosen side is held."""
    batch, logits = drawn(loss, [0, 0, 0, 1, 1], seed, whole=True)
    at = outputs(logits, batch)
    (slope,) = torch.autograd.grad(loss(at, batch), logits)
    held = best_worst_pairs(batch.rewards[:, :1], batch.group).chosen
    numeric = torch.zeros_like(logits)
    for i in range(logits.numel()):
        ends = []
        for way in (1e-6, -1e-6):
            moved = logits.detach().clone()
            moved.view(-1)[i] += way
            out = outputs(moved, batch)
            drift = out.ref_policy_kl.clone()
            if isinstance(loss, Tdpo) and loss.variant == 2:
                drift[held] = at.ref_policy_kl[held].detach()
            ends.append(loss(Outputs(logprobs=out.logprobs, ref_policy_kl=drift), batch))
        numeric.view(-1)[i] = (ends[0] - ends[1]) / 2e-6
    torch.testing.assert_close(slope, numeric, atol=2e-8, rtol=1e-6)


@every
@quick
@given(group=groups, seed=st.integers(0, 99), data=st.data())
def test_row_order_does_not_matter(loss, group, seed, data):
    batch, logits = drawn(loss, group, seed, whole=True)
    out = outputs(logits, batch)
    order = torch.tensor(data.draw(st.permutations(range(len(group)))))
    moved = loss(some(out, order), batch.select(order))
    torch.testing.assert_close(moved, loss(out, batch), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("loss", PAIRS, ids=repr)
@quick
@given(seed=st.integers(0, 99))
def test_common_shift_of_policy_and_reference_cancels(loss, seed):
    batch, logits = drawn(loss, [0, 0, 1, 1, 1], seed)
    out = outputs(logits, batch)
    extra = (
        torch.randn(batch.input_ids.shape, generator=torch.Generator().manual_seed(seed))
        * batch.response_mask
    )
    both = batch.replace(ref_logprobs=batch.ref_logprobs + extra)
    moved = loss(Outputs(logprobs=out.logprobs + extra, ref_policy_kl=out.ref_policy_kl), both)
    if getattr(loss, "reference", "frozen") == "frozen":
        torch.testing.assert_close(moved, loss(out, batch), atol=1e-11, rtol=1e-11)
    else:
        assert torch.equal(loss(out, both), loss(out, batch))


@quick
@given(seed=st.integers(0, 99), wrong=st.floats(0, 1))
def test_flipped_label_equals_complementary_smoothing(seed, wrong):
    c, r = torch.randn(2, 5, generator=torch.Generator().manual_seed(seed))
    ours, theirs = pair_loss(c, r, "sigmoid", 0.1, wrong), pair_loss(r, c, "sigmoid", 0.1, 1 - wrong)
    torch.testing.assert_close(ours, theirs, atol=1e-14, rtol=1e-12)


@quick
@given(n=st.integers(2, 5), seed=st.integers(0, 99), shift=st.floats(-50, 50))
def test_ranking_depends_on_reward_differences_only(n, seed, shift):
    """Any shift of the signals; twice the gaps at half the scores."""
    score, signal = torch.randn(2, n, generator=torch.Generator().manual_seed(seed))
    signal = signal.sort(descending=True).values
    want = ranking_stage_losses(score, signal)
    torch.testing.assert_close(ranking_stage_losses(score, signal + shift), want, atol=1e-11, rtol=1e-11)
    torch.testing.assert_close(ranking_stage_losses(score / 2, signal * 2), want, atol=1e-12, rtol=1e-12)


@quick
@given(seed=st.integers(0, 99), n=st.integers(2, 3), num=st.integers(1, 3))
def test_groups_have_equal_weight_at_any_length(seed, n, num):
    batch, _ = drawn(Dpo(), [g for g in range(num) for _ in range(n)], seed)
    torch.testing.assert_close(group_weight(batch), torch.full((n * num,), 1 / num), atol=1e-15, rtol=0)


@pytest.mark.parametrize("loss", [*PAIRS, PreferenceRanking()], ids=repr)
@pytest.mark.parametrize(
    "signal",
    [[0.3, 0.3], [0.1 + 0.2, 0.3], [math.nan, 0.4], [math.nan, math.nan]],
    ids=["alike", "alike but for rounding", "one unscored", "unscored"],
)
def test_groups_without_a_pair_have_no_gradient(loss, signal):
    batch, logits = drawn(loss, [0, 0, 1, 1], 0, whole=True)
    x = batch.rewards.clone()
    x[2:, 0] = torch.tensor(signal)
    batch, out = batch.replace(rewards=x), outputs(logits, batch)
    (slope,) = torch.autograd.grad(loss(out, batch), logits)
    assert slope[2:].abs().max() < 1e-15
    assert (slope[:2] != 0).any()
    seen = loss.group_metrics(out, batch)
    if "pairs/missing" in seen:
        assert seen["pairs/missing"].tolist() == [0.0, 1.0]
        assert len(seen["pairs/accuracy"]) == 1
