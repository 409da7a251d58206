"""How the rows of one optimiser step are cut into forward passes that fit the memory."""

from collections.abc import Iterable, Sequence

from torch import nn

from paretune.core.batch import Batch
from paretune.models.forward.length_batching import batches_by_length
from paretune.models.forward.logprobs import supports_packing
from paretune.models.forward.prefix_sharing import find_prefix_groups, plan_passes

NO_GRAD_TOKEN_FACTOR = 2
"""Times the tokens of a pass with gradients that one without them reads."""


def rows_per_no_grad_pass(batch: Batch, max_tokens_per_pass: int) -> int:
    """How many rows a pass without gradients reads where one with them computes `max_tokens_per_pass` tokens."""
    return max(1, NO_GRAD_TOKEN_FACTOR * max_tokens_per_pass // batch.input_ids.shape[1])


def microbatch_indices(
    batch: Batch,
    max_tokens_per_pass: int,
    models: Sequence[nn.Module],
    *,
    by_group: bool,
    strict_token_limit: bool = True,
) -> list[list[int]]:
    """Row numbers of each micro-batch of these rows, of at most `max_tokens_per_pass` tokens as the models read them.

    Args:
        batch: The rows of one optimiser step.
        max_tokens_per_pass: Tokens of a micro-batch: what is computed where all models can be packed, so that a prompt
            counts once for all rows that share it; else padding included and every row for itself.
        models: Those that are asked with gradients.
        by_group: Rows of a group are never parted.
        strict_token_limit: Rows with a long beginning in common are parted too where they do not fit; see `plan`.
    """
    lengths, group = batch.attention_mask.sum(-1).tolist(), batch.group.tolist() if by_group else None
    if all(supports_packing(model) for model in models):
        return plan_passes(
            lengths,
            max_tokens_per_pass,
            find_prefix_groups(batch.input_ids, batch.attention_mask),
            group,
            strict_token_limit=strict_token_limit,
        )
    return padded_microbatch_indices(lengths, max_tokens_per_pass, group)


def padded_microbatch_indices(
    lengths: Sequence[int], max_tokens_per_pass: int, group: Sequence[int] | None = None
) -> list[list[int]]:
    """Row numbers of each micro-batch: rows times the longest row is at most `max_tokens_per_pass` tokens.

    Rows of like length stand together, the longest first, so that little is padded and memory runs out
    at once or never. A row, or a group, that is larger than the budget stands alone.

    Args:
        lengths: Tokens of each row.
        max_tokens_per_pass: Tokens of a micro-batch, padding included.
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
        if not parts or (len(parts[-1]) + len(rows)) * width > max_tokens_per_pass:
            parts.append([])
            width = longest[unit]
        parts[-1] += rows
    return [sorted(part) for part in parts]


def example_microbatch_indices(
    lengths: Sequence[Sequence[int]], max_tokens_per_pass: int, model: nn.Module
) -> Iterable[list[int]]:
    """Numbers of the units of each micro-batch of a fit, the longest first; a unit is never parted.

    Args:
        lengths: For each unit, the tokens of each of its rows.
        max_tokens_per_pass: Tokens of a micro-batch; padding counts where the model cannot be packed.
        model: What is fitted.
    """
    longest = [max(rows) for rows in lengths]
    if not supports_packing(model):
        return batches_by_length(longest, max_tokens_per_pass, [len(rows) for rows in lengths])
    parts: list[list[int]] = []
    held = 0
    for unit in sorted(range(len(lengths)), key=lambda unit: -longest[unit]):
        if not parts or held + sum(lengths[unit]) > max_tokens_per_pass:
            parts.append([])
            held = 0
        parts[-1].append(unit)
        held += sum(lengths[unit])
    return parts
