import json
import random
import time

import pytest
from forked import begun
from tiny import command, demo, demo_from_scratch, fingerprint

KILLS = 4
EVALUATED = (
    "evaluate.eval_steps=2",
    "evaluate.eval_prompts=8",
    "evaluate.select_checkpoint=lower_bound",
)
"""The policy is evaluated during the training too, and the best step is kept."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return folder, demo_from_scratch(folder, *EVALUATED)


def test_a_run_ends_with_its_table_and_the_path_of_its_report(finished):
    folder, result = finished
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    for word in ("objective", "politeness", "meaningfulness", "actionability", "safety", "verdict"):
        assert word in result.stdout
    assert str(folder / "report.html") in result.stdout.splitlines()[-1]
    assert f"model: {folder / 'final'}\n" in result.stdout
    assert (folder / "report.html").stat().st_size > 10_000


def test_eval_json_has_the_documented_keys(finished):
    folder, _ = finished
    numbers = json.loads((folder / "eval" / "final" / "eval.json").read_text())
    keys = {"num_scored", "before", "after", "change", "low", "high", "verdict", "judge"}
    for name in ("politeness", "meaningfulness", "actionability", "safety"):
        assert keys <= numbers["objectives"][name].keys()
    assert {"kl", "length", "refusal_rate"} <= numbers.keys()
    assert {"harmful", "lookalike"} <= numbers["refusal_rate"].keys()


def test_metrics_hold_every_step_of_every_stage_once(finished):
    folder, _ = finished
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = {
        stage: [x["step"] for x in lines if x["stage"] == stage] for stage in (("sft", "reward", "align"))
    }
    assert steps == {"sft": [0, 1, 2, 3], "reward": [0, 1, 2, 3], "align": [0, 1, 2, 3]}
    assert {"score/safety/mean", "weighted_score/safety/mean", "variance_share/safety", "kl/k3"} <= lines[
        -1
    ].keys()


def test_timing_and_throughput_are_recorded(finished):
    folder, _ = finished
    lines = [json.loads(line) for line in (folder / "timing.jsonl").read_text().splitlines()]
    for line in (line for line in lines if line["stage"] == "align"):
        assert min(line[f"flops/{phase}"] for phase in ("rollout", "score", "model_passes", "update")) > 0
        sampled = line["tokens_per_second/rollout"] * line["rollout"]
        if "evaluate" in line:  # its tokens count in the budget, not in the speed of the rollout
            assert 0 < sampled < line["rollout_tokens"]
        else:
            assert sampled == pytest.approx(line["rollout_tokens"])
        assert line["tokens_per_second/update"] * line["update"] == pytest.approx(line["trained_tokens"])
    matmul = json.loads((folder / "env.json").read_text())["matmul"]
    assert matmul["flops_per_second"] > 0
    assert (matmul["device"], matmul["dtype"], matmul["num_threads"]) == ("cpu", "float32", 1)
    assert "1024 x 1024 matrices" in (folder / "report.html").read_text()


def test_the_same_command_again_changes_no_number(finished):
    folder, _ = finished
    before = fingerprint(folder)
    again = demo(folder, *EVALUATED)
    assert again.returncode == 0, again.stderr
    assert f"resuming {folder}: every stage is complete\n" in again.stdout
    assert fingerprint(folder) == before


def test_a_resume_may_change_the_checkpointing(finished):
    folder, first = finished
    assert "resuming" not in first.stdout
    before = fingerprint(folder)
    again = demo(folder, *EVALUATED, "run.save_total_limit=3", "run.save_steps=2")
    assert again.returncode == 0, again.stderr
    assert fingerprint(folder) == before


def test_another_recipe_is_rejected_in_the_same_folder(finished):
    folder, _ = finished
    before = fingerprint(folder)
    other = demo(folder, *EVALUATED, "run.seed=5")
    assert other.returncode == 2
    assert "another run (run.seed is 0 there, 5 here)" in other.stderr
    assert len(other.stderr.splitlines()) == 1
    assert fingerprint(folder) == before


def test_the_saved_models_load_in_plain_transformers(finished):
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    folder, _ = finished
    assert AutoModelForCausalLM.from_pretrained(folder / "final").num_parameters() > 0
    reward = AutoModelForSequenceClassification.from_pretrained(folder / "reward" / "model")
    assert list(reward.config.id2label.values()) == [
        "politeness",
        "meaningfulness",
        "actionability",
        "safety",
    ]
    assert AutoTokenizer.from_pretrained(folder / "final").chat_template


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_like_the_unbroken_one(finished, tmp_path):
    """kill -9 in any stage: the same command goes on, and ends with the bytes of the unbroken run."""
    folder, _ = finished
    chance = random.Random(0)
    metrics = tmp_path / "broken" / "metrics.jsonl"
    for _ in range(KILLS):
        process = begun(command(tmp_path / "broken", *EVALUATED))
        seen = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        target = seen + chance.randint(1, 4)
        while process.poll() is None:
            if metrics.exists() and metrics.read_bytes().count(b"\n") >= target:
                time.sleep(chance.random() * 0.1)
                process.kill()
                break
            time.sleep(0.01)
        assert process.wait() in {0, -9}, process.stderr.read_text()
    last = demo(tmp_path / "broken", *EVALUATED)
    assert last.returncode == 0, last.stderr
    for name in ("eval/selection.json", "eval/step-000004/eval.json"):
        assert (tmp_path / "broken" / name).read_bytes() == (folder / name).read_bytes()
    assert fingerprint(tmp_path / "broken") == fingerprint(folder)
