"""The drawings and samples of a run's report: positions by the goal, no blown-up noise, no untested claim."""

import json
import math
import re

import numpy as np
import pytest

from paretune.core.errors import DataError
from paretune.core.goals import Goal
from paretune.evaluate.paired import ComparisonSpec, compare_objectives
from paretune.report.axes import Axis, percent_ticks
from paretune.report.charts import (
    MAX_POINTS,
    extremes,
    fit_curves,
    line_chart,
    objective_curves,
    running_mean,
)
from paretune.report.cost import cost_phrases, format_duration
from paretune.report.histograms import reliability_plots, score_histograms
from paretune.report.influence import influence_chart
from paretune.report.intervals import interval_figures
from paretune.report.overoptimization import TrainingEvaluations, distance_plots
from paretune.report.responses import Responses
from paretune.report.run_page import write_report
from paretune.report.samples import MAX_OTHERS, displayed_samples, training_samples
from paretune.report.tradeoff import joint_region, pair_plots, parallel_plot
from paretune.report.word_diff import word_differences
from paretune.run.folder import read_json, to_json
from support.fake_run import make_run


def evaluation(lifts, goals=None, prompts=60, scales=None, noise=0.1, seed=0):
    """(content of eval.json, responses) of objectives "a", "b", ... whose raw scores rise by `lifts`."""
    rng, names = np.random.default_rng(seed), tuple("abcdefgh"[: len(lifts)])
    scales = np.array(scales or [1.0] * len(lifts))
    before = rng.normal(0.5, 0.2, (prompts, 1, len(lifts)))
    after = before + np.array(lifts) + rng.normal(0, noise, before.shape)
    before, after = before * scales, after * scales
    spec = ComparisonSpec(
        objectives=names,
        goals={name: Goal.of(goal) for name, goal in (goals or {}).items()},
        judge_names=dict.fromkeys(names, "people"),
        independent=dict.fromkeys(names, True),
        bootstrap_samples=200,
    )
    results = {
        "objectives": compare_objectives(spec, before, after, np.arange(prompts), (before, after)),
        "confidence_level": 0.95,
        "categories": {},
        "refusal_categories": {},
        "kl": {"k3": 4.0},
    }
    columns = {"prompt": [f"prompt {i}" for i in range(prompts)], "category": [""] * prompts}
    for arm, scores in (("before", before), ("after", after)):
        columns[arm] = [f"{arm} {i}" for i in range(prompts)]
        columns[f"{arm}_tokens"] = list(range(prompts))
        columns |= {f"{arm}/{name}": scores[:, 0, k].tolist() for k, name in enumerate(names)}
    return json.loads(to_json(results)), Responses(columns)


@pytest.mark.parametrize(
    ("goal", "lift", "verdict", "right"),
    [
        ("higher", 0.3, "better", True),
        ("higher", -0.3, "worse", False),
        ("lower", 0.3, "worse", False),
        ("lower", -0.3, "better", True),
        (0.9, 0.3, "better", True),
        (0.5, 0.3, "worse", True),
    ],
)
def test_better_is_to_the_right_and_targets_are_marked(goal, lift, verdict, right):
    results, _ = evaluation([lift], {"a": goal})
    (figure,), missing = interval_figures(results["objectives"])
    (row,) = figure.rows
    assert row.verdict == verdict
    assert (row.after_x > row.before_x) is right
    assert (row.target_x is not None) is isinstance(goal, float)
    assert row.low_x < row.after_x < row.high_x
    assert not missing


@pytest.mark.parametrize("lift", [0.0, 0.004, 0.3, -0.3])
def test_the_band_leaves_out_the_line_of_no_change_where_the_interval_does(lift):
    results, _ = evaluation([lift])
    (figure,), _ = interval_figures(results["objectives"])
    (row,) = figure.rows
    covers = results["objectives"]["a"]["low"] <= 0 <= results["objectives"]["a"]["high"]
    assert (row.low_x <= row.before_x <= row.high_x) is covers


