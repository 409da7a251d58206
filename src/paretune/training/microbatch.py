"""Micro-batches: the rows of one optimizer step, cut into forward passes that fit into memory."""

from collections.abc import Iterable, Sequence

from torch import nn

from paretune.core.batch import Batch
from paretune.models.forward.length_batching import batches_by_length
from paretune.models.forward.logprobs import supports_packing
from paretune.models.forward.prefix_sharing import find_prefix_groups, plan_passes

NO_GRAD_TOKEN_FACTOR = 2
"""Tokens of a pass without gradients, relative to one with gradients: it keeps no activations."""


def rows_per_no_grad_pass(batch: Batch, max_tokens_per_pass: int) -> int:
    """Rows per pass without gradients, if one with gradients has `max_tokens_per_pass` tokens."""
    return max(1, NO_GRAD_TOKEN_FACTOR * max_tokens_per_pass // batch.input_ids.shape[1])


def microbatch_indices(
    batch: Batch,
    max_tokens_per_pass: int,
    models: Sequence[nn.Module],
    *,
    by_group: bool,
    strict_token_limit: bool = True,
) -> list[list[int]]:
    """Row indices of each micro-batch, of at most `max_tokens_per_pass` tokens.

    Args:
        batch: The rows of one optimizer step.
        max_tokens_per_pass: Tokens per micro-batch. If all models support packing: computed tokens, so that a
            prompt counts once for all rows that share it; else every row with its padding.
        models: Models with gradients.
        by_group: Never split the rows of a group.
        strict_token_limit: Also split rows with a long common prefix if they do not fit; see `plan_passes`.
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
    """Row indices of each micro-batch: rows times the longest row is at most `max_tokens_per_pass` tokens.

    Rows of similar length are together, to save padding, and the longest come first, so that memory runs out
    at once or never. A row, or a group, above the limit is a micro-batch of its own.

    Args:
        lengths: Tokens per row.
        max_tokens_per_pass: Tokens per micro-batch, padding included.
        group: Group numbers; rows of a group are never split.
    """
    units: dict[int, list[int]] = {}
    for row in range(len(lengths)):
        units.setdefault(row if group is None else group[row], []).append(row)
    longest = {unit: max(lengths[row] for row in rows) for unit, rows in units.items()}
    microbatches: list[list[int]] = []
    width = 0
    for unit in sorted(units, key=lambda unit: -longest[unit]):
        rows = units[unit]
        if not microbatches or (len(microbatches[-1]) + len(rows)) * width > max_tokens_per_pass:
            microbatches.append([])
            width = longest[unit]
        microbatches[-1] += rows
    return [sorted(rows) for rows in microbatches]


def example_microbatch_indices(
    lengths: Sequence[Sequence[int]], max_tokens_per_pass: int, model: nn.Module
) -> Iterable[list[int]]:
    """Example indices of each micro-batch of supervised training, the longest first.

    Args:
        lengths: For each example, the tokens of each of its rows; an example is never split.
        max_tokens_per_pass: Tokens per micro-batch; padding counts if the model does not support packing.
        model: The trained model.
    """
    longest = [max(rows) for rows in lengths]
    if not supports_packing(model):
        return batches_by_length(longest, max_tokens_per_pass, [len(rows) for rows in lengths])
    microbatches: list[list[int]] = []
    num_tokens = 0
    for example in sorted(range(len(lengths)), key=lambda example: -longest[example]):
        if not microbatches or num_tokens + sum(lengths[example]) > max_tokens_per_pass:
            microbatches.append([])
            num_tokens = 0
        microbatches[-1].append(example)
        num_tokens += sum(lengths[example])
    return microbatches
