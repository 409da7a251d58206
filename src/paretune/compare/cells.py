"""The judged scores of all runs of a comparison, read from their folders, and a bootstrap of their means."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from paretune.config.contest import Contest, Entry
from paretune.errors import DataError
from paretune.evaluate.hierarchy import means, resampled


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Judged scores of all runs, and the bootstrap of their means."""

    objectives: tuple[str, ...]
    index: Mapping[tuple[str, str, str], int]
    """(method, weighting, objective) -> cell."""
    each: NDArray[np.float64]
    """[S, C]: the mean of every seed."""
    mean: NDArray[np.float64]
    draws: NDArray[np.float64]
    """[D, C]"""
    start: NDArray[np.float64]
    """[C]: the mean of the policies that the runs of a cell began with, on the same prompts."""
    start_draws: NDArray[np.float64]
    """[D, C], drawn together with `draws`: pairs stay pairs."""
    prompts: tuple[int, ...]
    """Of each seed."""
    crossed: bool
    """Every seed was evaluated on the same prompts."""


def cells_of(contest: Contest, entries: Sequence[Entry]) -> Cells:
    """Read the judged scores of every run, and draw their bootstrap."""
    said, seeds, scores, ids = contest.said, contest.said.seeds, [], []
    objectives: tuple[str, ...] = ()
    for seed in seeds:
        tables = [(e, *arm_of(e), arm_of(e, "before")[1]) for e in entries if e.seed == seed]
        first, objectives = tables[0][1], tuple(tables[0][2])
        for entry, prompts, columns, _ in tables:
            if prompts != first or tuple(columns) != objectives:
                raise DataError(
                    f"{entry.experiment.run.folder}: was evaluated on other prompts or objectives than "
                    f"{tables[0][0].experiment.run.folder}; fix: choose another name for the comparison"
                )
        after = [columns[o] for _, _, columns, _ in tables for o in objectives]
        before = [columns[o] for _, _, _, columns in tables for o in objectives]
        scores.append(np.stack([*after, *before], 1))
        ids.append(first)
    order = [(e.method, e.weighting, o) for e in entries if e.seed == seeds[0] for o in objectives]
    crossed = len(seeds) > 1 and all(prompts == ids[0] for prompts in ids)
    whole, drawn = means(scores), resampled(scores, crossed=crossed, draws=said.draws, seed=0)
    count = len(order)
    return Cells(
        objectives=objectives,
        index={key: place for place, key in enumerate(order)},
        each=np.stack([means([part[:, :count]]) for part in scores]),
        mean=whole[:count],
        draws=drawn[:, :count],
        start=whole[count:],
        start_draws=drawn[:, count:],
        prompts=tuple(len(part) for part in scores),
        crossed=crossed,
    )


def arm_of(entry: Entry, arm: str = "after") -> tuple[list[str], dict[str, NDArray[np.float64]]]:
    """Prompt ids, and objective -> mean over the samples of each prompt, of one arm of an evaluation."""
    table = pq.read_table(Path(entry.experiment.run.folder) / "eval" / "final" / "generations.parquet")
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