def test_a_change_far_below_the_spread_of_the_scores_looks_small():
    results, _ = evaluation([0.002], noise=0.001)
    (figure,), _ = interval_figures(results["objectives"])
    (row,) = figure.rows
    assert results["objectives"]["a"]["verdict"] == "better"
    assert 0 < row.after_x - row.before_x < 0.01 * figure.width


@pytest.mark.parametrize(
    ("scales", "goals", "groups"),
    [((1, 1, 1.2), {}, 1), ((1, 1, 100), {}, 2), ((1, 100, 1), {"c": "lower"}, 3)],
)
def test_rows_share_an_axis_where_that_hides_none(scales, goals, groups):
    results, _ = evaluation([0.1, 0.1, 0.1], goals, scales=scales)
    figures, _ = interval_figures(results["objectives"])
    assert len(figures) == groups
    assert sum(len(figure.rows) for figure in figures) == 3


def test_an_objective_without_scores_is_named_and_not_drawn():
    results, _ = evaluation([0.1, 0.1])
    results["objectives"]["b"] |= dict.fromkeys(("before", "after", "change", "low", "high"))
    results["objectives"]["b"]["oriented"] = dict.fromkeys(("before", "after", "change", "low", "high"))
    figures, missing = interval_figures(results["objectives"])
    assert missing == ["b"]
    assert len(figures) == 1
    assert pair_plots(results, Responses()) == []
    assert parallel_plot(results) is None


def test_axes_are_at_least_as_long_as_asked_and_label_what_they_show():
    axis = Axis.over([0.5, 0.51], 1.0, 0.0, 100.0)
    assert axis.high - axis.low == pytest.approx(1.1)
    assert axis.at(0.505) == 50.0
    assert [label for _, label in Axis(-1.0, 0.0, 0.0, 1.0).ticks(2, -1.0)] == ["1.0", "0.5", "0"]
    assert [label for _, label in percent_ticks(Axis(-0.3, 1.0, 0.0, 1.0))] == ["0 %", "50 %", "100 %"]


def test_the_joint_region_covers_the_true_change():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(300):
        changes = rng.multivariate_normal([0.3, -0.2], [[1.0, 0.6], [0.6, 2.0]], 30)
        root = joint_region(changes, np.arange(30), 0.95)
        covered += np.linalg.norm(np.linalg.solve(root, [0.3, -0.2] - changes.mean(0))) <= 1
    assert 0.92 <= covered / 300 <= 0.98


def test_equal_prompts_count_as_one_in_the_region():
    changes = np.random.default_rng(0).normal(size=(20, 2))
    once, twice = (joint_region(np.repeat(changes, n, 0), np.repeat(np.arange(20), n), 0.95) for n in (1, 2))
    np.testing.assert_allclose(abs(once), abs(twice), rtol=1e-9)
    assert joint_region(changes[:9], np.arange(9), 0.95) is None
    flat = joint_region(np.stack([changes[:, 0]] * 2, 1), np.arange(20), 0.95)
    assert np.isfinite(flat).all()
    assert abs(np.linalg.det(flat)) < 1e-9


@pytest.mark.parametrize("goal", ["higher", "lower", 0.9])
def test_planes_show_better_as_right_and_up_and_label_raw_scores(goal):
    results, responses = evaluation([0.3, -0.3], {"a": goal})
    (plot,) = pair_plots(results, responses)
    oriented = results["objectives"]["a"]["oriented"]
    assert (plot.after[0] > plot.before[0]) == (oriented["change"] > 0)
    assert plot.after[1] > plot.before[1]  # worse is down, where y is larger
    assert plot.region.count("L") == 47
    labels = [float(label.replace("−", "-")) for _, label in plot.x_ticks]
    assert all(label >= 0 for label in labels)
    assert (labels == sorted(labels)) is (goal == "higher")
    assert [cell[-1] for cell in plot.cells[1:]] == ["%"] * 4


