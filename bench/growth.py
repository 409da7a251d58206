"""Scaling of the cost of a step with responses per prompt, prompt length and objectives.

python -m bench.growth              measure into bench/growth.json and plot docs/design/growth.svg
python -m bench.growth --ours-only  measure paretune again and keep the measurements of the peer
python -m bench.growth --plot       plot only
python -m bench.growth --credit     fraction of a step that scoring and credit take at 10,000 rows
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import torch

from bench.ours import Letters
from bench.wire import Worker
from bench.workloads import BENCH_DIR, BUILD_DIR, WORKLOADS, Workload, model_folder
from paretune.algorithms import ALGORITHMS
from paretune.core.rng import torch_generator
from paretune.data.loader import collate
from paretune.data.records import Message, Prompt, Sample
from paretune.reward.scorers import score_batch
from paretune.rl.algorithm_spec import AlgorithmSpec
from paretune.rl.metrics import advantage_metrics, reward_metrics, rollout_metrics

RESULTS_FILE = BENCH_DIR / "growth.json"
PLOT_FILE = BENCH_DIR.parent / "docs" / "design" / "growth.svg"
BASE = Workload(
    name="growth",
    min_prompt_tokens=128,
    max_prompt_tokens=128,
    max_new_tokens=32,
    full_length=True,
    prompts=4,
    model="wide",
)
AXES: Mapping[str, Sequence[int]] = {
    "responses per prompt": (2, 4, 8, 16, 32, 64),
    "prompt tokens": (32, 64, 128, 256, 512, 1024, 2048),
    "objectives": (1, 2, 4, 8),
}
NUM_ROWS, NUM_OBJECTIVES = 10_000, 16


def workload_at(axis: str, value: int) -> Workload:
    """The workload at one point of an axis."""
    if axis == "responses per prompt":
        return BASE.replace(num_generations=value)
    if axis == "objectives":
        return BASE.replace(objectives=value)
    return BASE.replace(min_prompt_tokens=value, max_prompt_tokens=value)


def measure_point(axis: str, value: int, module: str, runs: int) -> dict[str, float]:
    """Median seconds of a step and of its generation, and peak memory in MiB, of one side."""
    job = {"kind": "grpo", "workload": asdict(workload_at(axis, value)), "dtype": "float32"}
    with Worker(module, job, BUILD_DIR / "logs" / f"growth-{module}.log") as worker:
        worker.ready()
        worker.step()
        steps = [worker.step() for _ in range(runs)]
    return {
        "step": median(step["step"] for step in steps),
        "generate": median(step["generate"] for step in steps),
        "memory": median(step["memory"] for step in steps) / 2**20,
    }


def measure_all(runs: int, with_peer: bool, max_seconds: float) -> None:
    """Measure all points in alternation; an axis of the peer ends where a step exceeds `max_seconds`."""
    model_folder(BASE.model, BASE.full_length)
    stored = json.loads(RESULTS_FILE.read_text()) if not with_peer and RESULTS_FILE.exists() else []
    points: list[dict[str, Any]] = [point for point in stored if point["side"] == "peer"]
    for axis, values in AXES.items():
        skip_peer = not with_peer
        for value in values:
            for module in ("ours",) if skip_peer else ("ours", "peer"):
                numbers = measure_point(axis, value, module, runs)
                points.append({"axis": axis, "value": value, "side": module, **numbers})
                print(f"{axis} {value}: {module} {numbers['step']:.2f} s", flush=True)
                skip_peer = skip_peer or (module == "peer" and numbers["step"] > max_seconds)
            RESULTS_FILE.write_text(json.dumps(points, indent=1) + "\n")


def plot() -> None:
    """One panel per axis with both sides."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "paretune", "svg.fonttype": "none", "font.size": 9}
    import matplotlib.pyplot as plt

    measurements = json.loads(RESULTS_FILE.read_text())
    figure, panels = plt.subplots(1, len(AXES), figsize=(10, 3.2), layout="constrained")
    for panel, axis in zip(panels, AXES, strict=True):
        for side, name, style in (("ours", "paretune", "o-"), ("peer", "TRL 1.16", "s--")):
            points = [p for p in measurements if p["axis"] == axis and p["side"] == side]
            if points:
                panel.plot([p["value"] for p in points], [p["step"] for p in points], style, label=name)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        seconds = [p["step"] for p in measurements if p["axis"] == axis]
        panel.set_ylim(min(seconds) / 2, max(seconds) * 2)
        panel.set_xticks(AXES[axis], [str(value) for value in AXES[axis]])
        panel.set_xlabel(axis)
        panel.grid(visible=True, alpha=0.3)
    panels[0].set_ylabel("seconds per step")
    panels[0].legend(frameon=False)
    figure.savefig(PLOT_FILE, metadata={"Date": None})


