"""Two processes against one: the same tokens, scores, credit and weights."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import battery
from paretune.run.io import read_jsonl
from rank_jobs import Job, run_job

TESTS = Path(__file__).parents[1]
JOBS = (
    *(Job(name, steps=3) for name in ("grpo", "ppo_max", "dpo", "lagrangian_grpo", "gdpo")),
    *(
        Job(name, sharding=mode, steps=3)
        for name in ("grpo", "ppo_max")
        for mode in ("shard_grad_op", "full_shard")
    ),
    *(Job("grpo", lora=True, sharding=mode, steps=3) for mode in ("no_shard", "full_shard")),
    *(Job("grpo", prompts=1, sharding=mode, steps=2) for mode in ("no_shard", "full_shard")),
    Job("grpo", dtype="float32", steps=10),
    Job("ppo_max", dtype="float32", steps=10),
)
# In one folder: a step of two replicated ranks, one of two with divided weights, the last one by one process.
CUTS = (
    Job("ppo_max", sharding="no_shard", cut_after=2, name="cut"),
    Job("ppo_max", sharding="full_shard", cut_after=3, name="cut"),
)
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}
EXACT = ("input_ids", "response_mask", "scores")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The results of one process and of two, from one launch."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    jobs = json.dumps([asdict(job) for job in (*JOBS, *CUTS)])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [*launcher, str(TESTS / "rank_jobs.py"), str(two), jobs],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    default, language, threads = torch.get_default_dtype(), battery.language, torch.get_num_threads()
    try:
        for job in JOBS:
            run_job(job, one / job.folder)
        output = process.communicate(timeout=300)[0]
    finally:
        process.kill()
        torch.set_default_dtype(default)
        torch.set_num_threads(threads)
        battery.language = language
    assert process.returncode == 0, output[-3000:]
    return one, two


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.folder)
def test_two_ranks_train_as_one(folders, job):
    one, two = (folder / job.folder for folder in folders)
    expected, got = load_file(one / "batches.safetensors"), load_file(two / "batches.safetensors")
    assert expected.keys() == got.keys()
    for key, value in expected.items():
        assert value.shape == got[key].shape, key
        if key.startswith(EXACT):
            assert torch.equal(value.nan_to_num(), got[key].nan_to_num()), key
        else:  # credit reads model passes, which have other rows beside them
            torch.testing.assert_close(got[key], value, rtol=0, atol=TOLERANCE[job.dtype], equal_nan=True)
    assert weights_distance(one, two) < TOLERANCE[job.dtype]
    lines = zip(*(read_jsonl(folder / "metrics.jsonl") for folder in (one, two)), strict=True)
    for mine, other in lines:
        assert mine.keys() == other.keys()
        numbers = {key: x for key, x in mine.items() if isinstance(x, float)}
        exact = job.dtype == "float64"
        expected_numbers = pytest.approx(numbers, rel=1e-9 if exact else 2e-2, abs=1e-9 if exact else 1e-5)
        assert {key: other[key] for key in numbers} == expected_numbers


@pytest.mark.slow
def test_checkpoints_are_resumed_with_weights_held_in_another_way(folders):
    one, two = folders
    resumed = two / CUTS[0].folder
    saved = {
        path.name: {file.name for file in path.glob("*.safetensors")}
        for path in (resumed / "checkpoints").glob("step-*")
    }
    parts = {
        f"{name}-0000{rank}-of-00002.safetensors" for name in ("weights", "optimizer") for rank in (1, 2)
    }
    assert {"weights.safetensors", "optimizer.safetensors"} <= saved["step-000001"]
    assert parts <= saved["step-000002"]
    default, language = torch.get_default_dtype(), battery.language
    try:
        run_job(Job("ppo_max", name="cut"), resumed)
    finally:
        torch.set_default_dtype(default)
        battery.language = language
    assert weights_distance(one / Job("ppo_max").folder, resumed) < 1e-10


def weights_distance(one: Path, two: Path) -> float:
    """Norm of the difference of all trained weights, relative to their norm."""
    expected, got = load_file(one / "weights.safetensors"), load_file(two / "weights.safetensors")
    assert expected.keys() == got.keys()
    difference = sum(float((got[key] - value).double().square().sum()) for key, value in expected.items())
    return (difference / sum(float(value.double().square().sum()) for value in expected.values())) ** 0.5
