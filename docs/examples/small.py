"""Shared by the examples in this folder: tiny batches of scored responses, and plain tables."""

import textwrap
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from paretune.core.batch import Batch
from paretune.credit.base import CreditStep, Metrics, chain
from paretune.data.loader import collate
from paretune.rl.algorithm_spec import LABEL_WIDTH, AlgorithmSpec

torch.set_default_dtype(torch.float64)

NAMES = ("polite", "meaning", "action", "safety")
FOUR = [
    [0.9, 0.8, 0.7, 0.1],  # a useful response to a harmful request
    [0.8, 0.6, 0.5, 0.9],
    [0.9, 0.7, 0.2, 0.9],
    [0.6, 0.5, 0.6, 0.5],
]
"""Four responses to one prompt and their scores in [0, 1]."""


def graded(
    scores: object,
    objectives: tuple[str, ...] = ("score",),
    group: Sequence[int] | None = None,
    lengths: Sequence[int] | None = None,
) -> Batch:
    """One-token prompts whose responses have these scores; one prompt unless `group` says otherwise."""
    table = torch.as_tensor(scores, dtype=torch.get_default_dtype()).reshape(-1, len(objectives))
    rows = len(table)
    responses = [[1] * length for length in lengths or [1] * rows]
    batch = collate([[0]] * rows, responses, group or [0] * rows, [False] * rows, objectives, 0)
    return batch.replace(scores=table, rewards=table)


def after(batch: Batch, *steps: CreditStep) -> Batch:
    """The batch after these steps, each in its initial state."""
    return reported(batch, *steps)[0]


def reported(batch: Batch, *steps: CreditStep) -> tuple[Batch, Metrics]:
    """The batch after these steps, and their metrics."""
    step = chain(*steps)
    out, _, metrics = step.apply_stateful(batch, step.init_state(), torch.Generator().manual_seed(0))
    return out, metrics


def column(x: Tensor) -> list[float]:
    """The numbers of a tensor as a flat list."""
    return [float(number) for number in x.flatten()]


def block(name: str) -> None:
    """Start a block: the output up to the next one is shown on a page under this name."""
    print(f"[{name}]")


def shown(spec: AlgorithmSpec) -> None:
    """The parts, as `paretune check` prints them; long lines are wrapped."""
    for line in spec.describe():
        print(textwrap.fill(line, 110, subsequent_indent=" " * (LABEL_WIDTH + 5), break_long_words=False))


def table(head: Sequence[str], rows: Iterable[Sequence[object]], digits: int = 4) -> None:
    """Print a table: the first column left-aligned, the others right-aligned."""
    cells = [list(head), *([_cell(value, digits) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    for row in cells:
        first = row[0].ljust(widths[0])
        rest = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        print("  ".join((first, *rest)).rstrip())


def _cell(value: object, digits: int) -> str:
    if not isinstance(value, float):
        return str(value)
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if not float(text) else text
