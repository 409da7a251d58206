"""Sweeps: weightings, the front with its knee, what a sweep plans, and its results from invented runs."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from moocore import hypervolume

from paretune.benchmark.sweep import describe_sweep, load_sweep
from paretune.benchmark.sweep_design import (
    first_shares,
    grid_sizes,
    next_shares,
    simplex_grid,
    weighting_name,
)
from paretune.benchmark.sweep_fronts import find_knee, front_evidence
from paretune.config import bundled_recipes, load_config
from paretune.core.errors import ConfigError, DataError
from paretune.core.pareto import nondominated
from paretune.run.io import read_json
from support.fake_sweep import OVER, fake_sweep, results_of


@pytest.mark.parametrize(("k", "steps", "size"), [(2, 8, 9), (3, 3, 10), (4, 2, 10), (5, 1, 5)])
def test_grid_is_even_on_the_simplex(k, steps, size):
    grid = simplex_grid(k, steps)
    assert len(grid) == len(set(grid)) == size
    assert grid_sizes(k)[size] == steps
    assert all(math.isclose(sum(shares), 1) for shares in grid)
    assert grid[0] == (1.0, *[0.0] * (k - 1))
    assert grid[-1] == (*[0.0] * (k - 1), 1.0)


def test_a_finer_grid_keeps_the_names_of_a_coarser_one():
    names = [{weighting_name(shares) for shares in simplex_grid(2, steps)} for steps in (2, 4, 8)]
    assert names[0] < names[1] < names[2]
    assert weighting_name((1 / 3, 2 / 3)) == "w333-667"


def test_adaptive_design_parts_the_neighbors_with_the_largest_gap():
    shares = [*first_shares(2), (0.25, 0.75)]
    outcomes = np.array([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.2, 0.9]])  # 0.5 and 0.25 are farthest
    assert next_shares(shares, outcomes) == (0.375, 0.625)
    outcomes[1] = (-5.0, 1.0)
    assert next_shares(shares, outcomes) == (0.125, 0.875)


def test_adaptive_design_never_proposes_a_weighting_twice():
    shares, lost = list(first_shares(3)), np.array([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [np.nan] * 3])
    for _ in range(12):  # the last one, and every later one, has failed: its outcome is not known
        new = next_shares(shares, lost)
        if new is None:
            break
        assert new not in shares
        assert math.isclose(sum(new), 1)
        shares, lost = [*shares, new], np.vstack([lost, [np.nan] * 3])
    assert new is None


def test_adaptive_design_stops_where_all_outcomes_are_equal_or_all_weightings_near():
    assert next_shares(first_shares(2), np.zeros((3, 2))) is None
    assert next_shares([(0.5, 0.5), (0.51, 0.49)], np.array([[0.0, 1.0], [1.0, 0.0]])) is None


ARC = np.array([[math.cos(a), math.sin(a)] for a in np.linspace(0, math.pi / 2, 5)])


@pytest.mark.parametrize("scale", [(1, 1), (10, 1), (0.01, 300)])
def test_knee_is_farthest_from_the_line_between_the_ends_in_any_units(scale):
    knee = find_knee(ARC * scale, np.ones(5, bool))
    assert knee.index == 2
    assert knee.bulge == pytest.approx(math.sqrt(2) - 1)


@pytest.mark.parametrize(
    "points",
    [
        [[0, 1], [0.5, 0.5], [1, 0]],
        [[0, 1], [0.25, 0.75], [0.3, 0.7], [1, 0]],
        [[0, 1], [0.4, 0.4], [1, 0]],
        [[0, 1], [1, 0]],
        [[1, 1]],
    ],
)
def test_straight_hollow_and_short_fronts_have_no_knee(points):
    assert find_knee(np.array(points, float), np.ones(len(points), bool)) is None


def test_knee_of_three_objectives_leaves_out_dominated_points():
    points = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0.6, 0.6], [0.59, 0.6, 0.6]])
    front = nondominated(points)
    assert front.tolist() == [True] * 4 + [False]
    assert find_knee(points, front).index == 3
    assert find_knee(points, front).bulge == pytest.approx(0.4)


def test_evidence_counts_bootstrap_samples_and_its_volume_is_that_of_moocore():
    rng = np.random.default_rng(0)
    means = np.array([[1.0, 0.2], [0.8, 0.8], [0.2, 1.0], [0.1, 0.7]])
    samples = means + rng.normal(0, 0.05, (400, 4, 2))
    found = front_evidence(means, samples, 0.95)
    assert found.on_front.tolist() == [True, True, True, False]
    assert found.volume == pytest.approx(hypervolume(means, [-1.0, -1.0], maximise=True))
    assert found.volume_low < found.volume < found.volume_high
    by_hand = (samples[:, 1] >= samples[:, 3]).all(1).mean()
    assert found.dominance[1, 3] == pytest.approx(by_hand)
    assert by_hand > 0.85
    assert found.front_probability[3] == pytest.approx(
        1 - ((samples[:, :3] >= samples[:, 3:]).all(2)).any(1).mean()
    )
    assert (np.diag(found.dominance) == 0).all()
    assert found.knee.index == 1
    assert found.knee_probability[1] > 0.95


def test_point_is_the_recipe_with_its_weights_and_nothing_else():
    sweep = load_sweep("demo", over=OVER, points=3)
    assert [dict(w) for w in sweep.benchmark.config.weightings.values()] == [
        {"safety": 2.0, "actionability": 0.0},
        {"safety": 1.0, "actionability": 1.0},
        {"safety": 0.0, "actionability": 2.0},
    ]
    first = sweep.benchmark.run_specs()[0].config.model_dump()
    weights = ["objectives.safety.weight=2", "objectives.actionability.weight=0"]
    alone = load_config(bundled_recipes()["demo"], weights).model_dump()
    for values in (first, alone):
        del values["name"], values["run"]["output_dir"]
    assert first == alone, "the number of steps and the learning rates too"


def test_budget_of_the_recipe_is_kept():
    sweep = load_sweep("demo", ["run.budget={resource: reward_calls, limit: 512}"], over=OVER, points=3)
    assert sweep.benchmark.config.budget.model_dump() == {"resource": "reward_calls", "limit": 512}
    assert sweep.benchmark.run_specs()[0].config.run.budget.limit == 512


@pytest.mark.parametrize(
    ("overrides", "options", "messages"),
    [
        ([], {"over": ["safty", "actionability"]}, ['"safty" is not an objective', 'did you mean "safety"?']),
        ([], {"over": ["safety"]}, ["a sweep needs two objectives, and 1 is given"]),
        ([], {"over": ["safety", "safety"]}, ["names an objective twice"]),
        ([], {"points": 9}, ["4 objectives have no even grid of 9 points; fix: --points 4 or 10"]),
        ([], {"over": OVER, "points": 2, "design": "adaptive"}, ["begins with 3 weightings"]),
        ([], {"over": OVER, "seeds": [1, 1]}, ["--seeds: must be different numbers"]),
        (["run.seed=1"], {"over": OVER, "seeds": [0]}, ["--seeds: run.seed is given too"]),
        (
            ["objectives.safety.by_category={harmful: 3}"],
            {"over": OVER, "points": 3},
            ["safety has a by_category, which a sweep of its weight would not change"],
        ),
        (
            [],
            {"over": OVER, "points": 3, "reuse_from": Path("nowhere")},
            ["nowhere: cannot be reused: it holds no run"],
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_written(overrides, options, messages, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_sweep("demo", overrides, **options)
    for message in messages:
        assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_plan_states_weights_runs_and_budget():
    text = describe_sweep(load_sweep("demo", over=OVER, points=5, design="adaptive", seeds=[0, 1]))
    for line in (
        "  w500-500         safety 1, actionability 1",
        "and 2 more, each where the front has its largest gap",
        "10: 5 weightings x 2 seeds (0, 1)",
        "60 steps per run, 600 in total",
    ):
        assert line in text


def test_steps_are_no_budget_of_several_methods(tmp_path):
    from paretune.benchmark.spec import load_benchmark
    from support.fake_benchmark import FILE, write_benchmark_file

    text = FILE.format(folder=tmp_path / "b").replace("rollout_tokens", "steps")
    with pytest.raises(ConfigError, match="steps is no common budget"):
        load_benchmark(write_benchmark_file(tmp_path, text))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    sweep, shares = fake_sweep(tmp_path_factory.mktemp("sweep") / "swept", points=5)
    return sweep, shares, json.loads(json.dumps(results_of(sweep, shares), default=float))


def test_numbers_and_verdicts_of_a_point_are_those_of_its_run(finished):
    sweep, _, results = finished
    for point in results["points"]:
        folder = sweep.benchmark.output_dir / point["dirs"][0]
        evaluation = read_json(folder / "eval" / "final" / "eval.json")
        for name, score in point["scores"].items():
            entry = evaluation["objectives"][name]
            assert score["mean"] == pytest.approx(entry["after"])
            change = score["change_from_initial"]
            for key in ("verdict", "cautions", "change", "low", "high"):
                assert change[key] == entry[key]
    assert results["budget"]["used"] == {"min": 60, "max": 60}


def test_results_have_front_knee_and_cautions(finished):
    _, _, results = finished
    front = [point["name"] for point in results["points"] if point["on_pareto_front"]]
    assert {"w1000-0", "w0-1000"} <= set(front)
    for point in results["points"]:
        assert point["on_pareto_front"] == (point["dominated_by"] == [])
        assert 0 <= point["front_probability"] <= 1
    assert results["knee"]["point"] in front
    volume = results["hypervolume"]
    assert volume["low"] < volume["value"] < volume["high"]
    assert volume["initial"] == 1.0
    assert volume["value"] > 1
    assert results["caveats"][-1].startswith("5 points on the same prompts")
    assert not any(line.startswith("No tuning") for line in results["caveats"])


def test_front_of_an_objective_where_lower_is_better_is_of_oriented_scores(tmp_path):
    from paretune.core.goals import Goal
    from support.fake_sweep import bulging_means, write_runs

    sweep, shares = fake_sweep(tmp_path / "swept", points=3)
    goals = {"safety": Goal("lower")}
    write_runs(sweep.benchmark, shares, bulging_means, goals=goals)
    points = {point["name"]: point for point in results_of(sweep, shares)["points"]}
    # All weight on safety raises it, which is bad now, and is no better in the other objective.
    assert not points["w1000-0"]["on_pareto_front"]
    assert points["w0-1000"]["on_pareto_front"]
    assert points["w1000-0"]["scores"]["safety"]["change_from_initial"]["verdict"] == "worse"


def test_swept_objective_without_a_judge_is_an_error(tmp_path):
    import pyarrow.parquet as pq

    sweep, shares = fake_sweep(tmp_path / "swept", points=3)
    for run in sweep.benchmark.run_specs():
        file = Path(run.config.run.output_dir) / "eval" / "final" / "generations.parquet"
        table = pq.read_table(file)
        pq.write_table(table.drop_columns(["before/safety", "after/safety"]), file)
    with pytest.raises(DataError, match="safety: no judge scores it"):
        results_of(sweep, shares)
