"""Advantages from the values of a critic, and the losses of the critic.

python docs/examples/values.py
"""

import torch
from small import after, block, column, graded, table

from paretune.core.batch import Outputs
from paretune.credit.base import CreditStep
from paretune.credit.normalization import Whiten
from paretune.credit.returns import Gae, ReturnToGo
from paretune.loss.auxiliary import ClippedValueLoss, SquaredValueLoss


def advantages() -> None:
    """One response of three tokens."""
    block("advantages")
    batch = graded([0.0], lengths=[3]).replace(
        token_rewards=torch.tensor([[0.0, -0.1, 0.05, 1.0]])[..., None],
        values=torch.tensor([[0.0, 0.5, 0.4, 0.6]])[..., None],
    )
    chains: dict[str, tuple[CreditStep, ...]] = {
        "Gae(lam=0)": (Gae(lam=0.0),),
        "Gae(lam=0.95)": (Gae(lam=0.95),),
        "Gae(lam=1)": (Gae(lam=1.0),),
        "Gae(0.9, 0.95)": (Gae(0.9, 0.95),),
        'Gae(), Whiten("population")': (Gae(), Whiten("population")),
        "ReturnToGo()": (ReturnToGo(),),
    }
    rows: list[list[object]] = []
    for name, steps in chains.items():
        out = after(batch, *steps)
        returns = [""] * 3 if out.returns is None else column(out.returns[0, 1:])
        rows.append([name, *column(out.require("advantages")[0, 1:]), *returns])
    table(("", "A1", "A2", "A3", "return 1", "return 2", "return 3"), rows)


def losses() -> None:
    """An old value of 0.4 with return 1."""
    block("losses")
    batch = graded([0.0]).replace(
        values=torch.tensor([0.0, 0.4]).reshape(1, 2, 1),
        returns=torch.tensor([0.0, 1.0]).reshape(1, 2, 1),
    )
    batch = batch.replace(loss_weights=batch.response_mask.double())
    rows: list[list[object]] = []
    for now in (0.1, 0.3, 0.5, 0.7, 0.9, 1.3):
        row: list[object] = [f"{now:g}"]
        for loss in (SquaredValueLoss(), ClippedValueLoss(0.2)):
            values = torch.tensor([0.0, now]).reshape(1, 2, 1).requires_grad_()
            number = loss(Outputs(logprobs=torch.zeros(1, 2), values=values), batch)
            (slope,) = torch.autograd.grad(number, values)
            row += [float(number.detach()), float(slope[0, 1])]
        rows.append(row)
    table(("value", "SquaredValueLoss", "gradient", "ClippedValueLoss", "gradient"), rows)


def main() -> None:
    """Print the numbers of the page."""
    advantages()
    losses()


if __name__ == "__main__":
    main()
