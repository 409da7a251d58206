"""Reliability of a reward on filtered responses: numbers by hand and error messages."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paretune.core.errors import ConfigError, WiringError
from paretune.evaluate.reward_filtering import compare_reward_filters, r_squared, reward_r2_by_filter
from paretune.report.tables import reward_filtering_table

NAN = math.nan


def save_evaluation(folder, n, judge):
    """Write the evaluation of a run with three prompts, whose reward is the sample index."""
    reward = [float(i) for _ in range(3) for i in range(n)]
    rows = {"sample_index": [i for _ in range(3) for i in range(n)], "before/quality": judge(reward)}
    (folder / "eval" / "final").mkdir(parents=True)
    table = pa.table({**rows, "reward/before/quality": reward})
    pq.write_table(table, folder / "eval" / "final" / "generations.parquet")
    return folder


def test_filters_of_a_run_are_compared(tmp_path):
    results = compare_reward_filters(
        save_evaluation(tmp_path, 5, lambda reward: [2 * x + 1 for x in reward]), "before"
    )
    assert results["quality"]["all"] == pytest.approx(1.0)
    assert "quality" in reward_filtering_table(results)
    assert reward_filtering_table(results).splitlines()[0].split()[-1] == "filter"


@pytest.mark.parametrize(
    ("n", "judge", "message"),
    [
        (2, lambda reward: [2 * x for x in reward], "evaluate.num_generations: 2 responses per prompt"),
        (5, list, "no judge besides the training reward itself"),
        (0, list, "no complete evaluation"),
    ],
)
def test_run_without_the_needed_scores_is_rejected(tmp_path, n, judge, message):
    folder = save_evaluation(tmp_path, n, judge) if n else tmp_path
    with pytest.raises(ConfigError, match=message):
        compare_reward_filters(folder, "before")


def test_evaluation_of_another_version_is_rejected(tmp_path):
    folder = save_evaluation(tmp_path, 5, list)
    file = folder / "eval" / "final" / "generations.parquet"
    table = pq.read_table(file)
    pq.write_table(table.rename_columns(["sample", *table.column_names[1:]]), file)
    with pytest.raises(ConfigError, match=r"generations\.parquet: written by another version"):
        compare_reward_filters(folder, "before")


def test_r_squared_by_hand():
    reward, truth = [-2, -1, 0, 1, 2], [0.1, 0.2, 0.7, 0.5, 0.9]
    assert r_squared(reward, truth) == pytest.approx(0.8058036)
    assert r_squared([-2, -1, 1, 2], [0.1, 0.2, 0.5, 0.9]) == pytest.approx(0.9316129)
    assert math.isnan(r_squared([-2, 2], [0.1, 0.9]))
    assert math.isnan(r_squared([1, 1, 1], [0, 1, 2]))
    assert math.isnan(r_squared([], []))


def noisy(seed=0, prompts=400):
    """A reward that is reliable at the extremes and random in between."""
    rng = np.random.default_rng(seed)
    reward = rng.normal(size=(prompts, 5))
    unreliable = np.abs(reward) < 1
    return reward, np.where(unreliable, rng.normal(size=reward.shape), np.sign(reward))


def test_filter_of_the_reliable_range_comes_first():
    reward, truth = noisy()
    truth = np.where(np.abs(reward) < 1.0, 2 * np.sin(9 * reward), reward)
    results = reward_r2_by_filter(reward, truth)
    assert next(iter(results)) == "best_worst"
    assert set(results) == {"all", "best_of_n", "best_random", "best_worst"}
    assert list(results.values()) == sorted(results.values(), reverse=True)


def test_perfect_reward_has_r2_one_under_every_filter():
    reward, _ = noisy()
    assert all(value == pytest.approx(1) for value in reward_r2_by_filter(reward, 2 * reward + 1).values())


def test_unknown_scores_are_ignored():
    reward, truth = noisy()
    more = np.full((3, 5), NAN)
    assert reward_r2_by_filter(np.vstack([reward, more]), np.vstack([truth, more])) == reward_r2_by_filter(
        reward, truth
    )
    assert all(math.isnan(v) for v in reward_r2_by_filter(more, more).values())


def test_too_few_groups_and_wrong_shapes_are_rejected():
    with pytest.raises(WiringError, match="num_groups is 2"):
        reward_r2_by_filter([[1.0, 2.0]], [[1.0, 2.0]], num_groups=2)
    with pytest.raises(WiringError, match=r"both must be \[P, n\]"):
        reward_r2_by_filter([1.0, 2.0], [1.0, 2.0])
