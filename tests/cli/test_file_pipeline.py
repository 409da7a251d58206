"""A complete run over files in seconds: a tiny model with an adapter, a CSV, pairs, and a judge."""

import csv
import json
from pathlib import Path

import pytest

from paretune.cli import main
from support.tiny_models import tiny_model, tiny_tokenizer

RECIPE = """\
name: files
data:
  root: rows
  prompts:
    harmful: {file: prompts.jsonl, where: {harmful: true}, category: harmful}
    benign: {file: prompts.jsonl, where: {harmful: false}, sampling_weight: 2.0}
  test_prompts:
    harmful: {file: test.jsonl, where: {harmful: true}, category: harmful}
    benign: {file: test.jsonl, where: {harmful: false}}
policy: {path: model, lora: {r: 2, alpha: 4}}
reward:
  objectives: {polite: {}, safe: {}, helpful: {loss: bradley_terry}}
  ratings:
    raters: {file: ratings.csv, labels: {polite: politeness, safe: {from: toxicity, scale: -1, offset: 1}}}
  pairs: {people: {file: pairs.jsonl, objective: helpful}}
  holdout_fraction: 0.3
  allow_weak_heads: true
  training: {num_train_epochs: 1, learning_rate: 1e-3, batch_size: 8}
judge:
  objectives: {polite: {}, helpful: {loss: bradley_terry}}
  ratings: {others: {file: others.csv, labels: {polite: politeness}}}
  pairs: {others: {file: others.jsonl, objective: helpful}}
  holdout_fraction: 0.3
  training: {num_train_epochs: 1, learning_rate: 1e-3, batch_size: 8}
objectives:
  polite: {}
  safe: {}
  helpful: {weight: 0.5, gate: safe >= 0.5, gate_fallback: -3}
algorithm: {name: grpo, num_generations: 2, max_new_tokens: 6}
training: {learning_rate: 1e-3, prompts_per_step: 4}
run: {max_steps: 2, save_steps: 1, num_threads: 1}
evaluate: {bootstrap_samples: 200, max_prompts: 6}
"""


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def ratings(path: Path, word: str) -> None:
    """Ratings of which every second and every third has an empty cell."""
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["prompt", "response", "politeness", "toxicity"])
        for i in range(24):
            polite, toxic = "" if i % 2 else i / 24, "" if i % 3 == 0 else 1 - i / 24
            lines.writerow([f"{word} {i}", f"reply {i}, thanks", polite, toxic])


def pairs(path: Path, word: str) -> None:
    sides = [(f"{word} {i}", f"do step {i}", f"no {i}") for i in range(16)]
    write(path, [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in sides])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    rows = folder / "rows"
    rows.mkdir()
    for name, count in (("prompts", 10), ("test", 8)):
        asked = [{"prompt": f"{name} {i}?", "harmful": i % 2 == 0} for i in range(count)]
        write(
            rows / f"{name}.jsonl", [*asked, {"prompt": "Test 1!", "harmful": False}][: count + (count > 8)]
        )
    ratings(rows / "ratings.csv", "rated")
    ratings(rows / "others.csv", "other")
    pairs(rows / "pairs.jsonl", "pair")
    pairs(rows / "others.jsonl", "further")
    tokenizer = tiny_tokenizer()
    tiny_model("llama", len(tokenizer), width=16, heads=2, context=96).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "files.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with pytest.raises(SystemExit) as end:
            main(["run", "files.yaml"])
    assert not end.value.code
    return folder / "runs" / "files"


def test_every_stage_leaves_what_it_made(finished: Path) -> None:
    assert (finished / "report.html").exists()
    for name in ("reward/model", "judge/model", "final", "final/adapter"):
        assert list((finished / name).glob("*.safetensors")), name
    assert json.loads((finished / "run.json").read_text())["status"] == "done"


def test_the_manifest_says_what_was_read_and_left_out(finished: Path) -> None:
    manifest = json.loads((finished / "data" / "manifest.json").read_text())
    assert manifest["train_prompts"] == {"harmful": 5, "benign": 5}
    assert manifest["test_prompts"] == 6
    assert set(manifest["file_sha256"]) == {
        "prompts.jsonl",
        "test.jsonl",
        "ratings.csv",
        "others.csv",
        "pairs.jsonl",
        "others.jsonl",
    }
    assert sum(manifest["reward"].values()) == 24 - 4 + 16
    assert sum(manifest["judge"].values()) == 12 + 16


def test_an_empty_cell_is_nobodys_label(finished: Path) -> None:
    report = json.loads((finished / "reward" / "report.json").read_text())
    assert set(report["objectives"]) == {"polite", "safe", "helpful"}
    assert report["objectives"]["polite"]["num_ratings"] < report["test"]["ratings"]
    assert report["objectives"]["helpful"]["num_pairs"] == report["test"]["pairs"] > 0


def test_the_judge_scores_what_it_knows(finished: Path) -> None:
    numbers = json.loads((finished / "eval" / "final" / "eval.json").read_text())
    assert numbers["num_prompts"] == 6
    assert numbers["objectives"]["polite"]["num_scored"] == 6
    assert numbers["objectives"]["helpful"]["judge"]
    assert numbers["objectives"]["safe"]["judge"] == "none"
    assert numbers["objectives"]["safe"]["num_scored"] == 0
