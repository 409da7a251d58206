"""`make bench`: run both sides in alternation, print a table and update bench/results.json."""

import argparse
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.table import Row, comparison_rows, format_table, merge_into_file
from bench.wire import Numbers, Worker
from bench.workloads import BUILD_DIR, NEEDS_REWARD_MODEL, WORKLOADS, model_folder, reward_model_folder

RESULTS = Path(__file__).parent / "results.json"
DTYPES = ("float32", "bfloat16")
# Must agree between the sides in every run: otherwise they did different work.
EQUAL_FIGURES = ("prompt_tokens", "score")

Job = dict[str, Any]
Side = tuple[str, str, Job]
"""Name ("" for paretune), module, and job options besides the kind of work and the dtype."""

REBALANCED = {"train_sampling_strategy": "batch_rebalance"}
FIT_WORKLOADS: Mapping[str, Sequence[Side]] = {
    "dpo": [
        ("", "ours_fits", {}),
        ("trl 1.16 DPOTrainer", "peer_fits", {"micro_batch_size": 8}),
        ("trl 1.16 DPOTrainer, pair by pair", "peer_fits", {"micro_batch_size": 1}),
    ],
    "reward": [
        ("", "ours_fits", {}),
        ("trl 1.16 RewardTrainer", "peer_fits", {"micro_batch_size": 8}),
        ("trl 1.16 RewardTrainer, pair by pair", "peer_fits", {"micro_batch_size": 1}),
    ],
    "regression": [
        ("", "ours_fits", {}),
        ("transformers Trainer", "peer_fits", {"micro_batch_size": 8}),
        (
            "transformers Trainer, rebalanced",
            "peer_fits",
            {"micro_batch_size": 2, "trainer_options": REBALANCED},
        ),
    ],
    "scoring": [
        ("", "ours_fits", {}),
        ("transformers Trainer.predict", "peer_fits", {"method": "predict", "micro_batch_size": 8}),
        ("transformers pipeline, batches of 8", "peer_fits", {"method": "pipeline", "micro_batch_size": 8}),
        ("transformers pipeline, row by row", "peer_fits", {"method": "pipeline", "micro_batch_size": 1}),
    ],
}
"""Work besides alignment steps: fits to real ratings and preference pairs, and scoring.

Each peer is measured with its default batch size of 8, and with the settings that were fastest here, which
have almost no padding. Gradient accumulation makes the optimizer steps equal.
"""


def sides(name: str, dtype: str) -> list[Side]:
    """The sides of a comparison with their jobs, ours first."""
    if name in WORKLOADS:
        compared_sides: Sequence[Side] = [("", "ours", {}), ("trl 1.16 GRPOTrainer", "peer", {})]
        job: Job = {"kind": "grpo", "workload": asdict(WORKLOADS[name]), "dtype": dtype}
    else:
        compared_sides, job = FIT_WORKLOADS[name], {"kind": name, "dtype": dtype}
    return [(side, module, job | options) for side, module, options in compared_sides]


def compare_sides(name: str, dtype: str, runs: int) -> list[Row]:
    """Run all sides in alternation, so that changes of the machine's speed affect them equally."""
    measurements: dict[str, list[Numbers]] = {}
    with ExitStack() as stack:
        workers = {
            side: stack.enter_context(Worker(module, job, BUILD_DIR / "logs" / f"{name}-{dtype}-{index}.log"))
            for index, (side, module, job) in enumerate(sides(name, dtype))
        }
        for side, worker in workers.items():
            measurements[side] = []
            worker.ready()
        for run in range(runs + 1):
            numbers = {side: worker.step() for side, worker in workers.items()}
            require_same_work(name, numbers)
            if run > 0:  # the first is a warm-up
                for side, side_numbers in numbers.items():
                    measurements[side].append(side_numbers)
    ours = measurements.pop("")
    return [
        row
        for peer, peers in measurements.items()
        for row in comparison_rows(ours, peers, workload=name, dtype=dtype, peer=peer)
    ]


def require_same_work(name: str, numbers: Mapping[str, Numbers]) -> None:
    """Check that all sides did the same work in this run.

    Raises:
        SystemExit: They did not.
    """
    for figure in EQUAL_FIGURES:
        values = {side or "ours": one[figure] for side, one in numbers.items() if figure in one}
        # 1 %: scores differ by rounding in bfloat16.
        if values and max(values.values()) - min(values.values()) > 1e-2 * max(map(abs, values.values())):
            raise SystemExit(f"bench: {name}: the sides differ in {figure}: {values}")


def prepare_models(names: Sequence[str]) -> None:
    """Create the model folders before several processes would do so at once."""
    for name in names:
        if name in WORKLOADS:
            model_folder(WORKLOADS[name].model, WORKLOADS[name].full_length)
        else:
            model_folder("dialogue", False)
        if name in NEEDS_REWARD_MODEL:
            reward_model_folder()


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    workloads = [*WORKLOADS, *FIT_WORKLOADS]
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "--workloads", nargs="+", choices=workloads, default=["short", "dialogue", "long", "world"]
    )
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    """Run the selected comparisons; results are saved after each, so that a later failure loses nothing."""
    args = parse_arguments()
    prepare_models(args.workloads)
    all_rows: list[Row] = []
    for name in args.workloads:
        for dtype in args.dtypes:
            start = time.perf_counter()
            rows = compare_sides(name, dtype, args.runs)
            merge_into_file(rows, args.out)
            print(f"{format_table(rows)}\n{name} {dtype}: {time.perf_counter() - start:.0f} s\n", flush=True)
            all_rows += rows
    print(format_table(all_rows))


if __name__ == "__main__":
    main()
