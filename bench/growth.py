"""How the cost of a step grows: with responses a prompt, with the prompt's length, with objectives.

python -m bench.growth            measures into bench/growth.json, and draws docs/design/growth.svg
python -m bench.growth --alone    measures our side again, and keeps what was measured of the peer
python -m bench.growth --draw     draws it again
python -m bench.growth --credit   says what share of a step scoring and credit take at 10,000 rows
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
from bench.workloads import HERE, MADE, WORKLOADS, Workload, model_folder
from paretune.algorithms import ALGORITHMS
from paretune.core.rng import torch_generator
from paretune.data.loader import collate
from paretune.data.records import Message, Prompt, Sample
from paretune.reward.scorers import score_batch
from paretune.rl.algorithm_spec import AlgorithmSpec
from paretune.rl.metrics import advantage_metrics, reward_metrics, rollout_metrics

MEASURED = HERE / "growth.json"
PICTURE = HERE.parent / "docs" / "design" / "growth.svg"
BASE = Workload(name="growth", least=128, most=128, max_new=32, full=True, prompts=4, model="wide")
AXES: Mapping[str, Sequence[int]] = {
    "responses a prompt": (2, 4, 8, 16, 32, 64),
    "tokens of a prompt": (32, 64, 128, 256, 512, 1024, 2048),
    "objectives": (1, 2, 4, 8),
}
ROWS, OBJECTIVES = 10_000, 16


def at(axis: str, value: int) -> Workload:
    """The workload at one place of an axis."""
    if axis == "responses a prompt":
        return BASE.but(n=value)
    if axis == "objectives":
        return BASE.but(objectives=value)
    return BASE.but(least=value, most=value)


def measured(axis: str, value: int, module: str, runs: int) -> dict[str, float]:
    """Median seconds of a step of one side, and of its generation."""
    job = {"kind": "grpo", "workload": asdict(at(axis, value)), "dtype": "float32"}
    with Worker(module, job, MADE / "logs" / f"growth-{module}.log") as worker:
        worker.ready()
        worker.step()
        found = [worker.step() for _ in range(runs)]
    return {
        "step": median(one["step"] for one in found),
        "generate": median(one["generate"] for one in found),
        "memory": median(one["memory"] for one in found) / 2**20,
    }


def everything(runs: int, peer: bool, most: float) -> None:
    """Measure place by place, in turn; an axis of a peer ends where a step takes too long."""
    model_folder(BASE.model, BASE.full)
    before = json.loads(MEASURED.read_text()) if not peer and MEASURED.exists() else []
    found: list[dict[str, Any]] = [one for one in before if one["side"] == "peer"]
    for axis, values in AXES.items():
        slow = not peer
        for value in values:
            for module in ("ours",) if slow else ("ours", "peer"):
                numbers = measured(axis, value, module, runs)
                found.append({"axis": axis, "value": value, "side": module, **numbers})
                print(f"{axis} {value}: {module} {numbers['step']:.2f} s", flush=True)
                slow = slow or (module == "peer" and numbers["step"] > most)
            MEASURED.write_text(json.dumps(found, indent=1) + "\n")


def draw() -> None:
    """One panel an axis, both sides in it."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "paretune", "svg.fonttype": "none", "font.size": 9}
    import matplotlib.pyplot as plt

    found = json.loads(MEASURED.read_text())
    figure, panels = plt.subplots(1, len(AXES), figsize=(10, 3.2), layout="constrained")
    for panel, axis in zip(panels, AXES, strict=True):
        for side, name, style in (("ours", "paretune", "o-"), ("peer", "TRL 1.16", "s--")):
            points = [one for one in found if one["axis"] == axis and one["side"] == side]
            if points:
                panel.plot([p["value"] for p in points], [p["step"] for p in points], style, label=name)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        seconds = [one["step"] for one in found if one["axis"] == axis]
        panel.set_ylim(min(seconds) / 2, max(seconds) * 2)
        panel.set_xticks(AXES[axis], [str(value) for value in AXES[axis]])
        panel.set_xlabel(axis)
        panel.grid(visible=True, alpha=0.3)
    panels[0].set_ylabel("seconds a step")
    panels[0].legend(frameon=False)
    figure.savefig(PICTURE, metadata={"Date": None})


def credit(names: Sequence[str]) -> str:
    """What scoring (without the scorer) and credit take of a step of 10,000 rows and 16 objectives."""
    workload = WORKLOADS["short"]
    model_folder(workload.model, workload.full)
    job = {"kind": "grpo", "workload": asdict(workload), "dtype": "float32"}
    with Worker("ours", job, MADE / "logs" / "growth-credit.log") as worker:
        worker.ready()
        worker.step()
        row = median(worker.step()["step"] for _ in range(3)) / (workload.prompts * workload.n)
    lines = []
    for name in names:
        seconds = median(_credit_once(name, workload) for _ in range(3))
        lines.append(
            f"{name}: scoring and credit of {ROWS:,} rows and {OBJECTIVES} objectives take {seconds:.2f} s, "
            f"a step of as many rows {row * ROWS:.0f} s: {seconds / (row * ROWS):.2%}"
        )
    return "\n".join(lines)


def _credit_once(name: str, workload: Workload) -> float:
    """Seconds from sampled responses to advantages, metrics of the step included."""
    names = tuple(f"letters{i}" for i in range(OBJECTIVES))
    recipe = ALGORITHMS[name](dict.fromkeys(names, 1.0), n=workload.n, max_new=workload.max_new)
    assert isinstance(recipe, AlgorithmSpec)
    group = [i // workload.n for i in range(ROWS)]
    prompts = [Prompt(messages=(Message("user", str(i)),)) for i in range(ROWS // workload.n + 1)]
    rng = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, workload.max_new + 1, (ROWS,), generator=rng).tolist()
    samples = [Sample(prompt=prompts[g], response="e" * n) for g, n in zip(group, lengths, strict=True)]
    batch = collate([[1] * workload.most] * ROWS, [[2] * n for n in lengths], group, [False] * ROWS, names, 0)
    logp = torch.where(batch.response_mask, -1.0, 0.0)
    batch = batch.replace(rollout_logprobs=logp, old_logprobs=logp, ref_logprobs=logp)
    start = time.perf_counter()
    batch = score_batch(batch, samples, (Letters(names),))
    rollout_metrics(batch)
    batch, *_ = recipe.reward_steps.apply_stateful(
        batch, recipe.reward_steps.init_state(), torch_generator(0, 0, "worth")
    )
    reward_metrics(batch)
    batch, *_ = recipe.credit.apply_stateful(
        batch, recipe.credit.init_state(), torch_generator(0, 0, "credit")
    )
    advantage_metrics(batch)
    return time.perf_counter() - start


def main() -> None:
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--draw", action="store_true", help="only draw what was measured")
    parser.add_argument("--credit", action="store_true", help="only the share of scoring and credit")
    parser.add_argument("--alone", action="store_true", help="our side anew, the peer as it was")
    parser.add_argument("--most", type=float, default=40.0, help="seconds of a peer's step that end its axis")
    asked = parser.parse_args()
    if asked.credit:
        print(credit(("grpo", "gdpo", "mo_grpo")))
        return
    if not asked.draw:
        everything(asked.runs, not asked.alone, asked.most)
    draw()


if __name__ == "__main__":
    main()
