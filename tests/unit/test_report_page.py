import json
import math
import re
import subprocess
import sys

import pytest

from paretune.core.errors import ConfigError, DataError
from paretune.evaluate.judge_quality import unreliable_heads
from paretune.report.charts import line_chart, nice_ticks, running_mean, tick_label
from paretune.report.formatting import (
    VERDICT_SYMBOLS,
    decimals_for,
    explain_verdict,
    format_compact,
    format_interval,
    format_number,
    format_percent,
    format_signed,
    format_verdict,
    keep_units,
)
from paretune.report.run_page import write_report
from paretune.report.samples import select_samples
from paretune.report.tables import summary_table
from paretune.run.folder import read_json
from support.fake_run import OBJECTIVES, RESOLVED, fake_evaluation, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("run") / "demo", prompts=90, steps=12)
    write_report(folder)
    return folder


def test_page_shows_the_numbers_of_the_run(run):
    html = (run / "report.html").read_text()
    evaluation = read_json(run / "eval" / "final" / "eval.json")
    for name, objective in evaluation["objectives"].items():
        assert name in html
        assert f"{VERDICT_SYMBOLS[objective['verdict']]} {objective['verdict']}" in html
        assert explain_verdict(objective) in html
        digits = decimals_for(objective)
        change = format_signed(objective["change"], digits)
        assert f"{change} {format_interval(objective['low'], objective['high'], digits)}" in html
    assert "Judge: <b>the ground truth</b>" in html
    assert html.index('class="verdict-lines') < html.index("<b>Warnings</b>") < html.index("Before and after")
    assert html.index("Before and after") < html.index("Trade-offs") < html.index("Over-optimization")
    assert html.index("Over-optimization") < html.index("Side metrics</h2>")
    assert html.index("Side metrics") < html.index("Reward model") < html.index("Training</h2>")
    assert html.index("Samples</h2>") < html.index("How to reproduce it")
    assert html.count('scope="row"') > 20
    assert write_report(run).read_text() == html


def test_self_judged_run_warns_loudly(tmp_path):
    make_run(tmp_path / "r", independent=False, judge="the training reward", prompts=60, steps=2)
    html = write_report(tmp_path / "r").read_text()
    assert html.count("<b>Judge not independent</b>") == 1
    assert html.index("Judge not independent") < html.index('class="verdict-lines')
    assert "▲ better" not in html
    table = summary_table(read_json(tmp_path / "r" / "eval" / "final" / "eval.json"))
    assert "no evidence (judge not independent)" in table
    assert "better" not in table


def test_unreliable_heads_are_at_the_top(tmp_path):
    from paretune.experiment.reward import report_summary

    folder = make_run(tmp_path / "r", prompts=60, steps=2)
    assert "not shown to predict" not in write_report(folder).read_text()
    path = folder / "reward" / "report.json"
    report = read_json(path)
    report["objectives"]["safety"] |= {
        "num_ratings": 0,
        "num_pairs": 0,
        "beats_baselines": {"constant": None, "ridge": None},
    }
    report["objectives"]["politeness"] |= {
        "num_ratings": 14,
        "beats_baselines": {"constant": False, "ridge": True},
    }
    report["objectives"]["actionability"] |= {
        "num_ratings": 0,
        "num_pairs": 1200,
        "beats_baselines": {"constant": False},
    }
    path.write_text(json.dumps(report))
    assert unreliable_heads(report) == [
        "politeness does no better than a constant (n = 14)",
        "actionability does no better than a constant (n = 1,200 pairs)",
        "safety has no held-out labels (n = 0)",
    ]
    html = write_report(folder).read_text()
    assert html.index(unreliable_heads(report)[0]) < html.index("Before and after")
    assert "Reward model: politeness" in html
    summary = report_summary(report)
    assert summary.startswith("4 heads on unseen prompts: politeness ρ 0.93")
    assert summary.endswith(f"; ⚠ {'; '.join(unreliable_heads(report))}")


def test_head_with_negative_rank_correlation_is_unreliable(tmp_path):
    folder = make_run(tmp_path / "r", prompts=60, steps=2)
    report = read_json(folder / "reward" / "report.json")
    report["objectives"]["safety"] |= {"num_ratings": 21, "spearman": -0.43}
    report["objectives"]["meaningfulness"] |= {"num_ratings": 9, "spearman": 0.0}
    report["objectives"]["politeness"] |= {
        "num_ratings": 14,
        "spearman": -0.1,
        "beats_baselines": {"constant": False},
    }
    report["objectives"]["actionability"] |= {"num_ratings": 0, "num_pairs": 80, "spearman": None}
    assert unreliable_heads(report) == [
        "politeness does no better than a constant (n = 14)",
        "meaningfulness does not rank responses as the labels do (rank correlation 0.00, n = 9)",
        "safety does not rank responses as the labels do (rank correlation −0.43, n = 21)",
    ]
    (folder / "reward" / "report.json").write_text(json.dumps(report))
    assert "(rank correlation −0.43, n = 21). The policy was trained" in write_report(folder).read_text()


