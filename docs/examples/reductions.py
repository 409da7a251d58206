"""The four loss aggregations, computed once for the whole optimizer step.

python docs/examples/reductions.py
"""

import torch
from small import block, column, graded, table

from paretune.core.batch import Batch
from paretune.credit.shaping import soft_overlong_penalty
from paretune.rl.algorithm_spec import LossAggregation

AGGREGATIONS = (
    LossAggregation("seq_mean_token_mean"),
    LossAggregation("token_mean"),
    LossAggregation("seq_mean_token_sum"),
    LossAggregation("seq_mean_token_sum_norm", 8),
)


def lengths_2_and_6() -> tuple[Batch, torch.Tensor]:
    """Two responses; the loss is 1 per token of the first and -1 per token of the second."""
    batch = graded([0.0, 0.0], lengths=[2, 6])
    return batch, torch.where(batch.response_mask, torch.tensor([[1.0], [-1.0]]), 0.0)


def weights() -> None:
    """The weight of a token of each response, and the loss."""
    block("four")
    batch, each = lengths_2_and_6()
    rows: list[list[object]] = []
    for aggregation in AGGREGATIONS:
        weight = aggregation(batch.response_mask)
        short, long = float(weight[0, 1]), float(weight[1, 1])
        name = (
            f"{aggregation.mode}, norm_length {aggregation.norm_length}"
            if aggregation.mode == "seq_mean_token_sum_norm"
            else aggregation.mode
        )
        rows.append([name, short, long, 2 * short, 6 * long, float((each * weight).sum())])
    table(("mode", "token of 2", "token of 6", "response of 2", "response of 6", "loss"), rows)


def micro_batches() -> None:
    """One batch, two micro-batches with the weights of the step, and two with their own weights."""
    block("micro-batches")
    batch, each = lengths_2_and_6()
    rows: list[list[object]] = []
    for aggregation in AGGREGATIONS:
        weight = aggregation(batch.response_mask)
        whole = float((each * weight).sum())
        parts = sum(float((each[i] * weight[i]).sum()) for i in range(2))
        own = (
            sum(float((each[i] * aggregation(batch.response_mask[i : i + 1])[0]).sum()) for i in range(2)) / 2
        )
        rows.append([aggregation.mode, whole, parts, own])
    table(("mode", "one batch", "two micro-batches", "mean of two means"), rows)


def empty() -> None:
    """A response without tokens beside one of two tokens."""
    block("empty")
    batch = graded([0.0, 0.0], lengths=[2, 2])
    respond = batch.response_mask.clone()
    respond[1] = False
    for rule in ("include", "exclude"):
        weight = LossAggregation("seq_mean_token_mean", empty_rows=rule)(respond)
        print(f'empty_rows="{rule}": a token of the other response has weight {float(weight[0, 1]):.4f}')


def overlong_penalty() -> None:
    """The penalty at these lengths, with the limits of the paper."""
    block("overlong")
    lengths = (10000, 16384, 18432, 20480)
    penalty = column(soft_overlong_penalty(torch.tensor(lengths), max_new_tokens=20480, buffer_length=4096))
    table(("tokens", *map(str, lengths)), [["penalty", *penalty]])


def main() -> None:
    """Print the numbers of the page."""
    weights()
    micro_batches()
    empty()
    overlong_penalty()


if __name__ == "__main__":
    main()
