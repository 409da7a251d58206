"""A complete run in seconds: the demo recipe with small sizes."""

import hashlib
import subprocess
import sys
from pathlib import Path

from forked import ENVIRONMENT, done

SMALL = (
    "data.world.num_prompts=24",
    "data.world.num_test_prompts=12",
    "data.world.num_ratings=64",
    "data.world.num_demonstrations=64",
    "policy.sft.num_train_epochs=1",
    "policy.sft.batch_size=16",
    "reward.training.num_train_epochs=1",
    "reward.training.batch_size=16",
    "reward.allow_weak_heads=true",
    "algorithm.num_generations=2",
    "algorithm.max_new_tokens=12",
    "training.prompts_per_step=4",
    "run.max_steps=4",
    "run.save_steps=1",
    "run.num_threads=1",
    "evaluate.num_generations=1",
    "evaluate.bootstrap_samples=200",
)
PROGRAM = (sys.executable, "-c", "from paretune.cli import main; main()")


def command(folder: Path, *more: str) -> list[str]:
    return ["demo", f"run.output_dir={folder}", *SMALL, *more]


def demo(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return done(command(folder, *more))


def demo_from_scratch(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """In a fresh interpreter, as from a user's shell."""
    arguments = [*PROGRAM, *command(folder, *more)]
    return subprocess.run(arguments, capture_output=True, text=True, env=ENVIRONMENT, check=False)


def fingerprint(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that must be identical in two identical runs."""
    names = [
        "metrics.jsonl",
        "sft/model.safetensors",
        "reward/model/model.safetensors",
        "reward/report.json",
        "final/model.safetensors",
        "eval/final/eval.json",
        "data/manifest.json",
    ]
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