def test_few_prompts_give_a_plane_without_a_region():
    results, responses = evaluation([0.3, 0.3], prompts=9)
    (plot,) = pair_plots(results, responses)
    assert plot.region == ""
    (plot,) = pair_plots(results, Responses())
    assert plot.region == ""


def test_six_objectives_are_shown_side_by_side_only():
    results, responses = evaluation([0.1, 0.2, 0.3, -0.1, 0.0, 0.1])
    assert pair_plots(results, responses) == []
    plot = parallel_plot(results)
    assert [name for name, *_ in plot.rows] == list("abcdef")
    (line,) = plot.lines
    changes = [o["oriented"]["change"] / o["std"] for o in results["objectives"].values()]
    assert [float(text.replace("−", "-")) for text in line.changes] == [round(c, 2) for c in changes]


def test_categories_are_oriented_and_none_for_a_target():
    results, _ = evaluation([0.3, 0.3, 0.3], {"a": "lower", "b": 0.5})
    entry = {"objectives": {name: {"change": 0.1} for name in "abc"}}
    results["categories"] = {"x": entry, "y": entry}
    plot = parallel_plot(results)
    assert [line.label for line in plot.lines] == ["all prompts", "x", "y"]
    x = plot.lines[1].changes
    assert (x[0][0], x[1], x[2][0]) == ("−", "–", "0")


@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e12, 1e30])
@pytest.mark.parametrize(("prompts", "noise"), [(1, 0.1), (12, 0.0), (12, 0.1)])
@pytest.mark.parametrize("goal", ["higher", "lower", 0.5])
def test_odd_scores_are_drawn_without_an_error(scale, prompts, noise, goal):
    results, responses = evaluation([0.3, 0.0], {"a": goal}, prompts, (scale, 1.0), noise)
    responses.columns["after/b"][0] = None
    figures, missing = interval_figures(results["objectives"])
    drawn = [figures, pair_plots(results, responses), parallel_plot(results)]
    drawn += [distance_plots(results, TrainingEvaluations(), []), score_histograms(results, responses)]
    assert not re.search(r"\b(nan|inf)\b", repr(drawn))
    assert sum(len(figure.rows) for figure in figures) + len(missing) == 2


def test_ticks_close_together_far_from_zero_are_told_apart():
    for step in (1e-3, 5e-5, 2.5e-9):
        axis = Axis(0.49, 0.49 + 4 * step, 0.0, 100.0)
        labels = [label for _, label in axis.ticks(4)]
        assert len(labels) == len(set(labels)) >= 3


def with_gain(results, fraction, reward, divergence):
    """The evaluation with changes scaled by `fraction`, those of the reward by `reward`."""
    results = json.loads(json.dumps(results)) | {"schema": "paretune/eval/3", "kl": {"k3": divergence}}
    for o in results["objectives"].values():
        for entry, scale in ((o, fraction), (o["reward"], reward)):
            half = 0.05
            change = entry["oriented"]["change"] * scale
            entry["oriented"] |= {"change": change, "low": change - half, "high": change + half}
    return results


def test_a_single_evaluation_claims_no_course():
    results, _ = evaluation([0.3, 0.2])
    plots = distance_plots(results, TrainingEvaluations(), [])
    assert [plot.title for plot in plots] == ["a", "b"]
    for plot in plots:
        assert plot.judge_path == plot.reward_path == ""
        assert plot.turning_x is None
        assert len(plot.judge_marks) == 1
        assert "best at" not in plot.sentence
    assert plots[0].rows[0][:2] == ("final policy", "2.00")
    assert distance_plots(results | {"kl": None}, TrainingEvaluations(), []) == []


