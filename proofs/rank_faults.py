"""Runs on two ranks that are killed, stopped, or out of disk space: docs/results/ranks.md.

    python proofs/rank_faults.py [KILLS]

A short run of the built-in world is made once on two ranks. Then the same run is started again in other
folders, and one of its processes is killed at a random moment, over and over, until it is done; its metrics
must be those of the first. Last, a process is stopped (SIGSTOP), and the disk of the first rank is full.
"""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

RECIPE = [
    "demo",
    "run.max_steps=8",
    "run.save_steps=1",
    "training.prompts_per_step=4",
    "algorithm.max_new_tokens=16",
    "data.world.num_prompts=40",
    "data.world.num_test_prompts=12",
    "data.world.num_ratings=200",
    "data.world.num_demonstrations=200",
    "evaluate.bootstrap_samples=100",
    "reward.allow_weak_heads=true",
]
MAX_ATTEMPTS = 60


def start(folder: Path, ranks: int = 2, file_limit: int | None = None) -> subprocess.Popen[str]:
    """Start the run by torchrun; `file_limit`: size in bytes that no file of the first rank may exceed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if file_limit is not None:
        environment["PROOF_FILE_LIMIT"] = str(file_limit)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return subprocess.Popen(
        [*launcher, __file__, "--rank", "run", *RECIPE, f"run.output_dir={folder}"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run_rank() -> None:
    """One rank: the command line, with a file size limit on the first one if the proof asks for it."""
    limit = os.environ.get("PROOF_FILE_LIMIT")
    if limit is not None and os.environ["RANK"] == "0":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    from paretune.cli import main

    main(sys.argv[2:])


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes of the ranks, in the order of their start."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
        return [child for child in children if "--rank" in child.cmdline()]
    except psutil.NoSuchProcess:
        return []


def status(folder: Path) -> str:
    """What `paretune status` says."""
    command = [sys.executable, "-m", "paretune", "status", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def prove_kills(folder: Path, expected: list[dict[str, float]], seconds: float, kills: int) -> None:
    """Kill a random rank at random moments until there were enough kills, resuming each time."""
    rng, done, attempt, number_of_run = random.Random(1), 0, 0, 0
    while attempt < MAX_ATTEMPTS:
        attempt += 1
        run = folder / f"killed-{number_of_run}"
        process = start(run)
        if done < kills:
            time.sleep(rng.uniform(0.25, 0.95) * seconds)
            victims = ranks_of(process)
            if len(victims) == 2 and process.poll() is None:
                number = rng.randrange(2)
                victims[number].kill()
                done += 1
        output = process.communicate(timeout=600)[0]
        if process.returncode == 0:
            assert metrics(run) == expected, f"{run}: other metrics than without a kill"
            print(f"attempt {attempt}: complete, metrics equal; {done} kills so far", flush=True)
            if done >= kills:
                return
            number_of_run += 1
        else:
            lines = [line for line in output.splitlines() if line.startswith(("rank ", "stopped"))]
            print(f"attempt {attempt}: killed; {lines[:1]}; {status(run).splitlines()[:3]}", flush=True)
    raise SystemExit("not complete after the last attempt")


def prove_stop(folder: Path, seconds: float) -> None:
    """A stopped process is named by the other one."""
    process, run = start(folder / "stopped"), folder / "stopped"
    while not (run / "metrics.jsonl").exists() or not any(
        line.get("stage") == "align" and line["step"] >= 1 for line in metrics(run)
    ):
        time.sleep(0.2)
    victim = ranks_of(process)[1]
    victim.suspend()
    begin = time.monotonic()
    output = process.communicate(timeout=900)[0]
    named = [line for line in output.splitlines() if "does not answer" in line]
    print(f"SIGSTOP: told after {time.monotonic() - begin:.0f} s with the launcher's end: {named}")
    print(status(run))


def prove_full_disk(folder: Path) -> None:
    """The first rank cannot write: all ranks end, with exit code 3 in run.json."""
    run = folder / "full"
    process = start(run, file_limit=60_000)
    output = process.communicate(timeout=600)[0]
    print("full disk:", [line for line in output.splitlines() if "cannot" in line][:2])
    print(status(run))


def main() -> None:
    """All proofs."""
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    folder = Path(tempfile.mkdtemp(prefix="paretune-rank-faults-"))
    begin = time.monotonic()
    process = start(folder / "whole")
    output = process.communicate(timeout=900)[0]
    seconds = time.monotonic() - begin
    assert process.returncode == 0, output[-2000:]
    print(f"without a kill: {seconds:.0f} s; {folder}", flush=True)
    prove_full_disk(folder)
    prove_stop(folder, seconds)
    prove_kills(folder, metrics(folder / "whole"), seconds, kills)


if __name__ == "__main__":
    run_rank() if sys.argv[1:2] == ["--rank"] else main()
