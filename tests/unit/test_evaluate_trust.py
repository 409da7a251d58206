"""Whether confidence, rewards and variety can be trusted: worked numbers and edges."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paretune.core.errors import ConfigError, DataError, WiringError
from paretune.evaluate.confidence import calibration_metrics, impute_most_common, to_unit_scale
from paretune.evaluate.reward_filtering import compare_reward_filters, r_squared, reward_r2_by_filter
from paretune.evaluate.text_metrics import mean_pairwise_meteor, meteor
from paretune.report.tables import reward_filtering_table

NAN = math.nan


def judged(folder, n, judge):
    """The evaluation of a run with three prompts, whose reward grows with the number of the sample."""
    reward = [float(i) for _ in range(3) for i in range(n)]
    rows = {"sample": [i for _ in range(3) for i in range(n)], "before/quality": judge(reward)}
    (folder / "eval" / "final").mkdir(parents=True)
    table = pa.table({**rows, "reward/before/quality": reward})
    pq.write_table(table, folder / "eval" / "final" / "generations.parquet")
    return folder


def test_a_run_says_which_responses_its_reward_can_be_trusted_on(tmp_path):
    found = compare_reward_filters(judged(tmp_path, 5, lambda reward: [2 * x + 1 for x in reward]), "before")
    assert found["quality"]["all"] == pytest.approx(1.0)
    assert "quality" in reward_filtering_table(found)
    assert reward_filtering_table(found).splitlines()[0].split()[-1] == "filter"


@pytest.mark.parametrize(
    ("n", "judge", "wrong"),
    [
        (2, lambda reward: [2 * x for x in reward], "evaluate.num_generations: 2 responses to a prompt"),
        (5, list, "no judge but the training reward itself"),
        (0, list, "no complete evaluation lies here"),
    ],
)
def test_a_run_that_cannot_say_so_is_told(tmp_path, n, judge, wrong):
    folder = judged(tmp_path, n, judge) if n else tmp_path
    with pytest.raises(ConfigError, match=wrong):
        compare_reward_filters(folder, "before")


def test_calibration_by_hand():
    found = calibration_metrics([0.9, 0.9, 0.8, 0.6, 0.6], [1, 0, 1, 0, 1])
    assert (found.ece, found.brier, found.auroc) == pytest.approx((0.24, 0.276, 0.5))
    assert found.overconfidence == pytest.approx((0.9 + 0.6) / 5)
    assert (found.num_stated, found.num_unstated) == (5, 0)


def test_who_states_nothing_is_counted_and_who_was_not_judged_is_not():
    found = calibration_metrics([0.9, NAN, 0.8, NAN], [1, 0, NAN, NAN])
    assert (found.num_stated, found.num_unstated) == (1, 1)
    assert found.ece == pytest.approx(0.1)
    assert math.isnan(found.auroc)
    assert all(math.isnan(x) for x in (calibration_metrics([], []).ece, calibration_metrics([], []).brier))


def test_ranking_of_confidence_from_worst_to_best():
    assert calibration_metrics([0.1, 0.2, 0.8], [1, 1, 0]).auroc == 0
    assert calibration_metrics([0.1, 0.2, 0.8], [0, 0, 1]).auroc == 1


def test_confidence_and_judgments_off_their_scale_are_refused():
    with pytest.raises(DataError, match=r"outside \[0, 1\]"):
        calibration_metrics([9.0], [1])
    with pytest.raises(DataError, match="neither 0 nor 1"):
        calibration_metrics([0.9], [0.5])
    with pytest.raises(DataError, match="negative"):
        to_unit_scale([-3.0])


def test_confidence_on_one_scale_and_the_most_common_for_who_is_silent():
    assert to_unit_scale([8.0, 85.0, 150.0, 10.0]).tolist() == [0.8, 0.85, 1.0, 1.0]
    assert impute_most_common([NAN, 0.2, 0.9, 0.2, 0.9]).tolist() == [0.2, 0.2, 0.9, 0.2, 0.9]
    assert impute_most_common([0.9, NAN, 0.2]).tolist() == [0.9, 0.9, 0.2]
    assert impute_most_common([NAN]).tolist() == [0.5]


def test_meteor_by_hand():
    assert meteor("a b c", "a b c") == pytest.approx(0.9814815)
    assert meteor("a b c", "d e f") == 0
    assert meteor("a b c", "x a b c y") == pytest.approx(0.9201389)
    assert meteor("x a b c y", "a b c") == pytest.approx(0.6134259)
    assert meteor("", "a") == meteor("a", "") == 0


def test_similarity_is_the_mean_over_pairs_of_different_responses():
    texts = ["a b c", "x a b c y", "d"]
    assert mean_pairwise_meteor(texts) == pytest.approx((0.9201389 + 0.6134259) / 6)
    assert math.isnan(mean_pairwise_meteor(["a"]))
    assert mean_pairwise_meteor(["yes"] * 5) == 0.5


def test_drawn_pairs_come_from_the_generator_and_never_pair_a_response_with_itself():
    texts = [f"{i}" for i in range(30)]
    draw = lambda seed: mean_pairwise_meteor([*texts, "0"], max_pairs=40, rng=np.random.default_rng(seed))
    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(40)}) > 1
    assert mean_pairwise_meteor(texts, max_pairs=100, rng=np.random.default_rng(0)) == 0
    same = ["a b"] * 20
    assert mean_pairwise_meteor(same, max_pairs=7, rng=np.random.default_rng(0)) == pytest.approx(
        mean_pairwise_meteor(same)
    )
    with pytest.raises(WiringError, match="rng"):
        mean_pairwise_meteor(texts, max_pairs=10)


def test_how_well_reward_predicts_truth_by_hand():
    reward, truth = [-2, -1, 0, 1, 2], [0.1, 0.2, 0.7, 0.5, 0.9]
    assert r_squared(reward, truth) == pytest.approx(0.8058036)
    assert r_squared([-2, -1, 1, 2], [0.1, 0.2, 0.5, 0.9]) == pytest.approx(0.9316129)
    assert math.isnan(r_squared([-2, 2], [0.1, 0.9]))
    assert math.isnan(r_squared([1, 1, 1], [0, 1, 2]))
    assert math.isnan(r_squared([], []))


def noisy(seed=0, prompts=400):
    """A reward that tells the best and the worst for what they are, and muddles what is between."""
    rng = np.random.default_rng(seed)
    reward = rng.normal(size=(prompts, 5))
    muddle = np.abs(reward) < 1
    return reward, np.where(muddle, rng.normal(size=reward.shape), np.sign(reward))


def test_the_filter_that_keeps_what_the_reward_knows_comes_first():
    reward, truth = noisy()
    truth = np.where(np.abs(reward) < 1.0, 2 * np.sin(9 * reward), reward)
    found = reward_r2_by_filter(reward, truth)
    assert next(iter(found)) == "best_worst"
    assert set(found) == {"all", "best_of_n", "best_random", "best_worst"}
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_a_perfect_reward_needs_no_filter():
    reward, _ = noisy()
    assert all(value == pytest.approx(1) for value in reward_r2_by_filter(reward, 2 * reward + 1).values())


def test_what_is_unknown_is_left_out():
    reward, truth = noisy()
    more = np.full((3, 5), NAN)
    assert reward_r2_by_filter(np.vstack([reward, more]), np.vstack([truth, more])) == reward_r2_by_filter(
        reward, truth
    )
    assert all(math.isnan(v) for v in reward_r2_by_filter(more, more).values())


def test_two_points_always_lie_on_a_line():
    with pytest.raises(WiringError, match="num_groups is 2"):
        reward_r2_by_filter([[1.0, 2.0]], [[1.0, 2.0]], num_groups=2)
    with pytest.raises(WiringError, match=r"both must be \[P, n\]"):
        reward_r2_by_filter([1.0, 2.0], [1.0, 2.0])
