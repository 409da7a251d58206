"""Responses drawn by rank: the odds, the draws, and rows that cannot rank."""

import math

import pytest
import torch

from paretune.core.errors import WiringError
from paretune.credit.selection import ResampleByRank, rank_probabilities, response_probabilities
from toy import advance, graded

NAN = math.nan
FIVE = [5.0, 4.0, 3.0, 2.0, 1.0]


@pytest.mark.parametrize(
    ("odds", "want", "mean", "effective"),
    [
        ("best_of_n", [1, 0, 0, 0, 0], 5.0, 1.0),
        ("best_random", [0.5, 0.125, 0.125, 0.125, 0.125], 3.75, 3.2),
        ("four_to_one", [0.5, 0.125, 0.125, 0.125, 0.125], 3.75, 3.2),
        ("best_worst", [0.5, 0, 0, 0, 0.5], 3.0, 2.0),
    ],
)
def test_probabilities_of_five_ranks_match_manual_values(odds, want, mean, effective):
    got = rank_probabilities(odds, 5)
    assert got == pytest.approx(want)
    assert sum(h * r for h, r in zip(got, FIVE, strict=True)) == pytest.approx(mean)
    assert 1 / sum(h * h for h in got) == pytest.approx(effective)


@pytest.mark.parametrize("odds", ["best_of_n", "best_random", "four_to_one", "best_worst"])
@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_rank_probabilities_sum_to_one(odds, n):
    got = rank_probabilities(odds, n)
    assert len(got) == n
    assert sum(got) == pytest.approx(1)
    assert got[0] == max(got)


@pytest.mark.parametrize(
    ("power", "want"),
    [
        (2.0, [0.266667, 0.066667, 0, 0.066667, 0.6]),
        (1.0, [0.285714, 0.142857, 0, 0.142857, 0.428571]),
    ],
)
def test_power_probabilities_match_manual_values(power, want):
    signal = torch.tensor([[2.0], [1.0], [0.0], [-1.0], [-3.0]])
    got = response_probabilities(signal, torch.zeros(5, dtype=torch.long), "power", power)
    assert got.tolist() == pytest.approx(want, abs=1e-6)
    assert response_probabilities(signal * 0, torch.zeros(5, dtype=torch.long), "power").tolist() == [0.2] * 5


def test_ranks_are_per_prompt_and_skip_unscored_responses():
    signal = torch.tensor([[1.0], [NAN], [9.0], [3.0], [NAN], [2.0], [8.0]])
    group = torch.tensor([4, 4, 1, 4, 2, 4, 1])
    got = response_probabilities(signal, group, "best_worst")
    assert got.tolist() == [0.5, 0, 0.5, 0.5, 0, 0, 0.5]


def test_sampled_frequencies_match_probabilities():
    batch = graded([3.0, 5.0, 1.0, 4.0, 2.0])
    out, _ = advance(ResampleByRank("best_worst", num_samples=100_000), batch)
    counts = out.scores[:, 0].long().bincount(minlength=6)
    assert counts[[2, 3, 4]].tolist() == [0, 0, 0]
    assert counts[1] / 1e5 == pytest.approx(0.5, abs=0.005)
    assert counts[5] / 1e5 == pytest.approx(0.5, abs=0.005)


def test_each_prompt_keeps_num_samples_chosen_by_the_generator():
    batch = graded([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, NAN], group=[0, 1, 0, 1, 0, 1, 2])
    part = ResampleByRank("best_random", num_samples=2)
    one, seen = advance(part, batch, seed=3)
    assert one.group.tolist() == [0, 0, 1, 1]
    again, _ = advance(part, batch, seed=3)
    assert torch.equal(one.scores, again.scores)
    assert seen["responses/resampled"] == len(set(one.scores[:, 0].tolist())) / 7
    others = {tuple(advance(part, batch, seed=s)[0].scores[:, 0].tolist()) for s in range(20)}
    assert len(others) > 5


def test_unscored_batch_is_kept():
    batch = graded([NAN, NAN])
    out, seen = advance(ResampleByRank(), batch)
    assert out is batch
    assert seen == {}


def test_invalid_settings_and_wiring_raise():
    with pytest.raises(WiringError, match="must be at least 1"):
        ResampleByRank(num_samples=0)
    with pytest.raises(WiringError, match="needs one reward per response and got 2 objectives"):
        advance(ResampleByRank(), graded([[1.0, 2.0]]))
