"""One verdict everywhere: the rule, the quality of the judge, goals, and missing judgments."""

import json
import math

import numpy as np
import pytest

from paretune.core.goals import Goal
from paretune.evaluate.judge_quality import fitted_report, head_qualities, judge_quality
from paretune.evaluate.paired import ComparisonSpec, compare_objectives
from paretune.evaluate.verdicts import LABELS, ChangeEvidence, judge_change
from paretune.evaluate.warnings import evaluation_warnings
from paretune.report.formatting import explain_verdict, format_verdict, goal_arrow, goal_words
from paretune.report.tables import summary_table
from support.fake_run import fake_evaluation

HEADS = {
    "against": {"num_ratings": 16, "spearman": -0.5, "r2": 0.1, "calibration": {}},
    "few": {"num_ratings": 12, "spearman": 0.3, "r2": 0.1, "calibration": {}},
    "ranks": {"num_ratings": 200, "spearman": 0.6, "r2": 0.3, "calibration": {}},
    "constant": {"num_ratings": 30, "spearman": 0.2, "beats_baselines": {"constant": False}},
    "unlabelled": {"num_ratings": 0, "num_pairs": 0},
    "pairs": {"num_pairs": 12, "pair_accuracy": 0.4},
}
AGAINST, FEW_LABELS = (judge_quality({"objectives": HEADS}, name) for name in ("against", "few"))


@pytest.mark.parametrize(
    ("low", "high", "arguments", "word"),
    [
        (0.01, 0.2, {}, "better"),
        (0.01, 0.2, {"independent": False}, "no evidence"),
        (0.01, 0.2, {"independent": False, "margin": 0.05}, "not worse"),
        (0.01, 0.2, {"missing_fraction": 0.021}, "inconclusive"),
        (0.01, 0.2, {"missing_fraction": 0.02}, "better"),
        (0.01, 0.2, {"unequal_missing": True}, "inconclusive"),
        (-0.2, -0.01, {}, "worse"),
        (-0.2, -0.01, {"independent": False, "missing_fraction": 0.5}, "worse"),
        (-0.01, 0.2, {}, "no evidence"),
        (-0.01, 0.2, {"margin": 0.05}, "not worse"),
        (-0.05, 0.2, {"margin": 0.05}, "no evidence"),
        (0.0, 0.0, {}, "no evidence"),
        (math.nan, math.nan, {}, "not measured"),
        (0.01, 0.2, {"quality": AGAINST}, "judge unreliable"),
        (-0.2, -0.01, {"quality": AGAINST}, "judge unreliable"),
        (-0.01, 0.2, {"quality": AGAINST, "margin": 0.05}, "judge unreliable"),
        (math.nan, math.nan, {"quality": AGAINST}, "not measured"),
        (0.01, 0.2, {"quality": FEW_LABELS}, "better"),
        (0.01, 0.2, {"missing_fraction": 0.01, "worst_low": -0.001}, "inconclusive"),
        (0.01, 0.2, {"missing_fraction": 0.01, "worst_low": 0.001}, "better"),
        (-0.01, 0.2, {"missing_fraction": 0.01, "worst_low": -0.06, "margin": 0.05}, "inconclusive"),
    ],
)
def test_verdict_follows_the_rule(low, high, arguments, word):
    found = judge_change(ChangeEvidence(objective="safe", low=low, high=high, **arguments))
    assert found.label == word
    assert found.label in LABELS


def test_quality_of_a_head_is_unreliable_only_with_labels_that_say_so():
    statuses = {name: judge_quality({"objectives": HEADS}, name).status for name in HEADS}
    assert statuses == {
        "against": "unreliable",
        "few": "cannot tell",
        "ranks": "ranks",
        "constant": "unreliable",
        "unlabelled": "cannot tell",
        "pairs": "unreliable",
    }
    assert judge_quality({"objectives": HEADS}, "other") is None
    assert judge_quality(None, "against") is None


def compare(before, after, goals=(), **settings):
    """The entries of one objective per column of [P, K] scores."""
    names = tuple(f"o{k}" for k in range(before.shape[1]))
    spec = ComparisonSpec(
        objectives=names,
        goals=dict(zip(names, map(Goal.of, goals), strict=False)),
        judge_names=dict.fromkeys(names, "a judge"),
        independent=dict.fromkeys(names, True),
        bootstrap_samples=400,
        **settings,
    )
    return compare_objectives(spec, before[:, None], after[:, None], np.arange(len(before)))


def scores(lift, prompts=60, seed=0):
    rng = np.random.default_rng(seed)
    before = rng.normal(0, 1, (prompts, len(lift)))
    return before, before + np.array(lift) + rng.normal(0, 0.3, before.shape)


def test_a_score_that_fell_as_wished_is_better_and_stays_raw():
    before, after = scores([-0.5, -0.5])
    down, up = compare(before, after, ["lower", "higher"]).values()
    assert (down["verdict"], up["verdict"]) == ("better", "worse")
    for key in ("before", "after", "change", "low", "high"):
        assert down[key] == pytest.approx(compare(before, after)["o0"][key])
    assert down["oriented"]["change"] == -down["change"] > 0
    assert (down["oriented"]["low"], down["oriented"]["high"]) == (-down["high"], -down["low"])
    assert down["win_rate"] == compare(before, after)["o0"]["loss_rate"] > 0.5
    assert (down["goal"], down["target"]) == ("lower", None)
    assert (goal_arrow(down), goal_words(down)) == ("↓", "lower is better")


