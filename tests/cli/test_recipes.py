"""The recipes that come with the package load and check over the files they are written for."""

import gzip
import json
from pathlib import Path

import pytest

from paretune.config import bundled_recipes, load_config
from paretune.config.sources import data_sources
from paretune.experiment.dry_run import check
from shared import shared
from support.tiny_models import tiny_model, tiny_tokenizer


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_demo() -> None:
    assert check(load_config(bundled_recipes()["demo"])).startswith("demo: ok")


def test_real_small(tmp_path: Path) -> None:
    """Over some rows of each of its files; `make proof-real` reads all of them, and trains."""
    root, recipe = shared("data"), bundled_recipes()["real-small"]
    policy = f"policy.path={shared('models', 'dialogue-7m')}"
    whole = load_config(recipe, [f"data.root={root}", policy])
    for file in {source.file for _, _, source in data_sources(whole)}:
        rows = gzip.decompress((root / file).read_bytes()).splitlines(keepends=True)
        # The prompts are asked for by source, and there must be some of each.
        some = rows[:: max(1, len(rows) // (400 if file.startswith("prompts/") else 40))]
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(gzip.compress(b"".join(some), 1))
    e = load_config(recipe, [f"data.root={tmp_path}", policy])
    assert check(e).startswith("real-small: ok")
    named = {
        str(path[0]): {s.file for p, _, s in data_sources(e) if p[0] == path[0]}
        for path, _, _ in data_sources(e)
    }
    assert not named["reward"] & named["judge"]
    tests = {s.file for p, _, s in data_sources(e) if p[1] in {"test_prompts", "test_ratings", "test_pairs"}}
    assert all(".test." in file for file in tests)


@pytest.mark.parametrize("name", ["paper", "paper-0.5b", "paper-7b", "paper-14b"])
def test_paper(name: str, tmp_path: Path) -> None:
    kinds = ("attack", "benign", "borderline")
    names = [f"{kind}.{split}.jsonl" for kind in kinds for split in ("train", "test")]
    labels = ("politeness", "meaningfulness", "actionability", "safety")
    for file in names:
        (tmp_path / file).write_text("".join(f'{{"prompt": "{file} {i}"}}\n' for i in range(3)))
    for file in ("ratings.jsonl", "ratings.other.jsonl"):
        rows = [{"prompt": f"{file} {i}", "response": "r"} | dict.fromkeys(labels, i / 40) for i in range(40)]
        (tmp_path / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = tiny_tokenizer()
    tiny_model("qwen2", len(tokenizer), context=1024).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    e = load_config(bundled_recipes()[name], ["data.root=.", "policy.path=./model"])
    text = check(e)
    assert text.startswith(f"{name}: ok\nprompts     3 attack, 3 benign, 3 borderline; 9 test\n")
    assert "\nhub " not in text
    assert [path.name for path in tmp_path.iterdir() if path.name == "runs"] == []
    assert set(e.weights.values()) == {1.0}
    assert e.policy.lora is not None
