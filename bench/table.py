"""From paired runs to ratios, and ratios to a table."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from paretune.run.io import write_atomic

FIGURES = {"step": "s", "generate": "s", "train": "s", "memory": "MiB"}
"""What is compared and in which unit; less is better of all of them."""
Numbers = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure of one workload; a ratio above 1 means that ours is better."""

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
    """Of the pairs' ratios, not the ratio of the medians."""
    ratio_min: float
    ratio_max: float
    ratio_per_token: float | None
    """The median with both sides' figures a response token; None where both do the same work by design."""
    runs: int
    ours_runs: tuple[float, ...]
    peers_runs: tuple[float, ...]


def ratios(ours: Sequence[float], peers: Sequence[float]) -> list[float]:
    """Of each pair, how many times less ours took.

    Raises:
        ValueError: There are no pairs, or one side has more than the other.
    """
    if not ours or len(ours) != len(peers):
        raise ValueError(f"{len(ours)} runs of ours stand against {len(peers)} of the peer")
    return [theirs / own for own, theirs in zip(ours, peers, strict=True)]


def row(
    ours: Sequence[Numbers], peers: Sequence[Numbers], figure: str, *, workload: str, dtype: str, peer: str
) -> Row | None:
    """One figure of paired runs; None where a side did not measure it."""
    if not all(figure in numbers for numbers in (*ours, *peers)):
        return None
    own, theirs = ([one[figure] for one in side] for side in (ours, peers))
    each = ratios(own, theirs)
    return Row(
        workload=workload,
        dtype=dtype,
        device="cpu",
        peer=peer,
        figure=figure,
        unit=FIGURES[figure],
        ours=median(own),
        peers=median(theirs),
        ratio_median=median(each),
        ratio_min=min(each),
        ratio_max=max(each),
        ratio_per_token=_per_token(ours, peers, figure),
        runs=len(each),
        ours_runs=tuple(own),
        peers_runs=tuple(theirs),
    )


def _per_token(ours: Sequence[Numbers], peers: Sequence[Numbers], figure: str) -> float | None:
    if figure == "memory" or not all("response_tokens" in one for one in (*ours, *peers)):
        return None
    own, theirs = ([one[figure] / one["response_tokens"] for one in side] for side in (ours, peers))
    return median(ratios(own, theirs))


def with_train(numbers: Numbers) -> dict[str, float]:
    """With the rest of the step (rewards, reference, gradients, optimiser) as `train`, and memory in MiB."""
    found = dict(numbers)
    found["memory"] = numbers["memory"] / 2**20
    if "generate" in numbers:
        found["train"] = numbers["step"] - numbers["generate"]
    return found


def rows(
    ours: Sequence[Numbers], peers: Sequence[Numbers], *, workload: str, dtype: str, peer: str
) -> list[Row]:
    """All figures of paired runs that both sides measured."""
    own, theirs = ([with_train(one) for one in side] for side in (ours, peers))
    found = [row(own, theirs, each, workload=workload, dtype=dtype, peer=peer) for each in FIGURES]
    return [each for each in found if each is not None]


def shown(found: Sequence[Row]) -> str:
    """The table that is printed."""
    head = (
        "workload",
        "dtype",
        "peer",
        "figure",
        "ours",
        "peer's",
        "ratio",
        "least",
        "most",
        "a token",
        "runs",
    )
    lines = [head, *(_cells(each) for each in found)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 4 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cells(each: Row) -> tuple[str, ...]:
    token = "" if each.ratio_per_token is None else f"{each.ratio_per_token:.2f}"
    return (
        each.workload,
        each.dtype,
        each.peer,
        each.figure,
        f"{each.ours:.4g} {each.unit}",
        f"{each.peers:.4g} {each.unit}",
        *(f"{ratio:.2f}" for ratio in (each.ratio_median, each.ratio_min, each.ratio_max)),
        token,
        str(each.runs),
    )


def keep(found: Sequence[Row], path: Path) -> None:
    """Write the rows into the file; others of other workloads, dtypes and peers that it holds stay."""
    known = json.loads(path.read_text()) if path.exists() else []
    new = [asdict(each) for each in found]
    made = {_key(each) for each in new}
    both = [each for each in known if _key(each) not in made] + new
    write_atomic(path, json.dumps(both, indent=1) + "\n")


def _key(each: Mapping[str, object]) -> tuple[object, ...]:
    return tuple(each[name] for name in ("workload", "dtype", "device", "peer", "figure"))
