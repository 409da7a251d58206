"""The judged scores of all runs of a comparison, read from their folders, and a bootstrap of their means."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from paretune.config.contest import BenchmarkSpec, RunSpec
from paretune.errors import DataError
from paretune.evaluate.hierarchy import bootstrap_means, mean_over_seeds


@dataclass(frozen=True, kw_only=True)
class BenchmarkScores:
    """Judged scores of all runs, and the bootstrap of their means."""

    objectives: tuple[str, ...]
    index: Mapping[tuple[str, str, str], int]
    """(method, weighting, objective) -> cell."""
    seed_means: NDArray[np.float64]
    """[S, C]: the mean of every seed."""
    mean: NDArray[np.float64]
    bootstrap_samples: NDArray[np.float64]
    """[D, C]"""
    initial_mean: NDArray[np.float64]
    """[C]: the mean of the policies that the runs of a cell began with, on the same prompts."""
    initial_bootstrap_samples: NDArray[np.float64]
    """[D, C], drawn together with `bootstrap_samples`: pairs stay pairs."""
    num_prompts: tuple[int, ...]
    """Of each seed."""
    same_prompts: bool
    """Every seed was evaluated on the same prompts."""


def load_scores(spec: BenchmarkSpec, run_specs: Sequence[RunSpec]) -> BenchmarkScores:
    """Read the judged scores of every run, and draw their bootstrap."""
    said, seeds, scores, ids = spec.config, spec.config.seeds, [], []
    objectives: tuple[str, ...] = ()
    for seed in seeds:
        tables = [(e, *read_arm(e), read_arm(e, "before")[1]) for e in run_specs if e.seed == seed]
        first, objectives = tables[0][1], tuple(tables[0][2])
        for entry, prompts, columns, _ in tables:
            if prompts != first or tuple(columns) != objectives:
                raise DataError(
                    f"{entry.config.run.output_dir}: was evaluated on other prompts or objectives than "
                    f"{tables[0][0].config.run.output_dir}; fix: choose another name for the comparison"
                )
        after = [columns[o] for _, _, columns, _ in tables for o in objectives]
        before = [columns[o] for _, _, _, columns in tables for o in objectives]
        scores.append(np.stack([*after, *before], 1))
        ids.append(first)
    order = [(e.method, e.weighting, o) for e in run_specs if e.seed == seeds[0] for o in objectives]
    crossed = len(seeds) > 1 and all(prompts == ids[0] for prompts in ids)
    whole, drawn = (
        mean_over_seeds(scores),
        bootstrap_means(scores, shared_prompts=crossed, bootstrap_samples=said.bootstrap_samples, seed=0),
    )
    count = len(order)
    return BenchmarkScores(
        objectives=objectives,
        index={key: place for place, key in enumerate(order)},
        seed_means=np.stack([mean_over_seeds([part[:, :count]]) for part in scores]),
        mean=whole[:count],
        bootstrap_samples=drawn[:, :count],
        initial_mean=whole[count:],
        initial_bootstrap_samples=drawn[:, count:],
        num_prompts=tuple(len(part) for part in scores),
        same_prompts=crossed,
    )


def read_arm(run_spec: RunSpec, arm: str = "after") -> tuple[list[str], dict[str, NDArray[np.float64]]]:
    """Prompt ids, and objective -> mean over the samples of each prompt, of one arm of an evaluation."""
    table = pq.read_table(Path(run_spec.config.run.output_dir) / "eval" / "final" / "generations.parquet")
    names = [name for name in table.column_names if name.startswith(f"{arm}/")]
    n = int(max(table["sample"].to_pylist())) + 1
    found = {}
    for name in names:
        values = np.array(table[name].to_pylist(), dtype=np.float64).reshape(-1, n)
        known = ~np.isnan(values)
        with np.errstate(invalid="ignore"):
            found[name.removeprefix(f"{arm}/")] = np.where(known, values, 0.0).sum(1) / known.sum(1)
    # Prompts of files may have no ids of their own; then the text tells them apart.
    pairs = zip(table["prompt_id"].to_pylist(), table["prompt"].to_pylist(), strict=True)
    return [f"{name} {text}" for name, text in pairs][::n], found
