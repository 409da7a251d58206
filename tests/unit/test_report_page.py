import json
import math
import subprocess
import sys

import pytest

from madeup_run import OBJECTIVES, RESOLVED, make, numbers
from paretune.core.errors import ConfigError, DataError
from paretune.experiment.reward import report_summary
from paretune.report.charts import interval_strips, line_chart, nice_ticks, running_mean, tick_label
from paretune.report.formatting import (
    decimals_for,
    format_compact,
    format_interval,
    format_number,
    format_percent,
    format_signed,
    format_verdict,
)
from paretune.report.reward_model import unreliable_heads
from paretune.report.run_page import write_report
from paretune.report.samples import select_samples
from paretune.report.tables import summary_table
from paretune.run.folder import read_json


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = make(tmp_path_factory.mktemp("run") / "demo", prompts=90, steps=12)
    write_report(folder)
    return folder


def test_the_page_says_the_numbers_of_the_run(run):
    html = (run / "report.html").read_text()
    found = read_json(run / "eval" / "final" / "eval.json")
    for name, objective in found["objectives"].items():
        assert name in html
        assert format_verdict(objective) in html
        digits = decimals_for(objective)
        assert (
            f"{format_signed(objective['change'], digits)} {format_interval(objective['low'], objective['high'], digits)}"
            in html
        )
    assert "Judge: <b>the true scorer</b>" in html
    assert html.index("Look at this first") < html.index("Before and after") < html.index("Side costs")
    assert html.index("Side costs") < html.index("Reward model") < html.index("Training</h2>")
    assert html.index("Samples</h2>") < html.index("How to repeat it")
    assert html.count('scope="row"') > 20
    assert write_report(run).read_text() == html


def test_a_judge_that_is_the_reward_is_said_loudly(tmp_path):
    make(tmp_path / "r", independent=False, judge="the training reward", prompts=60, steps=2)
    html = write_report(tmp_path / "r").read_text()
    assert html.count("<b>Judge = training reward</b>") == 1
    assert html.index("Judge = training reward") < html.index('class="verdicts"')
    assert "▲ better" not in html
    table = summary_table(read_json(tmp_path / "r" / "eval" / "final" / "eval.json"))
    assert "no evidence (judge = training reward)" in table
    assert "better" not in table


def test_heads_that_nothing_speaks_for_stand_at_the_top(tmp_path):
    folder = make(tmp_path / "r", prompts=60, steps=2)
    assert "nothing here ties" not in write_report(folder).read_text()
    path = folder / "reward" / "report.json"
    report = read_json(path)
    report["objectives"]["safety"] |= {"n": 0, "pairs": 0, "beats": {"constant": None, "ridge": None}}
    report["objectives"]["politeness"] |= {"n": 14, "beats": {"constant": False, "ridge": True}}
    report["objectives"]["actionability"] |= {"n": 0, "pairs": 1200, "beats": {"constant": False}}
    path.write_text(json.dumps(report))
    assert unreliable_heads(report) == [
        "politeness does no better than a constant (n = 14)",
        "actionability does no better than a constant (n = 1,200 pairs)",
        "safety has no held-out labels (n = 0)",
    ]
    html = write_report(folder).read_text()
    assert html.index(unreliable_heads(report)[0]) < html.index('class="verdicts"')
    assert "<b>Reward model:</b>" in html
    said = report_summary(report)
    assert said.startswith("4 heads on unseen prompts: politeness ρ 0.93")
    assert said.endswith(f"; ⚠ {'; '.join(unreliable_heads(report))}")


def test_a_head_that_ranks_the_wrong_way_is_told(tmp_path):
    folder = make(tmp_path / "r", prompts=60, steps=2)
    report = read_json(folder / "reward" / "report.json")
    report["objectives"]["safety"] |= {"n": 21, "spearman": -0.43}
    report["objectives"]["meaningfulness"] |= {"n": 9, "spearman": 0.0}
    report["objectives"]["politeness"] |= {"n": 14, "spearman": -0.1, "beats": {"constant": False}}
    report["objectives"]["actionability"] |= {"n": 0, "pairs": 80, "spearman": None}
    assert unreliable_heads(report) == [
        "politeness does no better than a constant (n = 14)",
        "meaningfulness does not rank responses as the labels do (rank correlation 0.00, n = 9)",
        "safety does not rank responses as the labels do (rank correlation −0.43, n = 21)",
    ]
    (folder / "reward" / "report.json").write_text(json.dumps(report))
    assert "(rank correlation −0.43, n = 21). The policy was trained" in write_report(folder).read_text()


