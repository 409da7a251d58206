"""What every group advantage must satisfy, whatever the scores, groups and lengths are."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.core.batch import Outputs
from paretune.credit.aggregation import WeightedSum
from paretune.credit.base import chain
from paretune.credit.normalization import BroadcastToTokens, GroupNormalize
from paretune.loss.policy import ClippedSurrogate
from paretune.rl.algorithm_spec import LossAggregation
from toy import advance, graded

# The run-time type checks draw random items of sequences, also while a batch is being made up.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

W = {"k0": 0.5, "k1": 0.5}
grid = st.integers(-20, 20).map(lambda i: i / 8)
quick = settings(max_examples=40, deadline=None, derandomize=True)


def credit(divide, eps=0.0):
    return chain(WeightedSum(W), GroupNormalize(divide, eps=eps), BroadcastToTokens())


def advantages(batch, divide="group"):
    return advance(credit(divide), batch)[0].advantages[..., 0]


def per_row(batch, divide="group"):
    return advantages(batch, divide)[:, 1]


@st.composite
def batches(draw, unscored=False):
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    group = [g for g, size in enumerate(sizes) for _ in range(size)]
    score = st.one_of(grid, st.just(math.nan)) if unscored else grid
    rows = [[draw(score), draw(score)] for _ in group]
    return graded(rows, group=group, lengths=[draw(st.integers(1, 4)) for _ in group])


def near(x, want, tol=1e-5):
    torch.testing.assert_close(x, want, atol=tol, rtol=tol)


both = pytest.mark.parametrize("divide", ["group", "none"])


@both
@quick
@given(data=st.data())
def test_row_order_does_not_matter(divide, data):
    batch = data.draw(batches(unscored=True))
    order = torch.tensor(data.draw(st.permutations(range(len(batch)))))
    torch.testing.assert_close(
        per_row(batch.select(order), divide), per_row(batch, divide)[order], atol=1e-5, rtol=1e-5
    )


@both
@quick
@given(batch=batches(), shift=st.integers(-3, 3))
def test_constant_shift_of_a_group_changes_nothing(divide, batch, shift):
    moved = batch.rewards + shift * (batch.group == 0)[:, None]
    torch.testing.assert_close(
        per_row(batch.replace(rewards=moved), divide), per_row(batch, divide), atol=1e-4, rtol=1e-4
    )


@quick
@given(batch=batches(), scale=st.sampled_from([0.25, 2.0, 8.0]))
def test_scale_is_divided_out_or_kept(batch, scale):
    scaled = batch.replace(rewards=batch.rewards * scale)
    near(per_row(scaled, "group"), per_row(batch, "group"))
    near(per_row(scaled, "none"), scale * per_row(batch, "none"))


@both
@quick
@given(batch=batches(unscored=True))
def test_advantages_of_a_group_sum_to_zero(divide, batch):
    sums = torch.zeros(4).index_add_(0, batch.group, per_row(batch, divide))
    torch.testing.assert_close(sums, torch.zeros(4), atol=1e-5, rtol=0)


@both
@quick
@given(batch=batches(), value=st.floats(-100, 100, width=32))
def test_zero_variance_group_gets_exactly_zero_and_no_nan(divide, batch, value):
    flat = torch.where((batch.group == 0)[:, None], value, batch.rewards)
    out = per_row(batch.replace(rewards=flat), divide)
    assert (out[batch.group == 0] == 0).all()
    assert out.isfinite().all()


@both
@quick
@given(batch=batches(unscored=True))
def test_only_response_tokens_have_advantages(divide, batch):
    assert (advantages(batch, divide)[~batch.response_mask] == 0).all()


@both
@quick
@given(batch=batches(), value=grid)
def test_groups_are_independent(divide, batch, value):
    other = batch.rewards.clone()
    other[0] = value
    same = batch.group != 0
    changed = per_row(batch.replace(rewards=other), divide)
    assert torch.equal(changed[same], per_row(batch, divide)[same])


@quick
@given(
    batch=batches(unscored=True),
    by=st.sampled_from(["token_mean", "seq_mean_token_mean", "seq_mean_token_sum_norm"]),
    data=st.data(),
)
def test_losses_of_micro_batches_add_up(batch, by, data):
    ready, _ = advance(credit("group"), batch)
    ready = ready.replace(
        loss_weights=LossAggregation(by, 8)(batch.response_mask),
        old_logprobs=torch.zeros(batch.input_ids.shape),
    )
    logp = (
        torch.sin(torch.arange(batch.input_ids.numel()).float()).reshape(batch.input_ids.shape)
        * batch.response_mask
    )
    cut = data.draw(st.integers(0, len(batch)))
    halves = [torch.arange(cut), torch.arange(cut, len(batch))]
    whole = ClippedSurrogate()(Outputs(logprobs=logp), ready)
    parts = sum(ClippedSurrogate()(Outputs(logprobs=logp[rows]), ready.select(rows)) for rows in halves)
    near(parts, whole, 1e-6)


@both
@quick
@given(batch=batches(unscored=True), parts=st.sampled_from([2, 3, 4]))
def test_parts_with_whole_groups_get_the_advantages_of_the_batch(divide, batch, parts):
    """As on several ranks: each holds whole groups. Statistics of a whole batch have no such part."""
    want = advantages(batch, divide)
    for part in range(parts):
        rows = (batch.group % parts == part).nonzero().squeeze(-1)
        if len(rows):
            assert torch.equal(advantages(batch.select(rows), divide), want[rows])


@quick
@given(batch=batches(), low=st.sampled_from([0.1, 0.5, 1.0]))
def test_clip_range_has_no_effect_at_ratio_one(batch, low):
    ready, _ = advance(credit("group"), batch)
    ready = ready.replace(
        loss_weights=LossAggregation("seq_mean_token_mean")(batch.response_mask),
        old_logprobs=torch.zeros(batch.input_ids.shape),
    )
    logp = torch.zeros(batch.input_ids.shape, requires_grad=True)
    losses = [ClippedSurrogate(low, high)(Outputs(logprobs=logp), ready) for high in (low, 0.2)]
    slopes = [torch.autograd.grad(loss, logp)[0] for loss in losses]
    assert torch.equal(*slopes)
