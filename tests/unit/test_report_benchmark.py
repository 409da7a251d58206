"""The page of a benchmark: its content, and that hostile text stays text."""

import itertools
import json
import re

import pytest

from paretune.benchmark.costs import benchmark_costs
from paretune.benchmark.results import benchmark_results
from paretune.benchmark.spec import load_benchmark
from paretune.core.errors import ConfigError, DataError
from paretune.report.benchmark_page import benchmark_table, write_benchmark_report
from paretune.report.scatter import ScatterPoint, scatter_plot
from paretune.run.io import to_json
from support.fake_benchmark import FILE, make_runs, write_benchmark_file
from support.hostile import PAYLOADS


@pytest.fixture
def folder(tmp_path):
    text = (
        FILE.format(folder=tmp_path / "benchmark")
        + "tuning: {num_trials: 2, search_space: {training.learning_rate: [1e-4, 1e-3]}}\n"
    )
    spec = load_benchmark(write_benchmark_file(tmp_path, text))
    make_runs(spec, used={"ppo_max": 63_000})
    trials = [
        {"settings": dict(settings), "training_reward": reward}
        for settings, reward in zip(spec.trial_settings, (2.5, None), strict=True)
    ]
    tuning = {
        "trials": trials,
        "selected_index": 0,
        "settings": {"training.learning_rate": 1e-4},
        "best_score": 2.5,
        "median_score": 2.5,
    }
    results = benchmark_results(
        spec,
        spec.run_specs(),
        benchmark_costs(spec, spec.run_specs(), {}),
        dict.fromkeys(spec.config.methods, tuning),
    )
    (spec.output_dir / "benchmark.json").write_text(to_json(results))
    return spec.output_dir


def test_page_shows_preregistration_results_and_costs(folder):
    html = write_benchmark_report(folder).read_text()
    results = json.loads((folder / "benchmark.json").read_text())
    for text in (
        "Not every method is ranked.",
        "ppo_max: not ranked: a run used 63,000 rollout_tokens, +5.0% from the budget of 60,000",
        "60,000 rollout_tokens; a method that misses it by more than 2\u00a0% is not ranked",
        "politeness 0.00, meaningfulness 0.00",
        "2 trials per method with the same budget, on seed 100, over training.learning_rate (0.0001, 0.001)",
        "0.001: stopped by a training guard",
        "peak memory, MiB",
        "tokens sampled<br><b>budget: 60,000</b>",
        "<h2>Change from the initial policy</h2>",
        "lookalike refused",
    ):
        assert text in html, text
    assert html.count('<svg class="plot"') == 6 + 3, "pairs of objectives, and overoptimization"
    for method in results["methods"]:
        assert html.count(f">{method}</text>") == 6 + 3
    assert "ECE" not in html, "no response states a confidence"
    assert write_benchmark_report(folder).read_text() == html


def test_page_shows_changes_from_the_initial_policy(folder):
    path = folder / "benchmark.json"
    results = json.loads(path.read_text())
    results["methods"]["rloo"]["scores"]["equal"]["safety"]["change_from_initial"] = {
        "change": -0.125, "low": -0.25, "high": -0.01, "verdict": "worse",
    }  # fmt: skip
    path.write_text(to_json(results))
    html = write_benchmark_report(folder).read_text()
    part = html[html.index("<h2>Change from the initial policy") : html.index("<h2>Pareto plots")]
    assert "▼ worse" in part
    assert "−0.12 [−0.25, −0.01]" in part
    assert part.count("▲ better") == 4 * 4 - 1, "that of ppo_max too: budgets do not matter here"
    assert "not ranked" not in part


def test_peak_memory_is_in_mebibytes(folder):
    path = folder / "benchmark.json"
    results = json.loads(path.read_text())
    results["methods"]["rloo"]["costs"]["peak_memory"] = 700 * 2**20
    path.write_text(to_json(results))
    assert '<td class="num">700</td>' in write_benchmark_report(folder).read_text()