def test_subtitle_shows_the_used_budget(tmp_path):
    folder = make_run(tmp_path / "r", evaluated=False, steps=0)
    assert "<span>0 of 60 steps</span>" in write_report(folder).read_text()
    recipe = RESOLVED.replace(
        "max_steps: 60", "max_steps: 48000, budget: {resource: rollout_tokens, limit: 48000}"
    )
    (folder / "config" / "resolved.yaml").write_text(recipe)
    assert "<span>0 steps, 0 rollout_tokens of a budget of 48,000</span>" in write_report(folder).read_text()
    lines = [{"stage": "align", "step": i, "budget/used": share} for i, share in enumerate((0.5, 0.998))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    html = write_report(folder).read_text()
    assert "<span>2 steps, 47,904 rollout_tokens of a budget of 48,000</span>" in html
    assert "of 48000 steps" not in html


def test_pretrained_reward_model_is_named(tmp_path):
    folder = make_run(tmp_path / "r", evaluated=False, steps=1)
    recipe = RESOLVED + "reward: {path: models/rated, revision: v2}\njudge: truth\n"
    (folder / "config" / "resolved.yaml").write_text(recipe)
    html = write_report(folder).read_text()
    assert "Reward model: pretrained, <b>models/rated</b>, revision v2." in html
    assert "No reward model report" not in html
    (folder / "config" / "resolved.yaml").write_text(recipe.replace("truth", "{path: '<b>org/judge'}"))
    assert "Judge: pretrained, <b>&lt;b&gt;org/judge</b>." in write_report(folder).read_text()


def test_few_prompts_give_a_warning(tmp_path):
    beginning = "Only 29 test prompts: confidence intervals over so few prompts are often too narrow"
    assert any(line.startswith(beginning) for line in fake_evaluation(prompts=29)[0]["warnings"])
    assert not any("test prompts" in line for line in fake_evaluation(prompts=30)[0]["warnings"])


def test_missing_parts_are_shown_as_missing(tmp_path):
    make_run(tmp_path / "r", evaluated=False, steps=3)
    html = write_report(tmp_path / "r").read_text()
    assert "No verdict." in html
    assert "No reward model report" in html
    assert "No responses yet" in html
    assert OBJECTIVES[0] in html
    assert "not recorded in this run" in html
    make_run(tmp_path / "empty", evaluated=False, steps=0)
    assert "No training steps" in write_report(tmp_path / "empty").read_text()


def test_unfinished_run_is_marked(tmp_path):
    folder = make_run(tmp_path / "r", prompts=30, steps=3)
    book = folder / "run.json"
    book.write_text(book.read_text().replace('"done"', '"failed"'))
    assert "This run is not finished." in write_report(folder).read_text()


def test_missing_run_or_damaged_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"no run\.json") as caught:
        write_report(tmp_path)
    assert caught.value.exit_code == 2
    folder = make_run(tmp_path / "r", prompts=30, steps=1)
    (folder / "eval" / "final" / "generations.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(DataError, match="not a parquet file"):
        write_report(folder)
    (folder / "eval" / "final" / "eval.json").write_text('{"schema": "paretune/eval/9"}')
    with pytest.raises(DataError, match="schema: paretune/eval/9, expected paretune/eval/3"):
        write_report(folder)


def test_samples_are_selected_by_rule(run):
    evaluation = read_json(run / "eval" / "final" / "eval.json")
    selection = select_samples(run / "eval" / "final", evaluation)
    samples = selection.selected
    assert len(samples) + len(selection.others) == selection.num_samples == 90
    assert not any(sample.selection_rule or sample.expanded for sample in selection.others)
    rules = [sample.selection_rule for sample in samples]
    assert rules[0] == "largest gain in politeness"
    assert "largest loss in safety" in rules
    assert rules.count("random") == 6
    assert sum(sample.expanded for sample in samples) == 2
    assert not any(sample.expanded for sample in samples if sample.category == "harmful")
    assert all("collapsed" in sample.title for sample in samples if sample.category == "harmful")


def test_summary_table_of_a_run():
    evaluation, _, _ = fake_evaluation(prompts=240)
    lines = summary_table(evaluation).splitlines()
    assert lines[0].split("  ")[0] == "objective"
    assert lines[0].endswith("verdict")
    assert "[95 % simultaneous]" in lines[0]
    assert lines[1].startswith("politeness ")
    assert lines[1].endswith("▲ better")
    assert "+0.20 [+0.1" in lines[1]
    assert any("detectable change ≥ 0.0" in line for line in lines)
    assert "judge: the ground truth" in lines
    assert any("length (tokens) 18 → 23 · distinct-2 0.61 → 0.55" in line for line in lines)
    assert any("refusals on lookalike prompts" in line for line in lines)
    assert lines[-1].startswith("⚠ ")
    assert all(len(line) <= 112 for line in lines if not line.startswith("⚠"))


def test_number_formatting():
    assert format_number(-0.5) == "−0.50"
    assert format_number(-0.001) == "0.00"
    assert format_number(None) == format_number(math.nan) == format_number(10**400) == "–"
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
    tiny = {"verdict": "no evidence", "oriented": {"low": -1e-7, "high": 1e-7}, "min_detectable_effect": 2e-7}
    assert format_verdict(tiny) == "no evidence (detectable change ≥ 2.00e−07)"
    assert decimals_for({"low": -0.001, "high": 0.06}) == 3
    assert decimals_for({"low": 3.0, "high": 60.0}) == 1
    assert decimals_for({"low": None, "high": None}) == 2
    assert keep_units("42.9 % of 3 %") == "42.9\u00a0% of 3\u00a0%"


@pytest.mark.parametrize(
    ("before", "after", "half_width", "decimals"),
    [
        (3.2225, 3.2265, 0.010, 3),  # 3.22 -> 3.23 beside 0.00
        (3.2249, 3.2251, 0.300, 3),  # 3.22 -> 3.23 beside 0.00
        (3.2251, 3.2346, 0.300, 2),  # 3.23 -> 3.23 beside +0.01 needs more
        (0.5000, 0.7500, 0.100, 2),
        (1.0, 1.0, 0.2, 2),
    ],
)
def test_the_shown_change_is_the_difference_of_the_shown_means(before, after, half_width, decimals):
    change = after - before
    objective = {"before": before, "after": after, "change": change}
    objective |= {"low": change - half_width, "high": change + half_width}
    shown = decimals_for(objective)
    assert shown >= decimals
    difference = round(after, shown) - round(before, shown)
    assert abs(difference - round(change, shown)) <= abs(round(change, shown)) / 4 + 1e-9
    # Means over other prompts than the change do not add up at any number of digits.
    assert decimals_for(objective | {"after": after + 0.31}) <= 3


def test_page_has_one_list_of_warnings_and_both_estimates_of_the_kl(tmp_path):
    folder = make_run(tmp_path / "r", prompts=12, steps=2)
    html = write_report(folder).read_text()
    assert html.count("<b>Warnings</b>") == 1
    assert html.index("<b>Warnings</b>") < html.index("Before and after")
    kl = read_json(folder / "eval" / "final" / "eval.json")["kl"]
    for name, label in (("k3", "KL to the initial policy"), ("k1", "the same, k1 estimate")):
        row = re.search(rf"<tr><th scope=.row.>{label}.*?</tr>", html)[0]
        assert f">{format_compact(kl[name])}<" in row
        assert ("[" in row) == (name == "k1")
    shown = html.partition("<h2>Side metrics")[2].partition("</table>")[0]
    assert re.search(r"\d\u00a0%", shown)
    assert not re.search(r"\d %", shown)


def test_a_truncated_response_says_so_in_grey(tmp_path):
    folder = make_run(tmp_path / "r", prompts=12, steps=2)
    selection = select_samples(folder / "eval" / "final", read_json(folder / "eval" / "final" / "eval.json"))
    samples = (*selection.selected, *selection.others)
    count = sum(sample.before_truncated + sample.after_truncated for sample in samples)
    html = write_report(folder).read_text()
    assert html.count('<span class="soft">[truncated at the length limit]</span>') == count


def test_curves_have_gaps_at_missing_values():
    points = [(0.0, 1.0), (1.0, None), (2.0, 3.0)]
    drawn = line_chart(points)
    assert drawn.raw_path.count("M") == 2
    assert (drawn.first_label, drawn.last_label) == ("1.00", "3.00")
    assert line_chart([(0.0, None)]) is None
    assert line_chart([(5.0, 2.0)]).raw_path.startswith("M")
    assert running_mean([(0.0, 1.0), (1.0, 3.0), (2.0, None)], 2) == [(0.0, 1.0), (1.0, 2.0), (2.0, None)]


def test_axis_of_a_constant_zero_curve_starts_at_zero():
    drawn = line_chart([(0.0, 0.0), (1.0, 0.0)])
    assert [label for _, label in drawn.y_ticks] == ["0", "0.25", "0.50", "0.75", "1.00"]
    assert line_chart([(0.0, 2.0), (1.0, 2.0)]).y_ticks[0][1] == "1.8"


def test_ticks_are_round_and_cover_the_range():
    assert nice_ticks(0.0, 1.0, 4) == [0, 0.25, 0.5, 0.75, 1.0]
    assert nice_ticks(-3.0, 17.0, 4) == [-5, 0, 5, 10, 15, 20]
    assert [tick_label(t, 0.25) for t in (0.0, 0.25, -1.0)] == ["0", "0.25", "−1.00"]
    assert tick_label(1.05e-5, 5e-7) == "1.05e−5"
    assert [tick_label(t, 5e-5) for t in (0.4920, 0.49205)] == ["0.49200", "0.49205"]
    assert tick_label(250000.0, 50000.0) == "2.5e5"


def test_report_loads_neither_torch_nor_transformers(run):
    code = (
        "import sys; from paretune.report import run_page, tables; "
        f"run_page.write_report({str(run)!r}); "
        "sys.exit(bool({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
