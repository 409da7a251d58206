"""A complete gradient-free run: the fit of its adapter, the search, and the evaluation."""

import json
import signal
import time

import pytest
from forked import begun
from safetensors.torch import load_file
from tiny import command, demo, fingerprint

from paretune.run.io import read_jsonl

ESSA = (
    "algorithm={name: essa, max_new_tokens: 12, population_size: 4, sft_steps: 2, sft_num_generations: 2, "
    "lora_r: 2, initial_sigma: 0.5}"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "essa"
    return folder, demo(folder, ESSA)


def aligning(folder):
    return [line for line in read_jsonl(folder / "metrics.jsonl") if line["stage"] == "align"]


def test_it_ends_with_a_model_and_its_evaluation(finished):
    folder, result = finished
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "phase: warm\n" in result.stdout
    assert "essa, 4 steps" in result.stdout
    assert [line["step"] for line in aligning(folder)] == [0, 1, 2, 3]
    numbers = json.loads((folder / "eval" / "final" / "eval.json").read_text())
    assert numbers["kl"]
    config = json.loads((folder / "final" / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 2


def test_the_policy_moved_in_its_attention_and_nowhere_else(finished):
    folder, _ = finished
    before, after = (load_file(folder / name / "model.safetensors") for name in ("sft", "final"))
    warm = load_file(folder / "phases" / "warm" / "model.safetensors")
    moved = {name for name, weight in before.items() if not weight.equal(after[name])}
    assert len(moved) == 3 * 4
    assert all("self_attn" in name for name in moved)
    assert all(not after[name].equal(warm[name]) for name in moved)


def test_the_ledger_knows_the_fit_and_the_search(finished):
    folder, _ = finished
    timing = read_jsonl(folder / "timing.jsonl")
    assert sum(line["trained_tokens"] for line in timing if line["stage"] == "warm") > 0
    for line in (line for line in timing if line["stage"] == "align"):
        assert (line["trained_tokens"], line["reward_calls"]) == (0, (4 + 1) * 4)


def test_a_killed_run_goes_on_in_more_processes_and_changes_no_number(finished, tmp_path):
    folder, _ = finished
    other = tmp_path / "killed"
    process = begun(command(other, ESSA))
    most = time.monotonic() + 300
    while len(aligning(other) if (other / "metrics.jsonl").exists() else []) < 2:
        assert process.poll() is None
        assert time.monotonic() < most
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    again = demo(other, ESSA, "run.num_workers=2")
    assert again.returncode == 0, again.stderr
    assert "stage align" in again.stdout
    assert fingerprint(other) == fingerprint(folder)


def test_eight_bits_are_for_the_search_alone(finished, tmp_path):
    """With an adapter of the recipe's own; the frozen weights that are saved are the whole ones."""
    folder, _ = finished
    other = tmp_path / "int8"
    said = ESSA.replace("lora_r: 2", "base_precision: int8")
    result = demo(other, said, "policy.lora={r: 2, target_modules: [q_proj, up_proj]}", "run.max_steps=1")
    assert result.returncode == 0, result.stderr
    before, after = (load_file(path / "model.safetensors") for path in (folder / "sft", other / "final"))
    moved = {name for name, weight in before.items() if not weight.equal(after[name])}
    assert len(moved) == 3 * 2
    assert all("q_proj" in name or "up_proj" in name for name in moved)
    assert all(float((before[name] - after[name]).abs().max()) < 1 for name in moved)
