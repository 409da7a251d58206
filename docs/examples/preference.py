"""Losses on pairs and on rankings, and best-of-n training: worked numbers of their papers.

python docs/examples/preference.py
"""

import torch
from small import after, block, column, graded, shown, table
from torch import Tensor

from paretune.algorithms.preference import dpo, modpo, pro, sft, superhf, tdpo
from paretune.core.batch import Batch, Outputs
from paretune.credit.selection import BestOfN
from paretune.loss.auxiliary import BestOfNSft, SftLoss
from paretune.loss.base import Loss
from paretune.loss.kl import FullKl
from paretune.loss.listwise import PreferenceRanking
from paretune.loss.pairwise import Dpo, ModpoMargin, PairLoss, PairLossType, Tdpo, pair_loss
from paretune.rl.algorithm_spec import LossAggregation

WEIGHTS = {"polite": 1.0, "safety": 1.0}
FORMS: tuple[tuple[str, PairLossType, float], ...] = (
    ("sigmoid", "sigmoid", 0.0),
    ("sigmoid, smoothing 0.1", "sigmoid", 0.1),
    ("sigmoid, smoothing 0.2", "sigmoid", 0.2),
    ("ipo", "ipo", 0.0),
    ("robust, smoothing 0.1", "robust", 0.1),
)


def parts() -> None:
    """Every spec, as `paretune check` prints it."""
    for spec in (dpo(WEIGHTS), tdpo(WEIGHTS), modpo(WEIGHTS), pro(WEIGHTS), superhf(WEIGHTS), sft(WEIGHTS)):
        block(f"parts of {spec.name}")
        shown(spec)


def forms() -> None:
    """Beta 0.1; the log-ratio to the reference is 2 for the chosen response and -1 for the rejected one."""
    block("forms")
    rows: list[list[object]] = []
    for name, form, smoothing in FORMS:
        logp = torch.tensor([-10.0, -20.0]).requires_grad_()
        gap = 0.1 * (logp - torch.tensor([-12.0, -19.0]))
        loss = pair_loss(gap[:1], gap[1:], form, 0.1, smoothing).sum()
        (slope,) = torch.autograd.grad(loss, logp)
        zero = torch.zeros(1)
        start = float(pair_loss(zero, zero, form, 0.1, smoothing))
        rows.append([name, start, float(loss.detach()), *column(slope)])
    table(("loss type", "loss at h = 0", "loss at h = 3", "gradient, chosen", "gradient, rejected"), rows, 6)


def optima() -> None:
    """The negative gradient in h, the difference of the log-ratios."""
    block("optima")
    gaps = (0.0, 3.0, 5.0, 10.0, 21.9722, 40.0)
    rows: list[list[object]] = []
    for name, form, smoothing in FORMS:
        row: list[object] = [name]
        for h in gaps:
            x = torch.tensor([h]).requires_grad_()
            loss = pair_loss(0.1 * x, torch.zeros(1), form, 0.1, smoothing).sum()
            row.append(-float(torch.autograd.grad(loss, x)[0]))
        rows.append(row)
    table(("-gradient at h =", *(f"{h:g}" for h in gaps)), rows)


def paired(loss: PairLoss, batch: Batch, logp: Tensor, drift: Tensor | None = None) -> Tensor:
    """The loss of a batch of responses of one token."""
    batch = batch.replace(loss_weights=LossAggregation("seq_mean_token_mean")(batch.response_mask))
    padded = torch.stack([torch.zeros_like(logp), logp], -1)
    kl = None if drift is None else torch.stack([torch.zeros_like(drift), drift], -1)
    return loss(Outputs(logprobs=padded, ref_policy_kl=kl), batch)


def kls() -> None:
    """Three tokens; the reference is the same for both responses, and the policy has moved."""
    block("kl")
    reference = torch.tensor([0.5, 0.3, 0.2]).expand(2, 3)
    word = torch.tensor([0, 1])[:, None]
    batch = graded([1.0, 0.0])
    known = torch.stack([torch.zeros(2), reference.gather(1, word)[:, 0].log()], -1)
    batch = batch.replace(ref_logprobs=known)
    rows: list[list[object]] = []
    losses: dict[str, PairLoss] = {
        "Dpo()": Dpo(),
        "Tdpo(1)": Tdpo(1),
        "Tdpo(2), alpha 0.5": Tdpo(2),
        "Tdpo(2), alpha 1": Tdpo(2, alpha=1.0),
        "Tdpo(2), alpha 0": Tdpo(2, alpha=0.0),
    }
    for name, loss in losses.items():
        policy = torch.tensor([[0.6, 0.2, 0.2], [0.4, 0.4, 0.2]]).log()
        drift = (reference * (reference.log() - policy)).sum(-1).requires_grad_()
        number = paired(loss, batch, policy.gather(1, word)[:, 0], drift)
        slopes = torch.autograd.grad(number, drift, allow_unused=True)[0] if number.requires_grad else None
        pushes = [0.0, 0.0] if slopes is None else column(-slopes)
        rows.append([name, float(number.detach()), *pushes])
    table(("loss", "", "-gradient, D chosen", "-gradient, D rejected"), rows, 6)


