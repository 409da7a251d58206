"""Ratios of paired runs, and their table."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from paretune.run.io import write_atomic

UNITS_BY_FIGURE = {"step": "s", "generate": "s", "train": "s", "memory": "MiB"}
"""Compared figures and their units; lower is better for all of them."""
Numbers = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure of one workload; a ratio above 1 means that paretune is better."""

    workload: str
    dtype: str
    device: str
    peer: str
    figure: str
    unit: str
    ours: float
    """Median of the runs."""
    peers: float
    """Median of the runs."""
    ratio_median: float
    """Median of the ratios of paired runs, not the ratio of the medians."""
    ratio_min: float
    ratio_max: float
    ratio_per_token: float | None
    """As `ratio_median`, with figures per response token; None where both sides do equal work by design."""
    runs: int
    ours_runs: tuple[float, ...]
    peers_runs: tuple[float, ...]


def ratios(ours: Sequence[float], peers: Sequence[float]) -> list[float]:
    """The peer's figure divided by ours, per pair.

    Raises:
        ValueError: There are no pairs, or one side has more than the other.
    """
    if not ours or len(ours) != len(peers):
        raise ValueError(f"cannot pair {len(ours)} runs of ours with {len(peers)} runs of the peer")
    return [peer / own for own, peer in zip(ours, peers, strict=True)]


def comparison_row(
    ours: Sequence[Numbers], peers: Sequence[Numbers], figure: str, *, workload: str, dtype: str, peer: str
) -> Row | None:
    """One figure of paired runs; None where a side did not measure it."""
    if not all(figure in numbers for numbers in (*ours, *peers)):
        return None
    own, peer_values = ([numbers[figure] for numbers in side] for side in (ours, peers))
    pair_ratios = ratios(own, peer_values)
    return Row(
        workload=workload,
        dtype=dtype,
        device="cpu",
        peer=peer,
        figure=figure,
        unit=UNITS_BY_FIGURE[figure],
        ours=median(own),
        peers=median(peer_values),
        ratio_median=median(pair_ratios),
        ratio_min=min(pair_ratios),
        ratio_max=max(pair_ratios),
        ratio_per_token=_per_token(ours, peers, figure),
        runs=len(pair_ratios),
        ours_runs=tuple(own),
        peers_runs=tuple(peer_values),
    )


def _per_token(ours: Sequence[Numbers], peers: Sequence[Numbers], figure: str) -> float | None:
    if figure == "memory" or not all("response_tokens" in numbers for numbers in (*ours, *peers)):
        return None
    own, peer_values = (
        [numbers[figure] / numbers["response_tokens"] for numbers in side] for side in (ours, peers)
    )
    return median(ratios(own, peer_values))


def with_train(numbers: Numbers) -> dict[str, float]:
    """Add the step without generation (rewards, reference, gradients, optimizer) as `train`."""
    figures = dict(numbers)
    figures["memory"] = numbers["memory"] / 2**20  # MiB
    if "generate" in numbers:
        figures["train"] = numbers["step"] - numbers["generate"]
    return figures


def comparison_rows(
    ours: Sequence[Numbers], peers: Sequence[Numbers], *, workload: str, dtype: str, peer: str
) -> list[Row]:
    """All figures of paired runs that both sides measured."""
    own, peer_numbers = ([with_train(numbers) for numbers in side] for side in (ours, peers))
    rows = [
        comparison_row(own, peer_numbers, figure, workload=workload, dtype=dtype, peer=peer)
        for figure in UNITS_BY_FIGURE
    ]
    return [row for row in rows if row is not None]


def format_table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    header = (
        "workload",
        "dtype",
        "peer",
        "figure",
        "ours",
        "peer's",
        "ratio",
        "min",
        "max",
        "per token",
        "runs",
    )
    lines = [header, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 4 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cells(row: Row) -> tuple[str, ...]:
    token = "" if row.ratio_per_token is None else f"{row.ratio_per_token:.2f}"
    return (
        row.workload,
        row.dtype,
        row.peer,
        row.figure,
        f"{row.ours:.4g} {row.unit}",
        f"{row.peers:.4g} {row.unit}",
        *(f"{ratio:.2f}" for ratio in (row.ratio_median, row.ratio_min, row.ratio_max)),
        token,
        str(row.runs),
    )


def merge_into_file(rows: Sequence[Row], path: Path) -> None:
    """Write the rows into the file; its rows of other workloads, dtypes and peers are kept."""
    stored = json.loads(path.read_text()) if path.exists() else []
    new = [asdict(row) for row in rows]
    new_keys = {_key(row) for row in new}
    merged = [row for row in stored if _key(row) not in new_keys] + new
    write_atomic(path, json.dumps(merged, indent=1) + "\n")


def _key(row: Mapping[str, object]) -> tuple[object, ...]:
    return tuple(row[name] for name in ("workload", "dtype", "device", "peer", "figure"))