@pytest.mark.parametrize(
    ("judge", "reward", "turn"),
    [((0.5, 1.0, 0.4), (0.5, 0.8, 1.0), "step 20"), ((0.2, 0.6, 1.0), (0.5, 0.8, 1.0), ""),
     ((0.5, 1.0, 0.4), (0.5, 0.8, 0.7), ""), ((-0.2, -0.3, -0.4), (0.5, 0.8, 1.0), "initial policy")],
)  # fmt: skip
def test_the_turning_point_is_where_the_judge_falls_while_the_reward_rises(judge, reward, turn):
    final, _ = evaluation([0.3])
    steps = tuple(
        (10 * (i + 1), with_gain(final, *pair, float(i + 1)))
        for i, pair in enumerate(zip(judge, reward, strict=True))
    )
    (plot,) = distance_plots(final, TrainingEvaluations(steps), [])
    assert (plot.turning_x is not None) is bool(turn)
    assert (f"the judge was best at {turn}" in plot.sentence) is bool(turn)
    # The final policy was judged on other prompts: it is no part of the course.
    assert plot.judge_path.count("L") == 3
    assert len(plot.judge_marks) == 4


def test_evaluations_of_steps_and_the_choice_are_read_from_the_run(tmp_path):
    folder = make_run(tmp_path / "r", prompts=30, steps=4)
    final = read_json(folder / "eval" / "final" / "eval.json")
    for step in (2, 10, 4):
        (folder / "eval" / f"step-{step:06d}").mkdir()
        path = folder / "eval" / f"step-{step:06d}" / "eval.json"
        path.write_text(json.dumps(with_gain(final, 0.5, 0.5, 1.0)))
    summary = {"step": 2, "gain": 0.5, "low": 0.4, "high": 0.6, "reward_gain": None, "kl": {"k3": 1.0}}
    choice = {"selected_step": 2, "last_step": 10, "reason": "it is best", "turn": "from step 2 it fell"}
    choice |= {"early_stopping": {"saved_fraction": 0.25}, "evaluations": [summary]}
    (folder / "eval" / "selection.json").write_text(json.dumps(choice))
    training = TrainingEvaluations.read(folder, read_json)
    assert [step for step, _ in training.steps] == [2, 4, 10]
    html = write_report(folder).read_text()
    assert "Over-optimized: from step 2 it fell." in html
    assert "Step 2 of 10 is kept: it is best." in html
    assert "<b>weighted gain of all objectives</b>" in html
    path.write_text(json.dumps(final | {"schema": "paretune/eval/1"}))
    with pytest.raises(DataError, match=r"step-000004.*schema: paretune/eval/1"):
        write_report(folder)


@pytest.mark.parametrize(
    ("first", "second", "removed", "added"),
    [
        ("call the desk now", "call the help desk now", [], ["help"]),
        ("a b c d", "a b x d", ["c"], ["x"]),
        ("one  two\nthree ", "one two\nthree", [], []),
        ("", "", [], []),
        ("a b c", "x y z", [], []),
        ("word " * 600, "word " * 601, [], []),
    ],
)
def test_words_of_one_text_only_are_marked(first, second, removed, added):
    parts = word_differences(first, second)
    assert tuple("".join(text for _, text in side) for side in parts) == (first, second)
    marked = [[text for mark, text in side if mark] for side in parts]
    assert marked == [removed, added]
    assert {mark for mark, _ in parts[0]} <= {"", "del"}
    assert {mark for mark, _ in parts[1]} <= {"", "ins"}


def test_differences_are_elements_around_text(tmp_path):
    html = write_report(make_run(tmp_path / "r", prompts=30, steps=2)).read_text()
    assert re.search(r"<del>[^<]+</del>", html)
    assert re.search(r"<ins>[^<]+</ins>", html)


@pytest.mark.parametrize(("goal", "gains"), [("higher", True), ("lower", False)])
def test_gains_and_losses_of_samples_are_those_of_the_goal(goal, gains):
    results, responses = evaluation([0.3], {"a": goal})
    selection = displayed_samples(responses, results)
    rule = "largest gain in a" if gains else "largest loss in a"
    first = next(s for s in selection.selected if s.selection_rule == rule)
    change = np.array(responses.columns["after/a"]) - np.array(responses.columns["before/a"])
    expected = float(change.max() if gains else -change.max())
    assert float(first.changes) == pytest.approx(expected, rel=1e-4)