def test_verdict_on_a_target_is_on_the_distance_and_the_numbers_are_raw():
    # From both sides to 10: the mean hardly moves, and every response is nearer.
    rng = np.random.default_rng(1)
    before = np.where(np.arange(60) % 2, 20.0, 0.0)[:, None] + rng.normal(0, 1, (60, 1))
    after = 10 + (before - 10) / 2 + rng.normal(0, 1, (60, 1))
    entry = compare(before, after, [10.0])["o0"]
    assert entry["verdict"] == "better"
    assert abs(entry["change"]) < 1 < 4 < entry["oriented"]["change"]
    assert entry["before"] == pytest.approx(before.mean())
    assert entry["oriented"]["before"] == pytest.approx(-abs(before - 10).mean())
    assert (goal_arrow(entry), goal_words(entry)) == ("→ 10", "best at 10")
    assert compare(10 + 0 * before, after, [10.0])["o0"]["verdict"] == "worse"


def test_goals_change_nothing_but_the_sign():
    before, after = scores([0.2, -0.1, 0.0], seed=3)
    plain, negated = compare(before, after), compare(-before, -after, ["lower"] * 3)
    for name in plain:
        assert negated[name]["verdict"] == plain[name]["verdict"]
        assert negated[name]["oriented"] == pytest.approx(plain[name]["oriented"])
        assert negated[name]["min_detectable_effect"] == plain[name]["min_detectable_effect"]


def test_missing_judgments_bound_the_verdict():
    before, after = scores([0.12], prompts=400, seed=2)
    assert compare(before, after)["o0"]["verdict"] == "better"
    after[:3] = np.nan
    entry = compare(before, after)["o0"]
    assert entry["missing"]["low"] < entry["oriented"]["low"] < entry["oriented"]["high"]
    assert entry["missing"]["high"] > entry["oriented"]["high"]
    assert entry["verdict"] == "better"
    after[:8], before[8:16] = np.nan, np.nan  # 16 of 800: not more than 2 %, and enough to undo it
    entry = compare(before, after)["o0"]
    assert entry["missing"]["fraction"] == 0.02
    assert entry["missing"]["low"] < 0 < entry["oriented"]["low"]
    assert entry["verdict"] == "inconclusive"
    assert "enough to undo the result" in entry["cautions"][0]


def test_judge_that_ranks_against_its_labels_is_named_in_the_table_and_the_warnings():
    before, after = scores([0.5, 0.5])
    entry = compare(before, after, qualities={"o0": AGAINST})["o0"]
    assert entry["verdict"] == "judge unreliable"
    assert entry["judge_quality"]["status"] == "unreliable"
    reason = "does not rank responses as the labels do (rank correlation −0.50, n = 16)"
    assert entry["cautions"] == [f"The judge of o0 {reason}, so no verdict rests on its scores."]
    assert explain_verdict(entry) == "rank correlation with its labels −0.50"
    results = fake_evaluation()[0]
    results["objectives"]["safety"] |= {key: entry[key] for key in ("verdict", "judge_quality", "cautions")}
    results["warnings"] = evaluation_warnings(results)
    assert results["warnings"][0].startswith(f"Judge unreliable: safety {reason}. No verdict")
    assert f"⊘ {format_verdict(entry)}" in summary_table(results)
    assert not any("safety got worse" in line for line in results["warnings"])


def test_quality_of_a_judge_is_read_from_the_run_that_fitted_it(tmp_path):
    model = tmp_path / "judge" / "model"
    model.mkdir(parents=True)
    (tmp_path / "judge" / "report.json").write_text(json.dumps({"objectives": HEADS}))
    report = fitted_report(model)
    qualities = head_qualities(report, {"safe": "against", "second": 1, "other": "none", "tenth": 9})
    assert {name: quality.status for name, quality in qualities.items()} == {
        "safe": "unreliable",
        "second": "cannot tell",
    }
    one = {"objectives": {"head": HEADS["ranks"]}}
    assert head_qualities(one, {"toxicity": "toxicity"})["toxicity"].status == "ranks", "a single output"
    assert fitted_report(tmp_path / "judge") == fitted_report("someone/hub-model") == {}


@pytest.mark.parametrize(("num_prompts", "label"), [(2, "no evidence"), (5, "no evidence"), (6, "better")])
def test_no_verdict_rests_on_fewer_than_six_prompts(num_prompts, label):
    """A judge of zeros and ones leaves no variance where every prompt gains: the interval is a point."""
    before = np.zeros((num_prompts, 1, 1))
    spec = ComparisonSpec(objectives=("safe",), judge_names={"safe": "j"}, independent={"safe": True})
    clusters = np.arange(num_prompts)
    gain = compare_objectives(spec, before, before + 1, clusters)["safe"]
    loss = compare_objectives(spec, before + 1, before, clusters)["safe"]
    assert (gain["verdict"], loss["verdict"]) == (label, "worse" if label == "better" else label)
    assert any("different prompts" in caution for caution in gain["cautions"]) is (num_prompts < 6)
