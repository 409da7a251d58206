"""Merges: threads of the first run, and verdicts, intervals and a page as those of a run."""

import json

import pytest
import torch

from paretune.config import bundled_recipes, load_config, resolved_yaml
from paretune.experiment import merge
from paretune.experiment.console import PlainConsole
from paretune.report.formatting import (
    VERDICT_SYMBOLS,
    decimals_for,
    format_number,
    format_verdict,
)
from paretune.report.merge_page import write_merge_report
from paretune.report.tables import merge_table
from paretune.run.io import to_json
from support.fake_run import make_run


class Reached(Exception):
    """Raised where a merge would load its data."""


@pytest.fixture(autouse=True)
def restore_num_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def finished_run(folder, *overrides):
    (folder / "config").mkdir(parents=True)
    (folder / "final").mkdir()
    (folder / "final" / "config.json").write_text("{}")
    (folder / "run.json").write_text(json.dumps({"status": "done"}))
    e = load_config(bundled_recipes()["demo"], [f"run.output_dir={folder}", *overrides])
    (folder / "config" / "resolved.yaml").write_text(resolved_yaml(e))
    return folder


@pytest.mark.parametrize(("configured", "expected"), [("2", 2), ("null", 1)])
def test_a_merge_uses_the_threads_of_the_first_run(tmp_path, monkeypatch, configured, expected):
    def load_data(run):
        raise Reached

    monkeypatch.setattr(merge, "load_data", load_data)
    first = finished_run(tmp_path / "a", f"run.num_threads={configured}")
    second = finished_run(tmp_path / "b", "run.num_threads=3", "objectives.safety.weight=2.0")
    with pytest.raises(Reached):
        merge.merge_runs([first, second], tmp_path / "merge", 1, PlainConsole())
    assert torch.get_num_threads() == expected


def test_merges_have_the_words_and_numbers_of_their_own_evaluations_and_a_page(tmp_path):
    grid = [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]
    for seed, weights in enumerate(grid):
        make_run(tmp_path / merge.merge_dir_name(weights), steps=1, prompts=60, seed=seed)
    results = merge.merge_results([tmp_path / "a", tmp_path / "b"], grid, tmp_path)
    for each in results["merges"]:
        evaluation = json.loads((tmp_path / each["dir"] / "eval" / "final" / "eval.json").read_text())
        for name, entry in each["scores"].items():
            assert entry == {key: evaluation["objectives"][name][key] for key in entry}
    volume = results["hypervolume"]
    assert 0 <= volume["runs"]["value"] <= volume["merges"]["value"] <= volume["merges"]["high"]
    assert 0 <= volume["difference"]["low"] <= volume["difference"]["value"]
    assert "One training run: the variance between training seeds is not known." in results["warnings"]
    (tmp_path / "merge.json").write_text(to_json(results))
    page = write_merge_report(tmp_path).read_text()
    table = merge_table(json.loads(to_json(results)))
    for each in results["merges"]:
        for entry in each["scores"].values():
            after = format_number(entry["after"], decimals_for(entry))
            assert f"{VERDICT_SYMBOLS[entry['verdict']]} {after}" in table
            assert format_verdict(entry) in page
    assert page.count('<svg class="plot"') == 6
