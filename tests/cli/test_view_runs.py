"""Whole runs of policies that think, and of policies that say how sure they are."""

import pytest
from tiny import demo

from paretune.run.io import read_json, read_jsonl

SMALLEST = (
    "run.max_steps=2",
    "data.world.num_test_prompts=8",
    "algorithm.max_new_tokens=16",
    "training.prompts_per_step=2",
)


def numbers(folder):
    return read_json(folder / "eval" / "final" / "eval.json")


@pytest.mark.parametrize("name", ["ppo_c", "ppo_m"])
def test_confidence_is_asked_for_stated_and_held_against_the_truth(tmp_path, name):
    head = ["reward.objectives.meaningfulness={loss: calibrated, right: 0.7}"] if name == "ppo_m" else []
    folder = tmp_path / "r"
    found = demo(folder, f"algorithm={{name: {name}}}", "data.world.confidence=true", *head, *SMALLEST)
    assert found.returncode == 0, found.stderr
    said = numbers(folder)["calibration"]
    assert said["correct"] == "meaningfulness >= 0.7"
    assert said["before"]["n"] + said["before"]["unstated"] == 8
    lines = [line for line in read_jsonl(folder / "metrics.jsonl") if line["stage"] == "align"]
    assert all("score/confidence/unscored_fraction" in line for line in lines)
    assert "stated confidence against meaningfulness >= 0.7: ECE" in found.stdout
    assert "calibration error" in (folder / "report.html").read_text(encoding="utf-8")


def test_thoughts_are_hidden_from_the_judge_and_watched(tmp_path):
    folder = tmp_path / "r"
    found = demo(
        folder,
        "data.world.thinking=true",
        "thinking={unscored: worst}",
        "objectives.thoughts={reads: trace, of: safety, weight: 0}",
        *SMALLEST,
        "data.world.num_demonstrations=256",
        "policy.sft.num_train_epochs=6",
        "algorithm.max_new_tokens=60",
    )
    assert found.returncode == 0, found.stderr
    said = numbers(folder)
    assert set(said["thoughts"]) == {"answer", "trace", "unread", "unit"}
    assert said["objectives"]["thoughts"]["judge"] == "the true scorer"
    lines = [line for line in read_jsonl(folder / "metrics.jsonl") if line["stage"] == "align"]
    assert all("responses/format_invalid" in line for line in lines)
    assert "thoughts (words)" in found.stdout
    assert "without readable thoughts" in (folder / "report.html").read_text(encoding="utf-8")
