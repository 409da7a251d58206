"""`make bench`: both sides in turn on the same work, a table, and bench/results.json."""

import argparse
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.table import Row, keep, rows, shown
from bench.wire import Numbers, Worker
from bench.workloads import MADE, SCORED, WORKLOADS, model_folder, scorer_folder

RESULTS = Path(__file__).parent / "results.json"
DTYPES = ("float32", "bfloat16")
SAME = ("prompt_tokens", "score")
"""What both sides must agree on in every turn."""

Job = dict[str, Any]
Side = tuple[str, str, Job]
"""Its name, "" for ours; its module; what it is told beside the kind of work and the precision."""

REBALANCED = {"train_sampling_strategy": "batch_rebalance"}
BESIDE: Mapping[str, Sequence[Side]] = {
    "dpo": [
        ("", "ours_fits", {}),
        ("trl 1.16 DPOTrainer", "peer_fits", {"micro": 8}),
        ("trl 1.16 DPOTrainer, pair by pair", "peer_fits", {"micro": 1}),
    ],
    "reward": [
        ("", "ours_fits", {}),
        ("trl 1.16 RewardTrainer", "peer_fits", {"micro": 8}),
        ("trl 1.16 RewardTrainer, pair by pair", "peer_fits", {"micro": 1}),
    ],
    "regression": [
        ("", "ours_fits", {}),
        ("transformers Trainer", "peer_fits", {"micro": 8}),
        ("transformers Trainer, rebalanced", "peer_fits", {"micro": 2, "more": REBALANCED}),
    ],
    "scoring": [
        ("", "ours_fits", {}),
        ("transformers Trainer.predict", "peer_fits", {"by": "predict", "micro": 8}),
        ("transformers pipeline, batches of 8", "peer_fits", {"by": "pipeline", "micro": 8}),
        ("transformers pipeline, row by row", "peer_fits", {"by": "pipeline", "micro": 1}),
    ],
}
"""Work beside that of the workloads: a fit to real judgements, or a pass that scores them.

Each peer stands there twice: with its default batch of 8, and as it was fastest here, which is almost without
padding. Accumulation makes the optimiser steps the same.
"""


def sides(name: str, dtype: str) -> list[Side]:
    """Who is compared, ours first, and with what job."""
    if name in WORKLOADS:
        found: Sequence[Side] = [("", "ours", {}), ("trl 1.16 GRPOTrainer", "peer", {})]
        job: Job = {"kind": "grpo", "workload": asdict(WORKLOADS[name]), "dtype": dtype}
    else:
        found, job = BESIDE[name], {"kind": name, "dtype": dtype}
    return [(side, module, job | more) for side, module, more in found]


def compared(name: str, dtype: str, runs: int) -> list[Row]:
    """Both sides of a piece of work in turn: ours, the peer's, ours, the peer's."""
    found: dict[str, list[Numbers]] = {}
    with ExitStack() as stack:
        workers = {
            side: stack.enter_context(Worker(module, job, MADE / "logs" / f"{name}-{dtype}-{place}.log"))
            for place, (side, module, job) in enumerate(sides(name, dtype))
        }
        for side, worker in workers.items():
            found[side] = []
            worker.ready()
        for turn in range(runs + 1):
            now = {side: worker.step() for side, worker in workers.items()}
            same(name, now)
            if turn > 0:  # the first was to warm up
                for side, numbers in now.items():
                    found[side].append(numbers)
    ours = found.pop("")
    return [
        each
        for peer, theirs in found.items()
        for each in rows(ours, theirs, workload=name, dtype=dtype, peer=peer)
    ]


def same(name: str, numbers: Mapping[str, Numbers]) -> None:
    """See that all sides had the same work in this turn.

    Raises:
        SystemExit: They had not.
    """
    for figure in SAME:
        seen = {side or "ours": one[figure] for side, one in numbers.items() if figure in one}
        if seen and max(seen.values()) - min(seen.values()) > 1e-2 * max(map(abs, seen.values())):
            raise SystemExit(f"bench: {name}: not the same {figure}: {seen}")


def prepared(names: Sequence[str]) -> None:
    """Make the folders of the models, before several processes want them."""
    for name in names:
        if name in WORKLOADS:
            model_folder(WORKLOADS[name].model, WORKLOADS[name].full)
        else:
            model_folder("dialogue", False)
        if name in SCORED:
            scorer_folder()


def arguments() -> argparse.Namespace:
    """What was asked for."""
    known = [*WORKLOADS, *BESIDE]
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "--workloads", nargs="+", choices=known, default=["short", "dialogue", "long", "world"]
    )
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    """Everything that was asked for, one after the other; what is done is kept when a later part fails."""
    asked = arguments()
    prepared(asked.workloads)
    everything: list[Row] = []
    for name in asked.workloads:
        for dtype in asked.dtypes:
            start = time.perf_counter()
            found = compared(name, dtype, asked.runs)
            keep(found, asked.out)
            print(f"{shown(found)}\n{name} {dtype}: {time.perf_counter() - start:.0f} s\n", flush=True)
            everything += found
    print(shown(everything))


if __name__ == "__main__":
    main()
