"""The page of a comparison: what it says, and that nothing in it is taken for more than text."""

import itertools
import json
import re

import pytest

from hostile import PAYLOADS
from madeup_contest import FILE, make_runs, written
from paretune.benchmark.costs import benchmark_costs
from paretune.benchmark.results import benchmark_results
from paretune.benchmark.spec import load_benchmark
from paretune.core.errors import ConfigError, DataError
from paretune.report.benchmark_page import benchmark_table, write_benchmark_report
from paretune.report.charts import ScatterPoint, scatter_plot
from paretune.run.io import to_json


@pytest.fixture
def folder(tmp_path):
    text = (
        FILE.format(folder=tmp_path / "cmp")
        + "tuning: {trials: 2, over: {training.learning_rate: [1e-4, 1e-3]}}\n"
    )
    contest = load_benchmark(written(tmp_path, text))
    make_runs(contest, spent={"ppo_max": 63_000})
    trials = [
        {"set": dict(s), "training_reward": r}
        for s, r in zip(contest.trial_settings, (2.5, None), strict=True)
    ]
    tuned = {
        "trials": trials,
        "chosen": 0,
        "set": {"training.learning_rate": 1e-4},
        "best": 2.5,
        "median": 2.5,
    }
    found = benchmark_results(
        contest,
        contest.run_specs(),
        benchmark_costs(contest, contest.run_specs(), {}),
        dict.fromkeys(contest.config.methods, tuned),
    )
    (contest.output_dir / "compare.json").write_text(to_json(found))
    return contest.output_dir


def test_it_says_what_was_declared_what_came_out_and_what_it_took(folder):
    html = write_benchmark_report(folder).read_text()
    found = json.loads((folder / "compare.json").read_text())
    for words in (
        "Not every method is ranked.",
        "ppo_max: not ranked: a run spent 63,000 rollout_tokens, +5.0% of the 60,000 declared",
        "60,000 rollout_tokens; 2 % off, and a method is not ranked",
        "politeness 0.00, meaningfulness 0.00",
        "2 trials of the same budget for every method, on seed 100, over training.learning_rate (0.0001, 0.001)",
        "0.001: stopped itself",
        "peak memory, MiB",
        "tokens sampled<br><b>budget: 60,000</b>",
        "<h2>Against the start</h2>",
        "look-alikes refused",
    ):
        assert words in html, words
    assert html.count('<svg class="plot"') == 6 + 3, "pairs of objectives, and signs of over-optimisation"
    for method in found["methods"]:
        assert html.count(f">{method}</text>") == 6 + 3
    assert "ECE" not in html, "nobody was asked for a confidence"
    assert write_benchmark_report(folder).read_text() == html


def test_it_says_how_each_method_moved_from_the_start(folder):
    path = folder / "compare.json"
    found = json.loads(path.read_text())
    found["methods"]["rloo"]["points"]["equal"]["safety"]["from_start"] = {
        "change": -0.125, "low": -0.25, "high": -0.01, "verdict": "worse",
    }  # fmt: skip
    path.write_text(to_json(found))
    html = write_benchmark_report(folder).read_text()
    part = html[html.index("Against the start") : html.index("Two objectives at a time")]
    assert "▼ worse" in part
    assert "−0.12 [−0.25, −0.01]" in part
    assert part.count("▲ better") == 4 * 4 - 1, (
        "that of ppo_max too, which spent too much: its start spent nothing"
    )
    assert "not ranked" not in part
    for method in found["methods"].values():
        for point in method["points"]["equal"].values():
            del point["from_start"]  # as it was written before there were such changes
    path.write_text(to_json(found))
    assert "Against the start" not in write_benchmark_report(folder).read_text()


def test_memory_is_in_mebibytes(folder):
    path = folder / "compare.json"
    found = json.loads(path.read_text())
    found["methods"]["rloo"]["ledger"]["peak_memory"] = 700 * 2**20
    path.write_text(to_json(found))
    assert '<td class="num">700</td>' in write_benchmark_report(folder).read_text()


def test_one_method_at_nought_does_not_lengthen_the_numbers_of_all(folder):
    path = folder / "compare.json"
    found = json.loads(path.read_text())
    found["methods"]["rloo"]["points"]["equal"]["safety"] |= {"mean": 1e-4, "low": 0.0, "high": 3e-4}
    path.write_text(to_json(found))
    assert not re.search(r"\d\.\d{4,}\]", benchmark_table(found))


