"""How the rows of one optimiser step are cut into forward passes that fit the memory."""

from collections.abc import Sequence


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
