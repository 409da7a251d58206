"""The four denominators, and why they are taken once for the whole optimiser step.

python docs/examples/reductions.py
"""

import torch
from small import block, column, graded, table

from paretune.core.batch import Batch
from paretune.credit.shaping import soft_overlong_penalty
from paretune.rl.algorithm_spec import LossAggregation

WEIGHS = (
    LossAggregation("sequence"),
    LossAggregation("token"),
    LossAggregation("sequence_sum"),
    LossAggregation("constant", 8),
)


def lengths_2_and_6() -> tuple[Batch, torch.Tensor]:
    """Two responses; every token of the first loses 1, every token of the second gains 1."""
    batch = graded([0.0, 0.0], lengths=[2, 6])
    return batch, torch.where(batch.response_mask, torch.tensor([[1.0], [-1.0]]), 0.0)


def weights() -> None:
    """How much a token of each response counts, and what the loss is."""
    block("four")
    batch, each = lengths_2_and_6()
    rows: list[list[object]] = []
    for weigh in WEIGHS:
        weight = weigh(batch.response_mask)
        short, long = float(weight[0, 1]), float(weight[1, 1])
        name = f"{weigh.mode}, length {weigh.norm_length}" if weigh.mode == "constant" else weigh.mode
        rows.append([name, short, long, 2 * short, 6 * long, float((each * weight).sum())])
    table(("by", "token of 2", "token of 6", "response of 2", "response of 6", "loss"), rows)


def cuts() -> None:
    """The step in one piece, in two with the weights of the step, and in two with weights of their own."""
    block("cuts")
    batch, each = lengths_2_and_6()
    rows: list[list[object]] = []
    for weigh in WEIGHS:
        weight = weigh(batch.response_mask)
        whole = float((each * weight).sum())
        parts = sum(float((each[i] * weight[i]).sum()) for i in range(2))
        own = sum(float((each[i] * weigh(batch.response_mask[i : i + 1])[0]).sum()) for i in range(2)) / 2
        rows.append([weigh.mode, whole, parts, own])
    table(("by", "whole", "cut in two", "mean of two means"), rows)


def empty() -> None:
    """A response without a credited token beside one of two tokens."""
    block("empty")
    batch = graded([0.0, 0.0], lengths=[2, 2])
    respond = batch.response_mask.clone()
    respond[1] = False
    for rule in ("count", "skip"):
        weight = LossAggregation("sequence", empty_rows=rule)(respond)
        print(f'empty="{rule}": a token of the other response counts {float(weight[0, 1]):.4f}')


def overlong_penalty() -> None:
    """What responses of these lengths pay, with the limit of the paper."""
    block("overlong")
    lengths = (10000, 16384, 18432, 20480)
    price = column(soft_overlong_penalty(torch.tensor(lengths), max_new_tokens=20480, buffer_length=4096))
    table(("tokens", *map(str, lengths)), [["price", *price]])


def main() -> None:
    """Print the numbers of the page."""
    weights()
    cuts()
    empty()
    overlong_penalty()


if __name__ == "__main__":
    main()
