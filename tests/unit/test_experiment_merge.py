"""A merge uses the number of threads of its first run."""

import json

import pytest
import torch

from paretune.config import bundled_recipes, load_config, resolved_yaml
from paretune.experiment import merge
from paretune.experiment.console import PlainConsole


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