def test_the_widest_gap_between_reward_and_judge_is_selected():
    results, responses = evaluation([0.3])
    for arm in ("before", "after"):
        responses.columns[f"reward/{arm}/a"] = list(responses.columns[f"{arm}/a"])
    responses.columns["reward/after/a"][17] += 5.0
    rules = {s.selection_rule: s for s in displayed_samples(responses, results).selected}
    assert rules["reward above judge in a"].title == "prompt 17"


@pytest.mark.parametrize("text", ["<&>" * 1500, "語" * 4000])
def test_the_page_stays_below_five_megabytes(tmp_path, text):
    folder = make_run(
        tmp_path / "r", prompts=300, steps=2, objectives=("a", "b"), text=lambda i: f"{i} {text}"
    )
    html = write_report(folder).read_bytes()
    assert len(html) < 5_000_000
    assert b"are not on this page" in html


def test_samples_beyond_the_cap_are_counted():
    results, responses = evaluation([0.3], prompts=MAX_OTHERS + 50)
    selection = displayed_samples(responses, results)
    assert len(selection.others) == MAX_OTHERS
    assert selection.num_left_out == 50 - len(selection.selected)


def test_samples_of_the_training_are_those_of_steps_at_equal_distances():
    lines = [
        {"step": 5 * i, "samples": [{"prompt": "p", "response": "r" * 3000, "a": 0.5, "b": None}]}
        for i in range(100)
    ]
    steps = training_samples(lines)
    assert [step for step, _ in steps] == [0, 70, 140, 210, 285, 355, 425, 495]
    (sample,) = steps[0][1]
    assert sample.scores == "a 0.50, b –"
    assert sample.response.endswith("… [2000 more characters in rollouts.jsonl]")
    assert [step for step, _ in training_samples(lines[:2])] == [0, 5]
    assert training_samples([]) == []


def test_long_runs_are_thinned_without_losing_peaks():
    points = [(float(step), math.sin(step / 900)) for step in range(50_000)]
    points[31_234] = (31_234.0, 9.0)
    points[7] = (7.0, None)
    short = extremes(points)
    assert len(short) <= MAX_POINTS + 2
    assert (31_234.0, 9.0) in short
    assert [step for step, _ in short] == sorted(step for step, _ in short)
    means = running_mean(points, 4000, MAX_POINTS)
    assert len(means) <= MAX_POINTS
    assert means[-1][1] == pytest.approx(np.mean([value for _, value in points[-4000:]]))
    drawn = line_chart(points)
    assert len(drawn.raw_path) + len(drawn.smoothed_path) < 25_000


def test_curves_do_not_blow_up_noise():
    rng = np.random.default_rng(0)
    lines = [
        {"stage": "align", "step": i, "score/a/mean": 0.7 + 0.001 * rng.random(), "score/a/std": 0.2}
        for i in range(40)
    ]
    chart = objective_curves(lines, ("a",))[0]["charts"][0]["chart"]
    low, high = (float(label) for _, label in (chart.y_ticks[0], chart.y_ticks[-1]))
    assert high - low >= 0.1
    narrow = [(0.0, 2.0), (1.0, 2.001)]
    assert len({label for _, label in line_chart(narrow, min_span=1.0).y_ticks}) > 1


def test_influence_is_drawn_for_all_objectives_at_once():
    lines = [{"step": i, "variance_share/a": 0.25 + i / 100, "variance_share/b": 0.75} for i in range(30)]
    chart = influence_chart(lines, ("a", "b", "c"))
    assert [line.objective for line in chart.lines] == ["a", "b"]
    assert (chart.lines[0].first, chart.lines[1].last) == ("26 %", "75 %")
    assert chart.lines[0].key != chart.lines[1].key
    assert influence_chart(lines, ("a",)) is None


