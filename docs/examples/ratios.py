"""Policy losses as functions of the probability ratio: value, and negative gradient in log p(token).

python docs/examples/ratios.py
"""

import torch
from small import after, block, column, graded, reported, table

from paretune.core.batch import Batch, Outputs
from paretune.credit.importance_sampling import TruncatedImportanceSampling
from paretune.loss.policy import (
    ClippedIsWeight,
    ClippedSurrogate,
    GammaWeight,
    OffPolicyMask,
    PolicyLoss,
    RatioLevel,
    SoftClip,
)

RATIOS = (0.5, 0.9, 1.0, 1.25, 1.5, 4.0, 6.0)
LOSSES: dict[str, PolicyLoss] = {
    "ClippedSurrogate()": ClippedSurrogate(),
    "ClippedSurrogate(clip_high=0.28)": ClippedSurrogate(0.2, 0.28),
    "ClippedSurrogate(dual_clip=3)": ClippedSurrogate(dual_clip=3.0),
    "ClippedIsWeight(max_ratio=5)": ClippedIsWeight(5.0),
    "SoftClip()": SoftClip(),
    "GammaWeight()": GammaWeight(),
}


def judged(
    loss: PolicyLoss, gaps: list[float], advantage: float | list[float]
) -> tuple[list[float], list[float]]:
    """Loss and negative gradient of the tokens of one response with these log-ratios and weights of 1."""
    batch = graded([0.0], lengths=[len(gaps)])
    logp = torch.tensor([[0.0, *gaps]]).requires_grad_()
    advantages = torch.zeros(1, 1 + len(gaps))
    advantages[:, 1:] = torch.as_tensor(advantage)
    batch = batch.replace(
        old_logprobs=torch.zeros_like(logp),
        advantages=advantages[..., None],
        loss_weights=batch.response_mask.double(),
    )
    out = Outputs(logprobs=logp)
    (slope,) = torch.autograd.grad(loss(out, batch), logp)
    return column(loss.per_token_loss(out, batch).detach()[:, 1:]), column(-slope[:, 1:])


def single() -> None:
    """One token per response."""
    for sign, name in ((1.0, "positive"), (-1.0, "negative")):
        block(f"{name} advantage")
        rows: list[list[object]] = []
        for label, loss in LOSSES.items():
            gaps = [float(torch.tensor(ratio).log()) for ratio in RATIOS]
            rows.append([label, *(judged(loss, [gap], sign)[1][0] for gap in gaps)])
        table(("ratio", *(f"{ratio:g}" for ratio in RATIOS)), rows)


def levels() -> None:
    """One response of three tokens: the level of the ratio, and the gradient per token."""
    block("levels")
    each: tuple[RatioLevel, ...] = ("token", "sequence", "sequence_token")
    rows: list[list[object]] = []
    for high in (0.2, 4e-4):
        for level in each:
            loss = ClippedSurrogate(0.2, high, level=level)
            same, apart = (judged(loss, [0.1, -0.05, 0.25], advantage)[1] for advantage in (1.0, [1.0, 1, 4]))
            rows.append([level, f"{high:g}", *same, *apart])
    head = ("level", "clip_high", "A = 1", "1", "1", "A = 1", "1", "4")
    table(head, rows)


def off_policy() -> None:
    """Two bad responses of two tokens; the second one is off-policy."""
    block("off-policy")
    rows: list[list[object]] = []
    for gaps in ([-0.1, -0.2], [-1.2, -0.1]):
        for name, loss in (
            ("ClippedSurrogate()", ClippedSurrogate()),
            ("OffPolicyMask(ClippedSurrogate(), 0.5)", OffPolicyMask(ClippedSurrogate(), 0.5)),
        ):
            rows.append([name, *map(str, gaps), *judged(loss, gaps, -1.0)[1]])
    table(("", "log-ratio 1", "log-ratio 2", "-gradient 1", "-gradient 2"), rows)


def importance() -> None:
    """Trainer and sampler disagree on three tokens."""
    block("importance weights")
    batch = graded([0.0], lengths=[3])
    batch = batch.replace(
        old_logprobs=torch.tensor([[0.0, -0.5, -0.8, -1.3]]),
        rollout_logprobs=torch.tensor([[0.0, -1.0, -2.0, -1.0]]),
    )
    parts = {
        "token, truncate at 2": TruncatedImportanceSampling("token", "truncate", 2.0),
        "token, mask at 3": TruncatedImportanceSampling("token", "mask", 3.0),
        "token, mask outside [0.5, 2]": TruncatedImportanceSampling("token", "mask", 2.0, 0.5),
        "sequence, truncate at 2": TruncatedImportanceSampling("sequence", "truncate", 2.0),
        "sequence, mask at 3": TruncatedImportanceSampling("sequence", "mask", 3.0),
    }
    rows: list[list[object]] = []
    for name, part in parts.items():
        out, seen = reported(batch, part)
        rows.append(
            [
                name,
                *column(out.require("importance_weights")[:, 1:]),
                seen["importance_weights/mean"],
                seen["importance_weights/truncated"],
            ]
        )
    table(("", "w1", "w2", "w3", "mean ratio", "truncated"), rows)
    same: Batch = after(
        batch.replace(rollout_logprobs=batch.require("old_logprobs").clone()), TruncatedImportanceSampling()
    )
    print(f"one engine: {column(same.require('importance_weights')[:, 1:])}")


def main() -> None:
    """Print the numbers of the page."""
    single()
    levels()
    off_policy()
    importance()


if __name__ == "__main__":
    main()