def margins() -> None:
    """Two objectives; one makes the pair, and the responses differ by 0.3 in the other."""
    block("margins")
    rows: list[list[object]] = []
    for weight in (1.0, 0.9, 0.5, 0.1):
        batch = graded([[1.0, 0.3], [0.0, 0.0]], objectives=("helpful", "safety"))
        batch = batch.replace(ref_logprobs=torch.zeros(2, 2))
        margin = ModpoMargin("helpful", {"helpful": weight, "safety": 1 - weight})
        logp = torch.tensor([3.0, 0.0]).requires_grad_()
        loss = paired(Dpo(0.1, margin=margin), batch, logp)
        push = -torch.autograd.grad(loss, logp)[0][0]
        rows.append([f"{weight:g}", (0.3 - (1 - weight) * 0.3) / weight, float(loss.detach()), float(push)])
    table(("weight of helpful", "argument", "loss", "-gradient, chosen"), rows, 6)


def rankings() -> None:
    """Lists whose mean log-probabilities are -1, -1.5, -2."""
    block("rankings")
    cases: dict[str, tuple[list[float], list[float]]] = {
        "two, rewards 2, 0": ([2.0, 0.0], [-1.0, -1.5]),
        "three, rewards 2, 1, 0": ([2.0, 1.0, 0.0], [-1.0, -1.5, -2.0]),
        "the same, rewards 1, 0.5, 0": ([1.0, 0.5, 0.0], [-1.0, -1.5, -2.0]),
        "the same, rewards 1, 1, 1": ([1.0, 1.0, 1.0], [-1.0, -1.5, -2.0]),
    }
    rows: list[list[object]] = []
    for name, (rewards, logprobs) in cases.items():
        slope, loss = slopes_of(PreferenceRanking(), graded(rewards), torch.tensor(logprobs))
        rows.append([name, loss, *(-slope).tolist()])
    table(("list", "loss", "-gradient 1", "2", "3"), [row + [""] * (5 - len(row)) for row in rows], 6)
    block("sft term")
    long = graded([1.0, 0.0, 0.0], lengths=[10, 1, 1])
    long = long.replace(loss_weights=LossAggregation("seq_mean_token_mean")(long.response_mask))
    logp = torch.where(long.response_mask, -1.0, 0.0)
    for reduction in ("sum", "mean"):
        own = 0.05 * 2**2
        number = own * float(BestOfNSft(reduction)(Outputs(logprobs=logp), long))
        print(f"0.05 x (3 - 1)^2 x BestOfNSft of a best response of 10 tokens, {reduction}: {number:.4f}")


def slopes_of(loss: Loss, batch: Batch, logp: Tensor) -> tuple[Tensor, float]:
    """Gradient in the log-probability of each response of one token, and the loss."""
    batch = batch.replace(loss_weights=LossAggregation("seq_mean_token_mean")(batch.response_mask))
    mine = logp.clone().requires_grad_()
    number = loss(Outputs(logprobs=torch.stack([torch.zeros_like(mine), mine], -1)), batch)
    return torch.autograd.grad(number, mine)[0], float(number.detach())


def best() -> None:
    """Two prompts of three responses: the kept ones; and both directions of the KL."""
    block("best")
    scores = [0.1, 0.9, 0.3, -1.0, -2.0, -0.5]
    batch = graded(scores, group=[0, 0, 0, 1, 1, 1])
    for k in (1, 2):
        print(f"BestOfN({k}) of {scores}: {column(after(batch, BestOfN(k)).rewards)}")
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
    forward, backward = (float((x * (x / y).log()).sum()) for x, y in ((p, q), (q, p)))
    print(f"KL(reference || policy) = {forward:.7f}, KL(policy || reference) = {backward:.7f}")
    rows: list[list[object]] = []
    for name, lengths in (("one response", [2]), ("the same twice", [2, 2])):
        found = graded([0.0] * len(lengths), lengths=lengths)
        found = found.replace(loss_weights=LossAggregation("token_mean")(found.response_mask))
        mask = found.response_mask
        out = Outputs(
            logprobs=torch.where(mask, torch.tensor(0.1).log(), 0.0),
            ref_policy_kl=torch.where(mask, forward, 0.0),
        )
        rows.append([name, float(SftLoss()(out, found)), float(FullKl()(out, found))])
    table(("", "SftLoss", "FullKl"), rows)


def main() -> None:
    """Print the numbers of the pages."""
    parts()
    forms()
    optima()
    kls()
    margins()
    rankings()
    best()


if __name__ == "__main__":
    main()
