"""What a soup takes over of its members' way of running."""

import json

import pytest
import torch

from paretune.config import bundled_recipes, load_config, resolved_yaml
from paretune.experiment import merge
from paretune.experiment.console import PlainConsole


class Reached(Exception):
    """The first heavy thing of a soup."""


@pytest.fixture(autouse=True)
def as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def member(folder, *more):
    (folder / "config").mkdir(parents=True)
    (folder / "final").mkdir()
    (folder / "final" / "config.json").write_text("{}")
    (folder / "run.json").write_text(json.dumps({"status": "done"}))
    e = load_config(bundled_recipes()["demo"], [f"run.output_dir={folder}", *more])
    (folder / "config" / "resolved.yaml").write_text(resolved_yaml(e))
    return folder


@pytest.mark.parametrize(("said", "taken"), [("2", 2), ("null", 1)])
def test_it_takes_the_threads_of_the_first_run_before_it_works(tmp_path, monkeypatch, said, taken):
    def gather(experiment):
        raise Reached

    monkeypatch.setattr(merge, "gather", gather)
    first = member(tmp_path / "a", f"run.num_threads={said}")
    second = member(tmp_path / "b", "run.num_threads=3", "objectives.safety.weight=2.0")
    with pytest.raises(Reached):
        merge.merge_runs([first, second], tmp_path / "soup", 1, PlainConsole())
    assert torch.get_num_threads() == taken
