"""How the rows of one optimiser step are cut into forward passes that fit the memory."""

from collections.abc import Iterable, Sequence

from torch import nn

from paretune.batch import Batch
from paretune.models.forward import can_pack
from paretune.models.sharing import plan, sharings
from paretune.objectives.reward_model import by_length

UNKEPT = 2
"""Times the tokens of a pass with gradients that one without them reads."""


def rows_unkept(batch: Batch, budget: int) -> int:
    """How many rows a pass without gradients reads where one with them computes `budget` tokens."""
    return max(1, UNKEPT * budget // batch.tokens.shape[1])


def passes(
    batch: Batch, budget: int, models: Sequence[nn.Module], *, by_group: bool, strict: bool = True
) -> list[list[int]]:
    """Row numbers of each micro-batch of these rows, of at most `budget` tokens as the models read them.

    Args:
        batch: The rows of one optimiser step.
        budget: Tokens of a micro-batch: what is computed where all models can be packed, so that a prompt
            counts once for all rows that share it; else padding included and every row for itself.
        models: Those that are asked with gradients.
        by_group: Rows of a group are never parted.
        strict: Rows with a long beginning in common are parted too where they do not fit; see `plan`.
    """
    lengths, group = batch.attend.sum(-1).tolist(), batch.group.tolist() if by_group else None
    if all(can_pack(model) for model in models):
        return plan(lengths, budget, sharings(batch.tokens, batch.attend), group, strict=strict)
    return cuts(lengths, budget, group)


def cuts(lengths: Sequence[int], budget: int, group: Sequence[int] | None = None) -> list[list[int]]:
    """Row numbers of each micro-batch: rows times the longest row is at most `budget` tokens.

    Rows of like length stand together, the longest first, so that little is padded and memory runs out
    at once or never. A row, or a group, that is larger than the budget stands alone.

    Args:
        lengths: Tokens of each row.
        budget: Tokens of a micro-batch, padding included.
        group: Where given, rows of equal number are never parted.
    """
    units: dict[int, list[int]] = {}
    for row in range(len(lengths)):
        units.setdefault(row if group is None else group[row], []).append(row)
    longest = {unit: max(lengths[row] for row in rows) for unit, rows in units.items()}
    parts: list[list[int]] = []
    width = 0
    for unit in sorted(units, key=lambda unit: -longest[unit]):
        rows = units[unit]
        if not parts or (len(parts[-1]) + len(rows)) * width > budget:
            parts.append([])
            width = longest[unit]
        parts[-1] += rows
    return [sorted(part) for part in parts]


def unit_passes(lengths: Sequence[Sequence[int]], budget: int, model: nn.Module) -> Iterable[list[int]]:
    """Numbers of the units of each micro-batch of a fit, the longest first; a unit is never parted.

    Args:
        lengths: For each unit, the tokens of each of its rows.
        budget: Tokens of a micro-batch; padding counts where the model cannot be packed.
        model: What is fitted.
    """
    longest = [max(rows) for rows in lengths]
    if not can_pack(model):
        return by_length(longest, budget, [len(rows) for rows in lengths])
    parts: list[list[int]] = []
    held = 0
    for unit in sorted(range(len(lengths)), key=lambda unit: -longest[unit]):
        if not parts or held + sum(lengths[unit]) > budget:
            parts.append([])
            held = 0
        parts[-1].append(unit)
        held += sum(lengths[unit])
    return parts
