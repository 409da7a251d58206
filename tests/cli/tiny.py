"""A whole experiment in seconds: the demo's recipe, cut down."""

import hashlib
import subprocess
import sys
from pathlib import Path

from forked import ENVIRONMENT, done

SMALL = (
    "data.world.prompts=24",
    "data.world.test_prompts=12",
    "data.world.rated=64",
    "data.world.demonstrations=64",
    "policy.sft.epochs=1",
    "policy.sft.batch=16",
    "reward.fit.epochs=1",
    "reward.fit.batch=16",
    "algorithm.n=2",
    "algorithm.max_new=12",
    "learn.prompts=4",
    "run.steps=4",
    "run.checkpoint_every=1",
    "run.threads=1",
    "evaluate.n=1",
    "evaluate.draws=200",
)
PROGRAM = (sys.executable, "-c", "from paretune.cli import main; main()")


def command(folder: Path, *more: str) -> list[str]:
    return ["demo", f"run.folder={folder}", *SMALL, *more]


def demo(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return done(command(folder, *more))


def demo_from_scratch(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """As a user's shell begins it, imports and all."""
    arguments = [*PROGRAM, *command(folder, *more)]
    return subprocess.run(arguments, capture_output=True, text=True, env=ENVIRONMENT, check=False)


def fingerprint(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that must be equal in two equal runs."""
    names = [
        "metrics.jsonl",
        "policy/model.safetensors",
        "reward/model/model.safetensors",
        "reward/report.json",
        "final/model.safetensors",
        "eval/final/eval.json",
        "data/manifest.json",
    ]
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
