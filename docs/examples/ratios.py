"""What each policy loss makes of the probability ratio: its value, and the push on log p(token).

python docs/examples/ratios.py
"""

import torch
from small import after, block, column, graded, reported, table

from paretune.batch import Batch, Outputs
from paretune.credit.importance import TruncatedImportance
from paretune.loss.policy import Clipped, DropStale, PolicyLoss
from paretune.loss.ratio import Level
from paretune.loss.unclipped import CappedRatio, GammaWeighted, SoftGate

RATIOS = (0.5, 0.9, 1.0, 1.25, 1.5, 4.0, 6.0)
LOSSES: dict[str, PolicyLoss] = {
    "Clipped()": Clipped(),
    "Clipped(high=0.28)": Clipped(0.2, 0.28),
    "Clipped(most=3)": Clipped(most=3.0),
    "CappedRatio(most=5)": CappedRatio(5.0),
    "SoftGate()": SoftGate(),
    "GammaWeighted()": GammaWeighted(),
}


def judged(
    loss: PolicyLoss, gaps: list[float], advantage: float | list[float]
) -> tuple[list[float], list[float]]:
    """Loss and push on every token of one response with these log-ratios, each token counting 1."""
    batch = graded([0.0], lengths=[len(gaps)])
    logp = torch.tensor([[0.0, *gaps]]).requires_grad_()
    advantages = torch.zeros(1, 1 + len(gaps))
    advantages[:, 1:] = torch.as_tensor(advantage)
    batch = batch.set(
        behaviour_logp=torch.zeros_like(logp),
        advantages=advantages[..., None],
        weight=batch.respond.double(),
    )
    out = Outputs(logp=logp)
    (slope,) = torch.autograd.grad(loss(out, batch), logp)
    return column(loss.per_token(out, batch).detach()[:, 1:]), column(-slope[:, 1:])


def single() -> None:
    """One token a response."""
    for sign, name in ((1.0, "good"), (-1.0, "bad")):
        block(f"{name} token")
        rows: list[list[object]] = []
        for label, loss in LOSSES.items():
            gaps = [float(torch.tensor(ratio).log()) for ratio in RATIOS]
            rows.append([label, *(judged(loss, [gap], sign)[1][0] for gap in gaps)])
        table(("ratio", *(f"{ratio:g}" for ratio in RATIOS)), rows)


def levels() -> None:
    """One response of three tokens: who is judged, and who answers for it."""
    block("levels")
    each: tuple[Level, ...] = ("token", "sequence", "sequence_token")
    rows: list[list[object]] = []
    for high in (0.2, 4e-4):
        for level in each:
            loss = Clipped(0.2, high, level=level)
            same, apart = (judged(loss, [0.1, -0.05, 0.25], advantage)[1] for advantage in (1.0, [1.0, 1, 4]))
            rows.append([level, f"{high:g}", *same, *apart])
    head = ("level", "high", "A = 1", "1", "1", "A = 1", "1", "4")
    table(head, rows)


def stale() -> None:
    """Two bad responses of two tokens; the policy has left the second one behind."""
    block("stale")
    rows: list[list[object]] = []
    for gaps in ([-0.1, -0.2], [-1.2, -0.1]):
        for name, loss in (
            ("Clipped()", Clipped()),
            ("DropStale(Clipped(), 0.5)", DropStale(Clipped(), 0.5)),
        ):
            rows.append([name, *map(str, gaps), *judged(loss, gaps, -1.0)[1]])
    table(("", "log-ratio 1", "log-ratio 2", "push 1", "push 2"), rows)


def importance() -> None:
    """Trainer and sampler disagree on three tokens."""
    block("importance")
    batch = graded([0.0], lengths=[3])
    batch = batch.set(
        behaviour_logp=torch.tensor([[0.0, -0.5, -0.8, -1.3]]),
        sampler_logp=torch.tensor([[0.0, -1.0, -2.0, -1.0]]),
    )
    parts = {
        "token, truncate at 2": TruncatedImportance("token", "truncate", 2.0),
        "token, mask at 3": TruncatedImportance("token", "mask", 3.0),
        "token, mask outside [0.5, 2]": TruncatedImportance("token", "mask", 2.0, 0.5),
        "sequence, truncate at 2": TruncatedImportance("sequence", "truncate", 2.0),
        "sequence, mask at 3": TruncatedImportance("sequence", "mask", 3.0),
    }
    rows: list[list[object]] = []
    for name, part in parts.items():
        out, seen = reported(batch, part)
        rows.append(
            [name, *column(out.need("importance")[:, 1:]), seen["importance/mean"], seen["importance/cut"]]
        )
    table(("", "w1", "w2", "w3", "mean before", "share cut"), rows)
    same: Batch = after(batch.set(sampler_logp=batch.need("behaviour_logp").clone()), TruncatedImportance())
    print(f"one engine: {column(same.need('importance')[:, 1:])}")


def main() -> None:
    """Print the numbers of the page."""
    single()
    levels()
    stale()
    importance()


if __name__ == "__main__":
    main()
