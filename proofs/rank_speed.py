"""Two ranks of one thread against one of one thread on dialogue-7m: docs/results/ranks.md.

    python proofs/rank_speed.py [MODEL] [ROUNDS]

GRPO on 8 responses of 64 tokens per prompt: 16 prompts on one rank, the same 16 on two (strong scaling), and
32 on two (weak scaling), one after the other in each round. Seconds are the median of the steps but the
first; memory is the peak of a rank.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

RECIPE = """
name: speed
data:
  world: {num_prompts: 200, num_test_prompts: 12}
policy: {path: MODEL}
scorers:
  brief: {type: rule, rule: length, max: 20}
  varied: {type: rule, rule: repetition}
objectives: {brief: {}, varied: {}}
algorithm: {name: grpo, num_generations: 8, max_new_tokens: 64}
training: {prompts_per_step: 16, learning_rate: 1e-5}
run: {max_steps: 5, save_steps: 100}
"""
CASES = {"1 rank, 16 prompts": (1, 16), "2 ranks, 16 prompts": (2, 16), "2 ranks, 32 prompts": (2, 32)}
PHASES = ("rollout", "score", "model_passes", "update")


def run(recipe: Path, folder: Path, ranks: int, prompts: int) -> list[dict[str, float]]:
    """The timing of the steps but the first."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    arguments = [str(recipe), f"training.prompts_per_step={prompts}", f"run.output_dir={folder}"]
    subprocess.run(
        [*command, "-m", "paretune", "run", *arguments, "--until", "align"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    lines = [json.loads(line) for line in (folder / "timing.jsonl").read_text().splitlines()]
    return [line for line in lines if line["stage"] == "align"][1:]


def main() -> None:
    """Print a table of seconds a step and their ratios."""
    model = sys.argv[1] if len(sys.argv) > 1 else "../shared/models/dialogue-7m"
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    folder = Path(tempfile.mkdtemp(prefix="paretune-rank-speed-"))
    recipe = folder / "speed.yaml"
    recipe.write_text(RECIPE.replace("MODEL", str(Path(model).resolve())))
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in CASES}
    for number in range(rounds):
        for name, (ranks, prompts) in CASES.items():
            steps[name] += run(recipe, folder / f"{name.replace(' ', '-')}-{number}", ranks, prompts)
    base = statistics.median(step["seconds"] for step in steps["1 rank, 16 prompts"])
    for name, lines in steps.items():
        seconds = [line["seconds"] for line in lines]
        median, rows = statistics.median(seconds), CASES[name][1] * 8
        parts = ", ".join(
            f"{phase} {statistics.median(line[phase] for line in lines):.2f}" for phase in PHASES
        )
        memory = statistics.median(line["peak_memory"] for line in lines) / 1e6
        print(
            f"{name}: {median:.2f} s a step ({min(seconds):.2f} to {max(seconds):.2f}), {parts}; "
            f"{rows / median / (128 / base):.2f} times the rows per second of one rank; {memory:.0f} MB"
        )


if __name__ == "__main__":
    main()