def test_histograms_show_shares_of_both_policies():
    results, responses = evaluation([0.3], prompts=80)
    (histogram,) = score_histograms(results, responses)
    for column in (1, 2):
        assert sum(float(row[column].split()[0]) for row in histogram.rows) == pytest.approx(100, abs=2)
    responses.columns["before/a"] = [float(i % 3) for i in range(80)]
    responses.columns["after/a"] = [2.0] * 79 + [None]
    (histogram,) = score_histograms(results, responses)
    assert [row[0] for row in histogram.rows] == ["0", "1", "2"]
    assert histogram.rows[2][2] == "100.0 %"
    responses.columns["after/a"] = [None] * 80
    assert score_histograms(results, responses) == []


def test_reliability_is_drawn_where_there_are_bins():
    bins = [{"predicted": 0.1 * i, "label": 0.1 * i + 0.05, "count": 40} for i in range(5)]
    heads = {
        "a": {"calibration": {"bins": bins}},
        "b": {"calibration": None},
        "c": {"calibration": {"bins": []}},
    }
    (plot,) = reliability_plots({"objectives": heads})
    assert plot.rows[1] == ("0.10", "0.15", "40")


def test_curves_of_the_fits_take_the_steps_that_have_a_loss():
    lines = [{"stage": "reward", "step": i, "fit/loss": 1.0 / (i + 1)} for i in range(9)]
    lines[4]["fit/test_loss"] = 0.5
    curves = fit_curves([*lines, {"stage": "align", "step": 0, "fit/loss": 1.0}])
    assert [curve["title"] for curve in curves] == [
        "reward model: training loss",
        "reward model: held-out loss",
    ]


def test_the_cost_is_one_line():
    lines = [
        {"stage": "sft", "seconds": 30.0, "trained_tokens": 500},
        {
            "stage": "align",
            "seconds": 200.0,
            "rollout_tokens": 2_500_000,
            "reward_calls": 64,
            "peak_memory": 3.2e9,
        },
    ]
    assert cost_phrases(lines) == [
        "4 min in steps (supervised 30 s, alignment 3 min)",
        "2.5 million tokens sampled",
        "500 tokens trained on",
        "64 responses scored",
        "peak memory 3.2 GB",
    ]
    assert cost_phrases([]) == []
    assert [format_duration(s) for s in (0.4, 119.0, 7199.0, 9000.0)] == ["0 s", "119 s", "120 min", "2.5 h"]


def test_the_heading_is_the_name_of_the_run_and_the_worst_is_said_first(tmp_path):
    folder = make_run(tmp_path / "run-7", name="polite desk", prompts=60, steps=2)
    path = folder / "eval" / "final" / "eval.json"
    results = read_json(path)
    results["warnings"].insert(1, "The policy collapsed: its responses are alike.")
    results["objectives"]["safety"]["cautions"] = [
        "Whether the judge of safety ranks responses is not known: x."
    ]
    path.write_text(json.dumps(results))
    html = write_report(folder).read_text()
    assert '<h1>polite desk <span class="soft">in run-7</span></h1>' in html
    assert html.index("The policy collapsed") < html.index('class="verdict-lines')
    assert html.count("The policy collapsed") == 1
    assert (
        html.index('class="verdict-lines')
        < html.index("Whether the judge of safety ranks")
        < html.index("Not checked")
    )
    assert "<h1>demo</h1>" in write_report(make_run(tmp_path / "demo", steps=1, evaluated=False)).read_text()


def test_fourth_and_later_warnings_are_folded(tmp_path):
    folder = make_run(tmp_path / "r", prompts=60, steps=2)
    path = folder / "eval" / "final" / "eval.json"
    path.write_text(json.dumps(read_json(path) | {"warnings": [f"warning {i}." for i in range(5)]}))
    html = write_report(folder).read_text()
    assert html.index("warning 2.") < html.index("<summary>2 more</summary>") < html.index("warning 3.")
