"""What a soup takes over of its members' way of running."""

import json

import pytest
import torch

from paretune.config import load, resolved, shipped
from paretune.stages import soups
from paretune.stages.console import PlainConsole


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
    e = load(shipped()["demo"], [f"run.folder={folder}", *more])
    (folder / "config" / "resolved.yaml").write_text(resolved(e))
    return folder


@pytest.mark.parametrize(("said", "taken"), [("2", 2), ("null", 1)])
def test_it_takes_the_threads_of_the_first_run_before_it_works(tmp_path, monkeypatch, said, taken):
    def gather(experiment):
        raise Reached

    monkeypatch.setattr(soups, "gather", gather)
    first = member(tmp_path / "a", f"run.threads={said}")
    second = member(tmp_path / "b", "run.threads=3", "objectives.safety.weight=2.0")
    with pytest.raises(Reached):
        soups.soups([first, second], tmp_path / "soup", 1, PlainConsole())
    assert torch.get_num_threads() == taken