def test_stated_confidence_is_shown_where_it_was_asked_for(folder):
    path = folder / "compare.json"
    found = json.loads(path.read_text())
    for method in found["methods"].values():
        method["side"]["equal"] |= {
            "ece": {"before": 0.4, "after": 0.2},
            "auroc": {"before": 0.5, "after": 0.6},
        }
    path.write_text(to_json(found))
    html = write_benchmark_report(folder).read_text()
    assert '<th scope="col" class="num">ECE</th>' in html
    assert "0.2" in html


def test_one_without_signs_of_pressure_is_still_shown(folder):
    path = folder / "compare.json"
    found = json.loads(path.read_text())
    for method in found["methods"].values():
        del method["pressure"]
        del method["side"]["equal"]["similarity"]
    path.write_text(to_json(found))
    html = write_benchmark_report(folder).read_text()
    assert "Does the judge follow?" not in html
    assert "similarity" not in html


def test_nothing_in_it_is_taken_for_more_than_text(folder):
    path = folder / "compare.json"
    found = json.loads(path.read_text())
    for text in PAYLOADS:
        found["recipe"] = found["cautions"][0] = found["refused"][0] = text
        for objective in found["objectives"].values():
            objective["judge"] = text
        found["tuning"]["over"] = {text: [text]}
        path.write_text(to_json(found))
        html = write_benchmark_report(folder).read_text()
        assert "default-src 'none'" in html
        assert not re.search(r"<(script|img|iframe|a|link|form|object)\b", html)
        assert not re.search(r"<[^>]*\son\w+\s*=", html)


def test_it_says_by_whom_the_settings_were_chosen(folder):
    path = folder / "compare.json"
    found = json.loads(path.read_text())
    assert found["tuning"]["by"] == "reward"
    html = write_benchmark_report(folder).read_text()
    assert "chosen by training reward" in html
    assert "no judge saw a trial" in html
    found["tuning"]["by"] = "judge"
    for number, (name, method) in enumerate(found["tuning"]["methods"].items()):
        method |= {"by": "judge", "best": 1.25 + number, "median": 1.125}
        method["trials"][0]["judge"], method["trials"][1]["judge"] = 1.25 + number, None
        found["methods"][name]["tuning_ledger"]["judge_calls"] = 480
    path.write_text(to_json(found))
    html = write_benchmark_report(folder).read_text()
    for words in (
        "chosen by the judge, on training prompts",
        "0.0001: judge 1.250, reward 2.500",
        "0.001: stopped itself",
        "scored 1,920 answers of trials",
        "no longer wholly fresh",
    ):
        assert words in html, words
    assert "no judge saw a trial" not in html
    assert "chosen by training reward" not in html
    del found["tuning"]["by"]  # as it was written before there was a choice
    path.write_text(to_json(found))
    assert "no judge saw a trial" in write_benchmark_report(folder).read_text()


def test_a_folder_without_numbers_or_with_others_is_an_error_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no compare\.json"):
        write_benchmark_report(tmp_path)
    (tmp_path / "compare.json").write_text('{"schema": "paretune/compare/9"}')
    with pytest.raises(DataError, match="schema: paretune/compare/9, expected paretune/compare/1"):
        write_benchmark_report(tmp_path)


def test_labels_of_marks_that_lie_together_do_not_cover_each_other():
    dots = [
        ScatterPoint(f"method{i}", i, (0.5 + i / 1000, 0.4, 0.6), (0.5, 0.4, 0.6), on_pareto_front=i == 5)
        for i in range(1, 6)
    ]
    figure = scatter_plot(dots)
    heights = sorted(mark.label_y for mark in figure.markers)
    assert all(b - a >= 12 for a, b in itertools.pairwise(heights))
    assert len({mark.shape for mark in figure.markers}) == 5
    left, right, top, bottom = figure.plot_area
    assert all(left <= m.x <= right and top <= m.y <= bottom for m in figure.markers)
    assert scatter_plot([]) is None
    alone = scatter_plot([ScatterPoint("one", 1, (0.5, 0.5, 0.5), (0.0, 0.0, 0.0))])
    assert len(alone.markers) == 1
