"""The page and the terminal table of a sweep: their content, and that hostile text stays text."""

import json
import re
import unicodedata

import pytest

from paretune.core.errors import ConfigError, DataError
from paretune.report.sweep_page import headline, point_labels, sweep_table, write_sweep_report
from paretune.run.io import to_json
from support.fake_sweep import fake_sweep, results_of
from support.hostile import PAYLOADS

FAILED = {"point": "w125-875", "seed": 0, "reason": "step 3: the loss is NaN"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "swept"
    sweep, shares = fake_sweep(out, points=5)
    (out / "sweep.json").write_text(to_json(results_of(sweep, shares, failed=[FAILED])))
    return out


@pytest.fixture
def results(folder):
    return json.loads((folder / "sweep.json").read_text())


def test_page_shows_front_points_dominance_and_the_way_to_choose(folder, results):
    html = write_sweep_report(folder).read_text()
    for text in (
        "<h2>The front</h2>",
        "<h2>Who dominates whom</h2>",
        "1 run failed.",
        "w125-875, seed 0: step 3: the loss is NaN",
        "60 steps per run",
        "One training run: the variance between training seeds is not known.",
        "5 points on the same prompts",
        "alone has 1.00",
        f"paretune choose {folder}",
    ):
        assert text in html, text
    assert html.count('<svg class="plot"') == 1
    assert html.count('<polyline class="front') == 1
    for label in point_labels(results).values():
        assert f">{label}</text>" in html
    assert "<script" not in html
    assert not re.search(r"(src|href)=", html)
    assert write_sweep_report(folder).read_text() == html


def test_verdicts_of_page_and_terminal_are_those_of_the_results(folder, results):
    html, table = write_sweep_report(folder).read_text(), sweep_table(results)
    verdicts = [
        score["change_from_initial"]["verdict"]
        for point in results["points"]
        for score in point["scores"].values()
    ]
    for verdict, symbol in (("better", "▲"), ("worse", "▼"), ("no evidence", "●")):
        assert html.count(f"{symbol} {verdict}") == verdicts.count(verdict)
        rows = [line for line in table.splitlines() if re.match(r"[A-E] ", line)]
        assert sum(row.count(symbol) for row in rows) == verdicts.count(verdict)
    assert "⚠ failed: w125-875, seed 0" in table


def test_knee_is_named_only_as_sure_as_it_is(results):
    results["knee"] = {"point": "w500-500", "bulge": 0.4, "probability": 0.8, "is_clear": True}
    assert headline(results)[1] == "Knee: C (0.5 : 0.5), in 80 % of the bootstrap samples."
    assert re.search(r"^C .*knee$", sweep_table(results), re.MULTILINE)
    results["knee"] |= {"probability": 0.3, "is_clear": False}
    assert headline(results)[1].startswith("No clear knee: C (0.5 : 0.5) is it in 30 %")
    assert not re.search(r"^C .*knee$", sweep_table(results), re.MULTILINE)
    results["knee"] = None
    assert headline(results)[1].startswith("No knee: no point lies beyond")
    for point in results["points"][1:]:
        point["on_pareto_front"] = False
    assert headline(results)[1] == "No knee: a front of fewer than three points has none."


def test_three_objectives_have_a_plot_per_pair_without_a_line(folder, results, tmp_path):
    results["over"] = ["safety", "actionability", "politeness"]
    results["units"]["politeness"] = 0.1
    (tmp_path / "sweep.json").write_text(to_json(results))
    html = write_sweep_report(tmp_path).read_text()
    assert html.count('<svg class="plot"') == 3
    assert "<polyline" not in html


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_text_stays_text(results, payload, tmp_path):
    results |= {"name": payload, "recipe": payload, "method": payload}
    results["caveats"] = [payload]
    results["failed"] = [FAILED | {"reason": payload}]
    for objective in results["objectives"].values():
        objective["judge"] = payload
    (tmp_path / "sweep.json").write_text(to_json(results))
    html = write_sweep_report(tmp_path).read_text()
    assert "<script" not in html
    assert "<img" not in html
    assert "javascript:" not in html or "javascript:" in payload
    assert not any(unicodedata.category(c) == "Cc" for c in sweep_table(results).replace("\n", ""))


def test_missing_and_other_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no sweep.json; fix: name the folder of a finished sweep"):
        write_sweep_report(tmp_path)
    (tmp_path / "sweep.json").write_text('{"schema": "paretune/sweep/0"}')
    with pytest.raises(DataError, match="fix: run `paretune sweep` again"):
        write_sweep_report(tmp_path)