def credit_fraction(names: Sequence[str]) -> str:
    """Fraction of a step that scoring (without the scorer) and credit take, at 10,000 rows, 16 objectives."""
    workload = WORKLOADS["short"]
    model_folder(workload.model, workload.full_length)
    job = {"kind": "grpo", "workload": asdict(workload), "dtype": "float32"}
    with Worker("ours", job, BUILD_DIR / "logs" / "growth-credit.log") as worker:
        worker.ready()
        worker.step()
        seconds_per_row = median(worker.step()["step"] for _ in range(3)) / (
            workload.prompts * workload.num_generations
        )
    lines, step_seconds = [], seconds_per_row * NUM_ROWS
    for name in names:
        seconds = median(_credit_once(name, workload) for _ in range(3))
        lines.append(
            f"{name}: scoring and credit of {NUM_ROWS:,} rows and {NUM_OBJECTIVES} objectives take "
            f"{seconds:.2f} s, a step of as many rows {step_seconds:.0f} s: {seconds / step_seconds:.2%}"
        )
    return "\n".join(lines)


def _credit_once(name: str, workload: Workload) -> float:
    """Seconds from sampled responses to advantages, including the step's metrics."""
    names = tuple(f"letters{i}" for i in range(NUM_OBJECTIVES))
    spec = ALGORITHMS[name](
        dict.fromkeys(names, 1.0),
        num_generations=workload.num_generations,
        max_new_tokens=workload.max_new_tokens,
    )
    assert isinstance(spec, AlgorithmSpec)
    group = [i // workload.num_generations for i in range(NUM_ROWS)]
    prompts = [
        Prompt(messages=(Message("user", str(i)),)) for i in range(NUM_ROWS // workload.num_generations + 1)
    ]
    rng = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, workload.max_new_tokens + 1, (NUM_ROWS,), generator=rng).tolist()
    samples = [Sample(prompt=prompts[g], response="e" * n) for g, n in zip(group, lengths, strict=True)]
    batch = collate(
        [[1] * workload.max_prompt_tokens] * NUM_ROWS,
        [[2] * n for n in lengths],
        group,
        [False] * NUM_ROWS,
        names,
        0,
    )
    logp = torch.where(batch.response_mask, -1.0, 0.0)
    batch = batch.replace(rollout_logprobs=logp, old_logprobs=logp, ref_logprobs=logp)
    start = time.perf_counter()
    batch = score_batch(batch, samples, (Letters(names),))
    rollout_metrics(batch)
    batch, *_ = spec.reward_steps.apply_stateful(
        batch, spec.reward_steps.init_state(), torch_generator(0, 0, "worth")
    )
    reward_metrics(batch)
    batch, *_ = spec.credit.apply_stateful(batch, spec.credit.init_state(), torch_generator(0, 0, "credit"))
    advantage_metrics(batch)
    return time.perf_counter() - start


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--plot", action="store_true", help="only plot the stored measurements")
    parser.add_argument("--credit", action="store_true", help="only the fraction of scoring and credit")
    parser.add_argument(
        "--ours-only", action="store_true", help="measure paretune only and keep the peer's results"
    )
    parser.add_argument(
        "--max-seconds", type=float, default=40.0, help="a peer's step of this length ends its axis"
    )
    args = parser.parse_args()
    if args.credit:
        print(credit_fraction(("grpo", "gdpo", "mo_grpo")))
        return
    if not args.plot:
        measure_all(args.runs, not args.ours_only, args.max_seconds)
    plot()


if __name__ == "__main__":
    main()
