"""What a reader must know first: heads that cannot be trusted, on the terminal and on the page."""

import json

import pytest

from paretune.core.errors import ConfigError
from paretune.evaluate.warnings import evaluation_warnings
from paretune.experiment.estimates import Estimate, describe_estimate
from paretune.experiment.run_description import summarize_exclusions
from paretune.plan.memory import MemoryEstimate
from paretune.report.charts import objective_curves
from paretune.report.formatting import NO_JUDGE
from paretune.report.reward_model import head_warnings
from paretune.report.run_page import read_model_reports, with_event_warnings, write_report
from paretune.report.tables import summary_table
from paretune.run.folder import NEGATIVE_SHARE_EVENT, Run, read_json
from support.fake_run import fake_evaluation, make_run

CONSTANT, LINEAR = {"constant": False, "ridge": True}, {"constant": True, "ridge": False}


@pytest.mark.parametrize(
    ("title", "beats", "sentence"),
    [
        ("Reward model", CONSTANT, "Reward model: safe does no better than a constant (n = 60). The policy"),
        ("Reward model", LINEAR, "Reward model: a linear model on frozen features predicts the labels of"),
        ("Judge", LINEAR, "Judge: a linear model on frozen features predicts the labels of safe as well or"),
    ],
)  # fmt: skip
def test_weak_heads_are_the_first_warnings_after_the_table(title, beats, sentence):
    head = {"num_ratings": 60, "num_pairs": 0, "spearman": 0.5, "r2": 0.2, "calibration": {}}
    reports = {title: {"objectives": {"safe": head | {"beats_baselines": beats}}}}
    (warning,) = head_warnings(reports)
    assert warning.startswith(sentence)
    assert "; fix: " in warning
    lines = summary_table(fake_evaluation(prompts=12, independent=False)[0], [warning]).split("\n")
    assert next(line for line in lines if line.startswith("⚠")) == f"⚠ {warning}"


def test_heads_that_beat_their_baselines_are_no_warning():
    head = {"num_ratings": 60, "num_pairs": 0, "spearman": 0.5, "r2": 0.2, "calibration": {}}
    head["beats_baselines"] = {"constant": True, "ridge": True}
    assert head_warnings({"Judge": {"objectives": {"safe": head}}}) == []


def test_weak_heads_of_reward_and_judge_stand_below_the_verdicts(tmp_path):
    folder = make_run(tmp_path / "r", prompts=12, steps=2)
    report = read_json(folder / "reward" / "report.json")
    for head in report["objectives"].values():
        head["beats_baselines"] = LINEAR
    for role in ("reward", "judge"):
        (folder / role).mkdir(exist_ok=True)
        (folder / role / "report.json").write_text(json.dumps(report))
    warnings = head_warnings(read_model_reports(folder))
    assert [warning.split(":")[0] for warning in warnings] == ["Reward model", "Judge"]
    html = write_report(folder).read_text()
    assert all(0 < html.index(warning) < html.index("Before and after") for warning in warnings)


def test_warnings_of_the_training_close_the_terminal_and_the_page(tmp_path):
    folder = make_run(tmp_path / "r", prompts=60, steps=2)
    text = "safety: the reward lowers this objective (step 4); fix: raise its weight if it must not fall"
    for _ in range(2):
        Run(folder).log_event(NEGATIVE_SHARE_EVENT, text)
    results = with_event_warnings(read_json(folder / "eval" / "final" / "eval.json"), folder)
    assert summary_table(results).split("\n")[-1] == f"⚠ {text}"
    html = write_report(folder).read_text()
    assert 0 < html.index("<b>Warnings</b>") < html.index(text) < html.index("Before and after")


def test_an_objective_without_a_judge_says_so(tmp_path):
    folder = make_run(tmp_path / "r", prompts=60, steps=2)
    path = folder / "eval" / "final" / "eval.json"
    results = read_json(path)
    results["objectives"]["safety"] |= {"verdict": "not measured", "judge": NO_JUDGE}
    path.write_text(json.dumps(results))
    assert "○ not measured (no judge)" in summary_table(results)
    html = write_report(folder).read_text()
    assert '<div class="why">no judge</div>' in html


def test_a_truncation_warning_says_what_to_raise():
    results = fake_evaluation(prompts=60)[0]
    results["truncation_rate"] |= {"num_prompts": 60, "before": 0.5, "after": 0.5}
    (warning,) = [w for w in evaluation_warnings(results | {"unchanged_fraction": 0.2}) if "truncated" in w]
    assert "; fix: raise algorithm.max_new_tokens" in warning


@pytest.mark.parametrize(
    ("shares", "low", "high"),
    [((0.2, 0.8), 0.0, 1.0), ((1.09, -0.09), -0.09, 1.09), ((3.0, -2.0), -2.0, 3.0)],
)
def test_charts_of_the_share_of_variance_have_one_axis(shares, low, high):
    lines = [
        {"step": step, "variance_share/a": shares[0], "variance_share/b": shares[1]} for step in range(4)
    ]
    charts = [row["charts"][-1]["chart"] for row in objective_curves(lines, ("a", "b"))]
    assert charts[0].y_ticks == charts[1].y_ticks
    values = [float(text.replace("−", "-")) for _, text in charts[0].y_ticks]
    assert low <= values[0] <= 0.0
    assert 1.0 <= values[-1] <= high


@pytest.mark.parametrize(
    ("seconds", "total"),
    [((3000.0, 1440.0, 3000.0, 540.0), "2.2 h"), ((54 * 60.0, 44 * 60.0), "1.5 h"), ((14.0, 24.0), "40 s")],
)
def test_the_parts_of_the_time_add_up_to_its_total(seconds, total):
    parts = {f"part{i}": value for i, value in enumerate(seconds)}
    memory = MemoryEstimate(resident={}, phases={})
    (line,) = describe_estimate(Estimate(seconds=parts, memory=memory, device="CPU"))
    assert line.startswith(f"about {total} on ")


def test_a_long_evaluation_names_the_key_that_shortens_it():
    def lines(evaluation):
        parts = {"training": 600.0, "evaluation": evaluation}
        memory = MemoryEstimate(resident={}, phases={})
        return list(describe_estimate(Estimate(seconds=parts, memory=memory, device="CPU")))

    assert lines(1200.0)[1:] == [
        "more than half of it is the evaluation; a lower evaluate.max_prompts shortens it"
    ]
    assert not lines(500.0)[1:]


def test_exclusions_of_one_kind_are_one_line():
    lines = [
        "180 rows of harmful excluded: longer than 96 tokens",
        "2327 rows of judge instructions excluded: longer than 192 tokens",
        "4 rows of benign excluded: longer than 96 tokens",
        "180 rows of reward excluded: their prompts are those of its own test rows",
    ]
    assert list(summarize_exclusions(lines)) == [
        "2,511 rows of 3 sources excluded, such as 2,327 rows of judge instructions excluded: longer than "
        "192 tokens",
        "180 rows of reward excluded: their prompts are those of its own test rows",
    ]
    assert list(summarize_exclusions([])) == []


@pytest.mark.parametrize(
    ("name", "fix"),
    [("mine", "write runs/mine"), ("runs/mien", "write runs/mine"), ("zzz", "such as runs/mine")],
)
def test_a_run_that_is_not_there_is_looked_for_among_the_runs(tmp_path, monkeypatch, name, fix):
    from pathlib import Path

    from paretune.cli import report

    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "run.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"there is no such folder; fix: .*{fix}"):
        report(Path(name))
