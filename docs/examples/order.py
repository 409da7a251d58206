"""Order is the algorithm: four responses, four objectives, the same parts in two orders.

python docs/examples/order.py
"""

from small import FOUR, NAMES, after, block, column, graded, reported, table

from paretune.credit.aggregation import Gate, WeightedSum
from paretune.credit.base import CreditStep
from paretune.credit.normalization import BatchNormalize, GroupNormalize

RESPONSES = ("o1 unsafe", "o2", "o3", "o4")
EQUAL = WeightedSum(dict.fromkeys(NAMES, 1 / 4))
TRIPLE_SAFETY = WeightedSum(dict.fromkeys(NAMES, 1 / 6) | {"safety": 3 / 6})
NORMALIZE = GroupNormalize("group", std_estimator="population", eps=0.0)
SCALE = BatchNormalize(std_estimator="population", eps=0.0)
GATES = tuple(Gate(name, condition_objective="safety", threshold=0.5) for name in NAMES if name != "safety")


def signal(*steps: CreditStep) -> list[float]:
    """The rewards of the four responses after the steps."""
    return column(after(graded(FOUR, NAMES), *steps).rewards)


def main() -> None:
    """Print the numbers of the page."""
    block("scores")
    table(("response", *NAMES), ([name, *row] for name, row in zip(RESPONSES, FOUR, strict=True)), 1)

    block("aggregate first")
    together = signal(EQUAL, NORMALIZE)
    table(("response", "sum", "advantage"), zip(RESPONSES, signal(EQUAL), together, strict=True))

    block("shares")
    _, seen = reported(graded(FOUR, NAMES), EQUAL)
    table(("objective", "share"), [(name, seen[f"variance_share/{name}"]) for name in NAMES])

    block("normalize first")
    every = after(graded(FOUR, NAMES), NORMALIZE).rewards.tolist()
    apart, scaled = signal(NORMALIZE, EQUAL), signal(NORMALIZE, EQUAL, SCALE)
    rows = zip(RESPONSES, every, apart, scaled, strict=True)
    table(("response", *NAMES, "sum", "advantage"), ([name, *z, a, b] for name, z, a, b in rows))

    block("gated")
    gated = after(graded(FOUR, NAMES), *GATES).rewards.tolist()
    table(("response", *NAMES), ([name, *row] for name, row in zip(RESPONSES, gated, strict=True)), 1)

    block("gate in both orders")
    first, second = signal(*GATES, EQUAL, NORMALIZE), signal(*GATES, NORMALIZE, EQUAL, SCALE)
    head = ("response", "aggregate first", "normalize first")
    table(head, zip(RESPONSES, first, second, strict=True))

    block("weights in both orders")
    first, second = signal(TRIPLE_SAFETY, NORMALIZE), signal(NORMALIZE, TRIPLE_SAFETY)
    table(head, zip(RESPONSES, first, second, strict=True))


if __name__ == "__main__":
    main()
