"""A custom algorithm: other parts in a spec, checked before any model is loaded.

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
    """Print the blocks of the page."""
    block("requirements")
    base = grpo({"polite": 1.0, "safety": 1.0})
    custom = base.replace(name="custom", credit=chain(LeaveOneOut("group"), BroadcastToTokens()))
    print(check_spec(custom, ["polite", "safety"]))
    block("refused")
    penalty = KlPenalty(0.05, level="sequence")
    twice = base.replace(name="twice", credit=chain(penalty, LeaveOneOut(), BroadcastToTokens()))
    try:
        check_spec(twice, ["polite", "safety"])
    except WiringError as error:
        print(error)


if __name__ == "__main__":
    main()
