"""A process killed with SIGKILL at any moment resumes by the same command, bit for bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paretune.run.io import read_jsonl

TESTS = Path(__file__).resolve().parent.parent
STEPS = 12

# Imports once, then forks a process per folder, since imports take most of the time.
PROGRAM = f"""
import hashlib, os, sys
import torch
torch.set_num_threads(1)
os.fsync = lambda descriptor: None  # a killed process loses nothing that it wrote
from toy import toy_recipe, toy_world
from paretune.rl.loop import train
from paretune.rl.state import trainable_parameters
from paretune.run.folder import Run

def run_training(folder):
    world = toy_world()
    with Run.start_or_resume(folder, name="toy", config_hash="toy") as run:
        run.enter_stage("align")
        train(toy_recipe(), world, max_steps={STEPS}, seed=0, run=run, save_steps=1)
    weights = b"".join(p.detach().numpy().tobytes() for p in trainable_parameters(world.models).values())
    print(hashlib.sha256(weights).hexdigest(), flush=True)

for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run_training(line.strip())
            code = 0
        finally:
            os._exit(code)
    print(pid, flush=True)
    print("ended", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Starter:
    """Runs the program in separate processes."""

    def __init__(self):
        paths = os.pathsep.join([str(TESTS), str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", PROGRAM],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, folder):
        self.process.stdin.write(f"{folder}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def ending(self):
        """The output and the exit status of a process."""
        printed = []
        while not (line := self.process.stdout.readline().split()) or line[0] != "ended":
            assert line, "the starter died"
            printed += line
        return printed, int(line[1])

    def finish(self, folder):
        self.start(folder)
        (weights,), code = self.ending()
        assert code == 0
        return weights, (folder / "metrics.jsonl").read_bytes()

    def kill_when(self, folder, ready):
        """Start, wait for a state of the folder, and kill without warning."""
        pid, deadline = self.start(folder), time.monotonic() + 120
        while not ready(folder):
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        os.kill(pid, signal.SIGKILL)
        return self.ending()[1] == -signal.SIGKILL


def lines(count):
    return lambda folder: len(read_jsonl(folder / "metrics.jsonl")) >= count


def inside_a_save(folder):
    """A checkpoint is being written, after some that are complete; or the run is nearly over."""
    names = {path.name for path in (folder / "checkpoints").glob("step-*")}
    writing = len(names) >= 2 and any(name.endswith(".tmp") for name in names)
    return writing or lines(STEPS - 4)(folder)


@pytest.mark.slow
def test_sigkill_leaves_no_trace(tmp_path):
    starter = Starter()
    weights, metrics = starter.finish(tmp_path / "whole")
    assert metrics.count(b"\n") == STEPS
    folder = tmp_path / "killed"
    for ready in (lines(1), lines(3), inside_a_save, lines(STEPS - 3)):
        assert starter.kill_when(folder, ready)
    # Leftovers of a kill inside a write.
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"stage": "align", "st')
    (folder / "checkpoints" / "LATEST.tmp").write_text("step-")
    assert starter.finish(folder) == (weights, metrics)
    # And the same command once more changes nothing.
    assert starter.finish(folder) == (weights, metrics)
    starter.process.stdin.close()
    assert starter.process.wait(30) == 0