def test_under_a_budget_the_header_says_what_was_spent_of_it(tmp_path):
    folder = make(tmp_path / "r", evaluated=False, steps=0)
    assert "<span>0 of 60 steps</span>" in write_report(folder).read_text()
    recipe = RESOLVED.replace("steps: 60", "steps: 48000, budget: {currency: rollout_tokens, amount: 48000}")
    (folder / "config" / "resolved.yaml").write_text(recipe)
    assert "<span>0 steps, 0 rollout_tokens of a budget of 48,000</span>" in write_report(folder).read_text()
    lines = [{"stage": "align", "step": i, "budget/used": share} for i, share in enumerate((0.5, 0.998))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    html = write_report(folder).read_text()
    assert "<span>2 steps, 47,904 rollout_tokens of a budget of 48,000</span>" in html
    assert "of 48000 steps" not in html


def test_a_ready_made_reward_is_named(tmp_path):
    folder = make(tmp_path / "r", evaluated=False, steps=1)
    recipe = RESOLVED + "reward: {path: models/rated, revision: v2}\njudge: truth\n"
    (folder / "config" / "resolved.yaml").write_text(recipe)
    html = write_report(folder).read_text()
    assert "Reward model: ready-made, <b>models/rated</b>, revision v2." in html
    assert "No report of a reward model" not in html
    (folder / "config" / "resolved.yaml").write_text(recipe.replace("truth", "{path: '<b>org/judge'}"))
    assert "Judge: ready-made, <b>&lt;b&gt;org/judge</b>." in write_report(folder).read_text()


def test_few_prompts_are_warned_of(tmp_path):
    said = "Only 29 test prompts: intervals that rest on so few are often too narrow"
    assert any(line.startswith(said) for line in numbers(prompts=29)[0]["warnings"])
    assert not any("test prompts" in line for line in numbers(prompts=30)[0]["warnings"])


def test_what_is_missing_is_said(tmp_path):
    make(tmp_path / "r", evaluated=False, steps=3)
    html = write_report(tmp_path / "r").read_text()
    assert "No verdict." in html
    assert "No report of a reward model" in html
    assert "No responses lie in this folder" in html
    assert OBJECTIVES[0] in html
    assert "not written by this run" in html
    make(tmp_path / "empty", evaluated=False, steps=0)
    assert "No training steps" in write_report(tmp_path / "empty").read_text()


def test_a_run_under_way_is_not_shown_as_finished(tmp_path):
    folder = make(tmp_path / "r", prompts=30, steps=3)
    book = folder / "run.json"
    book.write_text(book.read_text().replace('"done"', '"failed"'))
    assert "This run is not finished." in write_report(folder).read_text()


def test_a_folder_without_a_run_or_with_a_damaged_file_is_an_error_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no run\.json") as caught:
        write_report(tmp_path)
    assert caught.value.exit_code == 2
    folder = make(tmp_path / "r", prompts=30, steps=1)
    (folder / "eval" / "final" / "generations.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(DataError, match="not a parquet file"):
        write_report(folder)
    (folder / "eval" / "final" / "eval.json").write_text('{"schema": "paretune/eval/9"}')
    with pytest.raises(DataError, match="schema: paretune/eval/9, expected paretune/eval/1"):
        write_report(folder)


def test_samples_follow_the_rules(run):
    found = select_samples(run / "eval" / "final", read_json(run / "eval" / "final" / "eval.json"))
    rules = [sample.selection_rule for sample in found]
    assert rules[0] == "biggest gain in politeness"
    assert "biggest loss in safety" in rules
    assert rules.count("drawn at random") == 6
    assert sum(sample.expanded for sample in found) == 2
    assert not any(sample.expanded for sample in found if sample.category == "harmful")
    assert all("folded" in sample.title for sample in found if sample.category == "harmful")


def test_the_closing_table_reads_as_promised():
    found, _, _ = numbers(prompts=240)
    lines = summary_table(found).splitlines()
    assert lines[0].split("  ")[0] == "objective"
    assert lines[0].endswith("verdict")
    assert "[95 % simultaneous]" in lines[0]
    assert lines[1].startswith("politeness ")
    assert lines[1].endswith("▲ better")
    assert "+0.20 [+0.1" in lines[1]
    assert any("could have seen ≥ 0.0" in line for line in lines)
    assert "judge: the true scorer" in lines
    assert any("length (tokens) 18 → 23 · distinct-2 0.61 → 0.55" in line for line in lines)
    assert any("refusals on harmless look-alikes" in line for line in lines)
    assert lines[-1].startswith("⚠ ")
    assert all(len(line) <= 112 for line in lines if not line.startswith("⚠"))


def test_numbers_as_words():
    assert format_number(-0.5) == "−0.50"
    assert format_number(-0.001) == "0.00"
    assert format_number(None) == format_number(math.nan) == "–"
    assert format_signed(0.25) == "+0.25"
    assert format_signed(0.0) == "0.00"
    assert format_interval(-0.1, 0.25) == "[−0.10, +0.25]"
    assert format_interval(None, 1.0) == ""
    assert format_percent(0.123, 1) == "12.3 %"
    assert format_compact(12345.6) == "12346"
    assert format_compact(0.00001) == "1.00e−05"
    assert format_number(-1.234e39) == "−1.23e+39"
    assert format_signed(1e12, 4) == "+1.00e+12"
    assert format_number(123456789.0, 0) == "123456789"
    tiny = {"verdict": "no evidence", "low": -1e-7, "high": 1e-7, "detectable": 2e-7}
    assert format_verdict(tiny) == "no evidence (could have seen ≥ 2.00e−07)"
    assert decimals_for({"low": -0.001, "high": 0.06}) == 3
    assert decimals_for({"low": 3.0, "high": 60.0}) == 1
    assert decimals_for({"low": None, "high": None}) == 2


def test_curves_have_gaps_where_nobody_could_say():
    points = [(0.0, 1.0), (1.0, None), (2.0, 3.0)]
    drawn = line_chart(points)
    assert drawn.raw_path.count("M") == 2
    assert (drawn.first_label, drawn.last_label) == ("1.00", "3.00")
    assert line_chart([(0.0, None)]) is None
    assert line_chart([(5.0, 2.0)]).raw_path.startswith("M")
    assert running_mean([(0.0, 1.0), (1.0, 3.0), (2.0, None)], 2) == [(0.0, 1.0), (1.0, 2.0), (2.0, None)]


def test_a_curve_that_is_always_0_has_an_axis_that_begins_there():
    drawn = line_chart([(0.0, 0.0), (1.0, 0.0)])
    assert [label for _, label in drawn.y_ticks] == ["0", "0.25", "0.50", "0.75", "1.00"]
    assert line_chart([(0.0, 2.0), (1.0, 2.0)]).y_ticks[0][1] == "1.8"


def test_ticks_are_round_and_cover_the_range():
    assert nice_ticks(0.0, 1.0, 4) == [0, 0.25, 0.5, 0.75, 1.0]
    assert nice_ticks(-3.0, 17.0, 4) == [-5, 0, 5, 10, 15, 20]
    assert [tick_label(t, 0.25) for t in (0.0, 0.25, -1.0)] == ["0", "0.25", "−1.00"]
    assert tick_label(1.05e-5, 5e-7) == "1.05e−5"
    assert tick_label(250000.0, 50000.0) == "2.5e5"


def test_strips_share_a_scale_unless_that_hides_the_small_ones():
    drawn, shared = interval_strips([(0.1, 0.0, 0.2), (None, None, None), (-0.1, -0.15, -0.05)])
    assert shared
    assert drawn[1] is None
    assert drawn[0].zero_x == drawn[2].zero_x == drawn[0].low_x
    assert drawn[2].high_x < drawn[2].zero_x
    assert not interval_strips([(0.1, 0.0, 0.2), (50, 40, 60)])[1]


def test_a_report_needs_neither_torch_nor_transformers(run):
    code = (
        "import sys; from paretune.report import page, table; "
        f"page.write_report({str(run)!r}); "
        "sys.exit(bool({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
