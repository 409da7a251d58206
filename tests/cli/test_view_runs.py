"""Whole runs of policies with thinking, and of policies that state a confidence."""

import pytest
from tiny import demo

from paretune.run.io import read_json, read_jsonl

SMALLEST = (
    "run.max_steps=2",
    "data.world.num_test_prompts=8",
    "algorithm.max_new_tokens=16",
    "training.prompts_per_step=2",
)


def evaluation_of(folder):
    return read_json(folder / "eval" / "final" / "eval.json")


@pytest.mark.parametrize("name", ["ppo_c", "ppo_m"])
def test_stated_confidence_is_calibrated_against_the_judge(tmp_path, name):
    head = (
        ["reward.objectives.meaningfulness={loss: calibrated, correct_threshold: 0.7}"]
        if name == "ppo_m"
        else []
    )
    folder = tmp_path / "r"
    process = demo(folder, f"algorithm={{name: {name}}}", "data.world.confidence=true", *head, *SMALLEST)
    assert process.returncode == 0, process.stderr
    calibration = evaluation_of(folder)["calibration"]
    assert calibration["correctness_threshold"] == "meaningfulness >= 0.7"
    assert calibration["before"]["num_stated"] + calibration["before"]["num_unstated"] == 8
    lines = [line for line in read_jsonl(folder / "metrics.jsonl") if line["stage"] == "align"]
    assert all("score/confidence/unscored_fraction" in line for line in lines)
    assert "stated confidence against meaningfulness >= 0.7: ECE" in process.stdout
    assert "calibration error" in (folder / "report.html").read_text(encoding="utf-8")


def test_thinking_is_hidden_from_the_judge_and_measured(tmp_path):
    folder = tmp_path / "r"
    process = demo(
        folder,
        "data.world.thinking=true",
        "thinking={invalid_format: penalize}",
        "objectives.thoughts={scored_text: thinking, scores_from: safety, weight: 0}",
        *SMALLEST,
        "data.world.num_demonstrations=256",
        "policy.sft.num_train_epochs=6",
        "algorithm.max_new_tokens=60",
    )
    assert process.returncode == 0, process.stderr
    evaluation = evaluation_of(folder)
    assert set(evaluation["thinking"]) == {"response", "thinking", "invalid_format", "unit"}
    assert evaluation["objectives"]["thoughts"]["judge"] == "the ground truth"
    lines = [line for line in read_jsonl(folder / "metrics.jsonl") if line["stage"] == "align"]
    assert all("responses/format_invalid" in line for line in lines)
    assert "thinking (words)" in process.stdout
    assert "invalid thinking format" in (folder / "report.html").read_text(encoding="utf-8")
