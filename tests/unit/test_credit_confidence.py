"""Rewards adjusted by stated confidence: worked numbers, missing ones, and what is remembered."""

import math

import pytest
import torch

from paretune.core.errors import WiringError
from paretune.credit.aggregation import WeightedSum
from paretune.credit.base import chain
from paretune.credit.shaping import ConfidenceCalibratedReward, confidence_adjustment
from paretune.training.checkpoint import deserialize_tree, serialize_tree
from toy import advance, graded

NAN = math.nan


def batch_of(rewards, confidence):
    batch = graded([[c] for c in confidence], objectives=("confidence",))
    return batch.replace(rewards=torch.tensor(rewards)[:, None])


def adjusted(rewards, confidence, **more):
    out, seen = advance(ConfidenceCalibratedReward(**more), batch_of(rewards, confidence))
    return out.rewards[:, 0].tolist(), seen["state/reward_level"]


@pytest.mark.parametrize(
    ("form", "w", "above", "below"), [("difference", 2.0, 2.8, -0.44), ("threshold", 0.5, 2.4, 0.16)]
)
def test_adjustment_of_one_response_matches_manual_values(form, w, above, below):
    """Above the level 1 by 1, below it by 0.8, sure at 0.9."""
    reward = torch.tensor([2.0, 0.2])
    got = reward + confidence_adjustment(reward, torch.tensor([0.9, 0.9]), torch.tensor(1.0), w, form)
    assert got.tolist() == pytest.approx([above, below])


@pytest.mark.parametrize(
    ("form", "w", "want"), [("difference", 2.0, [3.56, -1.84, 0.5]), ("threshold", 0.5, [2.4, -1.2, 0.5])]
)
def test_mean_is_updated_before_the_adjustment(form, w, want):
    got, level = adjusted(
        [2.0, -1.0, 0.5], [0.9, 0.9, NAN], adjustment_type=form, confidence_coef=w, initial_baseline=0.0
    )
    assert level == pytest.approx(0.05)
    assert got == pytest.approx(want)


def test_mean_decays_by_ema_decay():
    part = ConfidenceCalibratedReward(initial_baseline=0.0)
    state, levels = part.init_state(), []
    for mean in (1.0, 0.5):
        _, state, _ = part.apply_stateful(batch_of([mean, mean], [0.5, 0.5]), state, torch.Generator())
        levels.append(float(state))
    assert levels == pytest.approx([0.1, 0.14])


def test_baseline_starts_at_first_batch_mean_by_default():
    assert adjusted([2.0, 4.0], [0.5, 0.5])[1] == 3.0
    assert adjusted([2.0, 4.0], [0.5, 0.5], initial_baseline=0.0)[1] == pytest.approx(0.3)


def test_missing_confidence_handling():
    rewards, said = [2.0, -1.0], [NAN, NAN]
    assert adjusted(rewards, said, initial_baseline=0.0)[0] == rewards
    worst, level = adjusted(rewards, said, initial_baseline=0.0, missing_confidence="worst")
    assert worst == pytest.approx([r - abs(r - level) for r in rewards])
    sure = [adjusted(rewards, [c, c], initial_baseline=0.0)[0] for c in (0.0, 1.0)]
    assert worst == pytest.approx([min(each) for each in zip(*sure, strict=True)])
    assert all(math.isnan(x) for x in adjusted(rewards, said, missing_confidence="unscored")[0])


def test_unscored_reward_stays_nan_and_out_of_the_mean():
    got, level = adjusted([NAN, 1.0, 3.0], [0.9, 0.5, 0.5])
    assert math.isnan(got[0])
    assert level == 2.0
    got, level = adjusted([NAN, NAN], [0.9, 0.5])
    assert math.isnan(got[0])
    assert math.isnan(level)


def test_spread_of_one_reward_changes_nothing():
    part = ConfidenceCalibratedReward(adjustment_type="spread")
    out, state, _ = part.apply_stateful(batch_of([3.0], [1.0]), part.init_state(), torch.Generator())
    assert out.rewards.tolist() == [[3.0]]
    out, state, _ = part.apply_stateful(batch_of([3.0, -3.0], [1.0, 1.0]), state, torch.Generator())
    assert float(state) == pytest.approx(math.sqrt(18))
    assert out.rewards.isfinite().all()


def test_rewards_are_clipped_first():
    assert adjusted([-50.0, 30.0], [0.5, 0.5])[0] == [-10.0, 10.0]


def test_neutral_settings_equal_the_aggregator():
    batch = graded([[1.0, 2.0, 0.9], [0.0, 3.0, 0.1]], objectives=("helpful", "safe", "confidence"))
    total = WeightedSum({"helpful": 1.0, "safe": 0.5})
    plain, _ = advance(total, batch)
    whole, _ = advance(chain(total, ConfidenceCalibratedReward()), batch)
    assert whole.rewards.shape == (2, 1)
    assert not torch.equal(whole.rewards, plain.rewards)
    nothing, _ = advance(chain(total, ConfidenceCalibratedReward(confidence_coef=0.0)), batch)
    assert torch.equal(nothing.rewards, plain.rewards)
    unsaid = batch.replace(scores=torch.cat([batch.scores[:, :2], torch.full((2, 1), NAN)], 1))
    unsaid = unsaid.replace(rewards=unsaid.scores)
    same, _ = advance(chain(total, ConfidenceCalibratedReward()), unsaid)
    assert torch.equal(same.rewards, plain.rewards)


def test_mean_survives_a_checkpoint():
    part = ConfidenceCalibratedReward()
    for state in (part.init_state(), torch.tensor(0.1, dtype=torch.float64)):
        back = deserialize_tree(*serialize_tree(state), part.init_state())
        assert torch.equal(back.nan_to_num(7.0), state.nan_to_num(7.0))
        assert back.dtype == torch.float64


def test_invalid_settings_and_wiring_raise():
    with pytest.raises(WiringError, match=r'"confidence" as confidence and got a score outside \[0, 1\]'):
        adjusted([1.0], [9.0])
    with pytest.raises(WiringError, match="needs one reward per response and got 2 objectives"):
        advance(ConfidenceCalibratedReward(), graded([[1.0, 0.5]], objectives=("a", "confidence")))
    with pytest.raises(WiringError, match='no objective "sure"'):
        advance(ConfidenceCalibratedReward("sure"), batch_of([1.0], [0.5]))
    for wrong in ({"ema_decay": 1.0}, {"confidence_coef": -1.0}, {"reward_clip": 0.0}):
        with pytest.raises(WiringError):
            ConfidenceCalibratedReward(**wrong)
