"""A recipe of your own: other parts in an algorithm, tried before any model is loaded.

python docs/examples/own.py
"""

from small import block

from paretune.algorithms.grpo import grpo
from paretune.core.errors import WiringError
from paretune.credit.base import chain
from paretune.credit.normalization import BroadcastToTokens, LeaveOneOut
from paretune.credit.shaping import KlPenalty
from paretune.rl.validate import check_spec


def main() -> None:
    """Print what the page shows."""
    block("plan")
    base = grpo({"polite": 1.0, "safety": 1.0})
    mine = base.replace(name="mine", credit=chain(LeaveOneOut("std"), BroadcastToTokens()))
    print(check_spec(mine, ["polite", "safety"]))
    block("refused")
    price = KlPenalty(0.05, level="response")
    twice = base.replace(name="twice", credit=chain(price, LeaveOneOut(), BroadcastToTokens()))
    try:
        check_spec(twice, ["polite", "safety"])
    except WiringError as error:
        print(error)


if __name__ == "__main__":
    main()
