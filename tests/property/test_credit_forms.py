"""What every baseline must satisfy, form by form, whatever the scores, groups and lengths are."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from paretune.algorithms.grpo import gdpo_credit
from paretune.credit.aggregation import WeightedSum
from paretune.credit.base import chain
from paretune.credit.normalization import (
    BatchNormalize,
    BroadcastToTokens,
    GroupNormalize,
    LeaveOneOut,
    Whiten,
)
from paretune.credit.returns import ReturnToGo
from paretune.credit.shaping import TerminalReward
from toy import advance, graded

# The run-time type checks draw random items of sequences, also while a batch is being made up.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

W = {"k0": 0.5, "k1": 0.5}
SUM = WeightedSum(W)
EXACT = {"eps": 0.0}
FORMS = {
    "sample": chain(SUM, GroupNormalize(**EXACT), BroadcastToTokens()),
    "population": chain(SUM, GroupNormalize(std_estimator="population", **EXACT), BroadcastToTokens()),
    "batch std": chain(SUM, GroupNormalize("batch", **EXACT), BroadcastToTokens()),
    "mean only": chain(SUM, GroupNormalize("none"), BroadcastToTokens()),
    "leave one out": chain(SUM, LeaveOneOut(), BroadcastToTokens()),
    "siblings": chain(SUM, LeaveOneOut("group"), BroadcastToTokens()),
    "apart": chain(GroupNormalize(**EXACT), SUM, BroadcastToTokens()),
    "apart, one scale": chain(
        GroupNormalize(**EXACT), SUM, GroupNormalize("none"), BatchNormalize(), BroadcastToTokens()
    ),
    "batch": chain(SUM, BatchNormalize("subtract", **EXACT), BroadcastToTokens()),
    "tokens": chain(SUM, GroupNormalize("none"), BroadcastToTokens(), Whiten(eps=0.0)),
    "returns": chain(SUM, TerminalReward(), ReturnToGo(), Whiten(eps=0.0)),
    "gdpo": gdpo_credit(W, "scale_only"),
    "gdpo trl": gdpo_credit(W, "trl"),
    "gdpo nvlabs": gdpo_credit(W, "nvlabs"),
    "gdpo verl": gdpo_credit(W, "verl"),
    "gdpo nemo": gdpo_credit(W, "nemo"),
}
WHOLE_BATCH = {"batch std", "apart, one scale", "batch", "tokens", "returns"} | {
    f for f in FORMS if "gdpo" in f
}
"""What happens in one group changes something in the others."""
NO_GROUPS = {"batch", "returns"}
"""Prompts are not compared apart."""
SCALED = set(FORMS) - {"mean only", "leave one out", "siblings", "gdpo nemo"}
"""The scale of the scores is divided out."""
CENTRED = {
    "sample",
    "population",
    "batch std",
    "mean only",
    "leave one out",
    "apart",
    "apart, one scale",
    "gdpo",
}
SHIFTED = {"gdpo trl", "gdpo nvlabs", "gdpo verl", "gdpo nemo", "tokens"} | NO_GROUPS
"""A prompt without information may be pushed by the others, by rounding or on purpose."""
APART = {f for f in FORMS if "gdpo" in f and "nemo" not in f} | {"apart", "apart, one scale"}

quick = settings(max_examples=12, deadline=None, derandomize=True)
grid = st.integers(-20, 20).map(lambda i: i / 8)
every = pytest.mark.parametrize("form", list(FORMS))


def of(forms):
    return pytest.mark.parametrize("form", [f for f in FORMS if f in forms])


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@st.composite
def batches(draw, unscored=False, least=2):
    sizes = draw(st.lists(st.integers(least, 5), min_size=1, max_size=4))
    group = [g for g, size in enumerate(sizes) for _ in range(size)]
    score = st.one_of(grid, st.just(math.nan)) if unscored else grid
    rows = [[draw(score), draw(score)] for _ in group]
    return graded(rows, group=group, lengths=[draw(st.integers(1, 4)) for _ in group])


def advantages(form, batch):
    return advance(FORMS[form], batch)[0].advantages[..., 0]


def per_row(form, batch):
    return advantages(form, batch)[:, 1]


def moved(batch, signal):
    return batch.replace(rewards=signal, scores=signal)


def assume_no_cancelling(form, batch):
    """Exclude batches whose objectives cancel: the batch step scales up the remainder that eps leaves."""
    if "gdpo" in form or form == "apart, one scale":
        normalized = GroupNormalize(**EXACT).apply(batch)
        total = advance(SUM, normalized)[0].rewards
        assume(float(total.std()) > 0.1 or not normalized.rewards.any())


def near(x, want, tol=1e-6):
    torch.testing.assert_close(x, want, atol=tol, rtol=tol)


@every
@quick
@given(data=st.data())
def test_row_order_does_not_matter(form, data):
    batch = data.draw(batches(unscored=form != "gdpo verl"))
    order = torch.tensor(data.draw(st.permutations(range(len(batch)))))
    near(per_row(form, batch.select(order)), per_row(form, batch)[order])


@of(set(FORMS) - NO_GROUPS - {"batch std"})  # its spread is also that between prompts
@quick
@given(batch=batches(), shift=st.integers(-3, 3))
def test_constant_shift_of_a_group_changes_nothing(form, batch, shift):
    other = moved(batch, batch.rewards + shift * (batch.group == 0)[:, None])
    # eps in the forms of the libraries: what is flat but for rounding is noise over eps.
    near(per_row(form, other), per_row(form, batch), 1e-5)


@every
@quick
@given(batch=batches(), scale=st.sampled_from([0.25, 2.0, 8.0]))
def test_scale_is_divided_out_or_kept(form, batch, scale):
    factor = 1.0 if form in SCALED else scale
    got, want = per_row(form, moved(batch, batch.rewards * scale)), factor * per_row(form, batch)
    if form == "siblings":  # divided only where the others differ
        near(got.sign(), want.sign())
    elif form in SCALED or form in {"mean only", "leave one out"}:
        assume_no_cancelling(form, batch)
        near(got, want, 1e-2 if "gdpo" in form else 1e-6)


@of(CENTRED)
@quick
@given(batch=batches(unscored=True))
def test_advantages_of_a_group_sum_to_zero(form, batch):
    if form == "apart":
        batch = batch.select((~batch.rewards.isnan().any(-1)).nonzero().squeeze(-1))
    sums = torch.zeros(4).index_add_(0, batch.group, per_row(form, batch))
    near(sums, torch.zeros(4), 1e-9)


@every
@quick
@given(batch=batches(), value=st.floats(-100, 100, width=32))
def test_zero_variance_group_gets_zero_and_no_nan(form, batch, value):
    flat = torch.where((batch.group == 0)[:, None], value, batch.rewards)
    out = per_row(form, moved(batch, flat))
    assert out.isfinite().all()
    if form not in SHIFTED:
        assert (out[batch.group == 0] == 0).all()
    everything = per_row(form, moved(batch, torch.full_like(batch.rewards, value)))
    assert (everything == 0).all()


@every
@quick
@given(batch=batches(unscored=True, least=1))
def test_only_response_tokens_of_scored_rows_have_advantages(form, batch):
    out = advantages(form, batch)
    assert out.isfinite().all()
    assert (out[~batch.response_mask] == 0).all()
    unscored = batch.rewards.isnan().all(-1)
    if form != "gdpo nvlabs":  # there a missing score is a score of 0
        assert (out[unscored] == 0).all()


@of(set(FORMS) - WHOLE_BATCH)
@quick
@given(batch=batches(), value=grid)
def test_groups_are_independent(form, batch, value):
    other = batch.rewards.clone()
    other[0] = value
    same = batch.group != 0
    assert torch.equal(per_row(form, moved(batch, other))[same], per_row(form, batch)[same])


@of({"batch std", "gdpo", "apart, one scale"})
@quick
@given(batch=batches(), value=grid)
def test_only_the_common_scale_depends_on_other_groups(form, batch, value):
    other = batch.rewards.clone()
    other[0] = value
    same = batch.group != 0
    before, after = per_row(form, batch)[same], per_row(form, moved(batch, other))[same]
    near(after * before.norm(), before * after.norm(), 1e-6)


@of(APART)
@quick
@given(batch=batches(), scale=st.sampled_from([0.5, 4.0]), shift=st.integers(-3, 3))
def test_units_of_an_objective_do_not_matter(form, batch, scale, shift):
    other = batch.rewards * torch.tensor([scale, 1.0]) + torch.tensor([float(shift), 0.0])
    assume_no_cancelling(form, batch)
    near(per_row(form, moved(batch, other)), per_row(form, batch), 1e-2 if "gdpo" in form else 1e-6)


@every
@quick
@given(batch=batches())
def test_gathering_rows_from_workers_does_not_matter(form, batch):
    """Groups gathered from four workers, one row after the other, and numbered otherwise."""
    order = torch.cat([torch.arange(len(batch))[r::4] for r in range(4)])
    gathered = batch.select(order)
    gathered = gathered.replace(group=100 - 7 * gathered.group)
    near(per_row(form, gathered), per_row(form, batch)[order])


@every
@quick
@given(batch=batches(unscored=True, least=1))
def test_steps_do_not_change_fields_that_they_do_not_write(form, batch):
    scores, tokens = batch.scores.clone(), batch.input_ids.clone()
    out, _ = advance(FORMS[form], batch)
    assert torch.equal(batch.rewards.nan_to_num(9), scores.nan_to_num(9))
    assert torch.equal(out.scores.nan_to_num(9), scores.nan_to_num(9))
    assert torch.equal(out.input_ids, tokens)
    assert torch.equal(out.response_mask, batch.response_mask)
