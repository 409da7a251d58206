"""The page of a comparison: what it says, and that nothing in it is taken for more than text."""

import itertools
import json
import re

import pytest

from hostile import PAYLOADS
from madeup_contest import FILE, make_runs, written
from paretune.compare.ledger import rows
from paretune.compare.numbers import numbers_of
from paretune.config.contest import load_contest
from paretune.errors import ConfigError, DataError
from paretune.files import to_json
from paretune.report.scatter import Dot, scatter
from paretune.report.versus import versus_table, write_versus


@pytest.fixture
def folder(tmp_path):
    text = FILE.format(folder=tmp_path / "cmp") + "tuning: {trials: 2, over: {learn.lr: [1e-4, 1e-3]}}\n"
    contest = load_contest(written(tmp_path, text))
    make_runs(contest, spent={"ppo_max": 63_000})
    trials = [
        {"set": dict(s), "training_reward": r} for s, r in zip(contest.trials, (2.5, None), strict=True)
    ]
    tuned = {"trials": trials, "chosen": 0, "set": {"learn.lr": 1e-4}, "best": 2.5, "median": 2.5}
    found = numbers_of(
        contest, contest.runs(), rows(contest, contest.runs(), {}), dict.fromkeys(contest.said.methods, tuned)
    )
    (contest.folder / "compare.json").write_text(to_json(found))
    return contest.folder


def test_it_says_what_was_declared_what_came_out_and_what_it_took(folder):
    html = write_versus(folder).read_text()
    found = json.loads((folder / "compare.json").read_text())
    for words in (
        "Not every method is ranked.",
        "ppo_max: not ranked: a run spent 63,000 rollout_tokens, +5.0% of the 60,000 declared",
        "60,000 rollout_tokens; 2 % off, and a method is not ranked",
        "politeness 0.00, meaningfulness 0.00",
        "2 trials of the same budget for every method, on seed 100, over learn.lr (0.0001, 0.001)",
        "0.001: stopped itself",
        "peak memory, MB",
        "look-alikes refused",
    ):
        assert words in html, words
    assert html.count('<svg class="plot"') == 6 + 3, "pairs of objectives, and signs of over-optimisation"
    for method in found["methods"]:
        assert html.count(f">{method}</text>") == 6 + 3
    assert "ECE" not in html, "nobody was asked for a confidence"
    assert write_versus(folder).read_text() == html


def test_one_method_at_nought_does_not_lengthen_the_numbers_of_all(folder):
    path = folder / "compare.json"
    found = json.loads(path.read_text())
    found["methods"]["rloo"]["points"]["equal"]["safety"] |= {"mean": 1e-4, "low": 0.0, "high": 3e-4}
    path.write_text(to_json(found))
    assert not re.search(r"\d\.\d{4,}\]", versus_table(found))


def test_stated_confidence_is_shown_where_it_was_asked_for(folder):
    path = folder / "compare.json"
    found = json.loads(path.read_text())
    for method in found["methods"].values():
        method["side"]["equal"] |= {
            "ece": {"before": 0.4, "after": 0.2},
            "auroc": {"before": 0.5, "after": 0.6},
        }
    path.write_text(to_json(found))
    html = write_versus(folder).read_text()
    assert '<th scope="col" class="num">ECE</th>' in html
    assert "0.2" in html


def test_one_without_signs_of_pressure_is_still_shown(folder):
    path = folder / "compare.json"
    found = json.loads(path.read_text())
    for method in found["methods"].values():
        del method["pressure"]
        del method["side"]["equal"]["similarity"]
    path.write_text(to_json(found))
    html = write_versus(folder).read_text()
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
        html = write_versus(folder).read_text()
        assert "default-src 'none'" in html
        assert not re.search(r"<(script|img|iframe|a|link|form|object)\b", html)
        assert not re.search(r"<[^>]*\son\w+\s*=", html)


def test_a_folder_without_numbers_or_with_others_is_an_error_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no compare\.json"):
        write_versus(tmp_path)
    (tmp_path / "compare.json").write_text('{"schema": "paretune/compare/9"}')
    with pytest.raises(DataError, match="schema: paretune/compare/9, expected paretune/compare/1"):
        write_versus(tmp_path)


def test_labels_of_marks_that_lie_together_do_not_cover_each_other():
    dots = [
        Dot(f"method{i}", i, (0.5 + i / 1000, 0.4, 0.6), (0.5, 0.4, 0.6), front=i == 5) for i in range(1, 6)
    ]
    figure = scatter(dots)
    heights = sorted(mark.label_y for mark in figure.marks)
    assert all(b - a >= 12 for a, b in itertools.pairwise(heights))
    assert len({mark.shape for mark in figure.marks}) == 5
    left, right, top, bottom = figure.frame
    assert all(left <= m.x <= right and top <= m.y <= bottom for m in figure.marks)
    assert scatter([]) is None
    alone = scatter([Dot("one", 1, (0.5, 0.5, 0.5), (0.0, 0.0, 0.0))])
    assert len(alone.marks) == 1
