"""The recipes that come with the package load and check over the files they are written for."""

from pathlib import Path

import pytest

from paretune.config import load, shipped
from paretune.config.rules import sources
from paretune.stages.pipeline import check
from shared import shared


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_demo() -> None:
    assert check(load(shipped()["demo"])).startswith("demo: ok")


def test_real_small() -> None:
    root, model = shared("data"), shared("models", "dialogue-7m")
    e = load(shipped()["real-small"], [f"data.root={root}", f"policy.path={model}"])
    assert check(e).startswith("real-small: ok")
    named = {str(path[0]): {s.file for p, _, s in sources(e) if p[0] == path[0]} for path, _, _ in sources(e)}
    assert not named["reward"] & named["judge"]
    tests = {s.file for p, _, s in sources(e) if p[1] in {"test", "test_ratings", "test_pairs"}}
    assert all(".test." in file for file in tests)


def test_paper(tmp_path: Path) -> None:
    kinds = ("attack", "benign", "borderline")
    names = [f"{kind}.{split}.jsonl" for kind in kinds for split in ("train", "test")]
    for name in (*names, "ratings.jsonl", "ratings.other.jsonl"):
        (tmp_path / name).touch()
    e = load(shipped()["paper"], ["data.root=."])
    assert check(e).startswith("paper: ok")
    assert set(e.weights.values()) == {1.0}
    assert e.policy.lora is not None