def test_one_mean_near_zero_does_not_add_decimals_to_all(folder):
    path = folder / "benchmark.json"
    results = json.loads(path.read_text())
    results["methods"]["rloo"]["scores"]["equal"]["safety"] |= {"mean": 1e-4, "low": 0.0, "high": 3e-4}
    path.write_text(to_json(results))
    assert not re.search(r"\d\.\d{4,}\]", benchmark_table(results))


def test_stated_confidence_is_shown_if_measured(folder):
    path = folder / "benchmark.json"
    results = json.loads(path.read_text())
    for method in results["methods"].values():
        method["side_metrics"]["equal"] |= {
            "ece": {"before": 0.4, "after": 0.2},
            "auroc": {"before": 0.5, "after": 0.6},
        }
    path.write_text(to_json(results))
    html = write_benchmark_report(folder).read_text()
    assert '<th scope="col" class="num">ECE</th>' in html
    assert "0.2" in html


def test_page_without_overoptimization_metrics(folder):
    path = folder / "benchmark.json"
    results = json.loads(path.read_text())
    for method in results["methods"].values():
        del method["overoptimization"]
        del method["side_metrics"]["equal"]["similarity"]
    path.write_text(to_json(results))
    html = write_benchmark_report(folder).read_text()
    assert "<h2>Overoptimization</h2>" not in html
    assert "similarity" not in html


def test_hostile_text_stays_text(folder):
    path = folder / "benchmark.json"
    results = json.loads(path.read_text())
    for text in PAYLOADS:
        results["recipe"] = results["caveats"][0] = results["unranked"][0] = text
        for objective in results["objectives"].values():
            objective["judge"] = text
        results["tuning"]["search_space"] = {text: [text]}
        path.write_text(to_json(results))
        html = write_benchmark_report(folder).read_text()
        assert "default-src 'none'" in html
        assert not re.search(r"<(script|img|iframe|a|link|form|object)\b", html)
        assert not re.search(r"<[^>]*\son\w+\s*=", html)


def test_page_shows_who_selected_the_settings(folder):
    path = folder / "benchmark.json"
    results = json.loads(path.read_text())
    assert results["tuning"]["select_by"] == "reward"
    html = write_benchmark_report(folder).read_text()
    assert "selected by training reward" in html
    assert "No judge scored a trial" in html
    results["tuning"]["select_by"] = "judge"
    for index, (name, method) in enumerate(results["tuning"]["methods"].items()):
        method |= {"select_by": "judge", "best_score": 1.25 + index, "median_score": 1.125}
        method["trials"][0]["judge_score"], method["trials"][1]["judge_score"] = 1.25 + index, None
        results["methods"][name]["tuning_costs"]["judge_calls"] = 480
    path.write_text(to_json(results))
    html = write_benchmark_report(folder).read_text()
    for text in (
        "selected by the judge, on training prompts",
        "0.0001: judge 1.250, reward 2.500",
        "0.001: stopped by a training guard",
        "scored 1,920 responses of trials",
        "no longer fully independent",
    ):
        assert text in html, text
    assert "No judge scored a trial" not in html
    assert "selected by training reward" not in html


def test_missing_or_other_results_are_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"no benchmark\.json"):
        write_benchmark_report(tmp_path)
    (tmp_path / "benchmark.json").write_text('{"schema": "paretune/benchmark/9"}')
    with pytest.raises(DataError, match="schema: paretune/benchmark/9, expected paretune/benchmark/3"):
        write_benchmark_report(tmp_path)


def test_labels_of_close_markers_do_not_overlap():
    points = [
        ScatterPoint(f"method{i}", i, (0.5 + i / 1000, 0.4, 0.6), (0.5, 0.4, 0.6), on_pareto_front=i == 5)
        for i in range(1, 6)
    ]
    figure = scatter_plot(points)
    heights = sorted(marker.label_y for marker in figure.markers)
    assert all(b - a >= 12 for a, b in itertools.pairwise(heights))
    assert len({marker.shape for marker in figure.markers}) == 5
    left, right, top, bottom = figure.plot_area
    assert all(left <= m.x <= right and top <= m.y <= bottom for m in figure.markers)
    assert scatter_plot([]) is None
    alone = scatter_plot([ScatterPoint("one", 1, (0.5, 0.5, 0.5), (0.0, 0.0, 0.0))])
    assert len(alone.markers) == 1
