"""The default algorithm: its parts, and one step of it by hand.

python docs/examples/grpo.py
"""

from dataclasses import fields, is_dataclass

import torch
from small import after, block, graded, table

from paretune.algorithms import ALGORITHMS
from paretune.algorithms.grpo import grpo
from paretune.core.batch import Outputs
from paretune.credit.base import Chain, CreditStep
from paretune.credit.normalization import BroadcastToTokens, GroupNormalize
from paretune.loss.base import WeightedLoss, total_loss
from paretune.loss.kl import KlToReference
from paretune.loss.policy import ClippedSurrogate
from paretune.rl.algorithm_spec import AlgorithmSpec, LossAggregation

WEIGHTS = {"polite": 1.0, "safety": 1.0}
GATES = (("polite", "safety", 0.5, 0.0),)

FAMILY = ("dr_grpo", "rloo", "reinforce_pp", "gdpo", "mo_grpo", "dapo", "gspo", "cispo", "sapo")
"""Critic-free policy-gradient algorithms."""


def short_repr(part: object) -> str:
    """The class name of a part, and its fields that are not at their defaults."""
    if not is_dataclass(part) or isinstance(part, type):
        return repr(part)
    values = {field.name: (getattr(part, field.name), field.default) for field in fields(part)}
    changed = ", ".join(
        f"{name}={short_repr(value)}" for name, (value, default) in values.items() if value != default
    )
    return f"{type(part).__name__}({changed})"


def lines(spec: AlgorithmSpec) -> list[tuple[str, str]]:
    """Every part, with the name of its field in the spec."""
    result: list[tuple[str, str]] = []
    for field in fields(spec):
        value = getattr(spec, field.name)
        each = (
            list(value)
            if isinstance(value, tuple)
            else _steps(value)
            if isinstance(value, CreditStep)
            else [value]
        )
        result += [(field.name if i == 0 else "", short_repr(part)) for i, part in enumerate(each)]
    return result


def _steps(step: CreditStep) -> list[CreditStep]:
    return [inner for part in step.steps for inner in _steps(part)] if isinstance(step, Chain) else [step]


def parts() -> None:
    """The spec of two objectives with a gate."""
    block("parts")
    for name, part in lines(grpo(WEIGHTS, gates=GATES)):
        print(f"{name:<17}{part}")


def one_step() -> None:
    """Two responses of two tokens and of one, with rewards 1 and 0, at the start of an update."""
    block("one step")
    batch = after(
        graded([1.0, 0.0], lengths=[2, 1]),
        GroupNormalize(std_estimator="population", eps=0.0),
        BroadcastToTokens(),
    )
    logp = torch.where(batch.response_mask, torch.tensor([[0.0, -0.7, -1.0], [0.0, -0.5, 0.0]]), 0.0)
    reference = torch.where(batch.response_mask, torch.tensor([[0.0, -0.9, -1.0], [0.0, 0.0, 0.0]]), 0.0)
    batch = batch.replace(
        old_logprobs=logp,
        ref_logprobs=reference,
        loss_weights=LossAggregation("seq_mean_token_mean")(batch.response_mask),
    )
    now = logp.clone().requires_grad_()
    loss, terms = total_loss(
        (WeightedLoss(1.0, ClippedSurrogate()), WeightedLoss(0.04, KlToReference())),
        Outputs(logprobs=now),
        batch,
    )
    (slope,) = torch.autograd.grad(loss, now)
    rows: list[list[object]] = []
    for row, t in batch.response_mask.nonzero().tolist():
        gap = float(logp[row, t] - reference[row, t])
        advantage = float(batch.require("advantages")[row, t, 0])
        rows.append(
            [
                f"o{row + 1}, {t}",
                advantage,
                gap,
                float(batch.require("loss_weights")[row, t]),
                float(slope[row, t]),
            ]
        )
    table(("token", "advantage", "log p - log p_ref", "weight", "gradient"), rows)
    print(*(f"{name} {value:.6f}," for name, value in terms.items()), f"loss {float(loss.detach()):.9f}")


def family() -> None:
    """Differences of related algorithms from GRPO, field by field."""
    block("family")
    weights = dict(WEIGHTS)
    base = dict(_by_field(grpo(weights)))
    for name in FAMILY:
        print(name)
        for field, value in _by_field(ALGORITHMS[name](weights)):
            if field != "name" and value != base[field]:
                print(f"  {field:<16} {value}")


def _by_field(spec: AlgorithmSpec) -> list[tuple[str, str]]:
    joined: dict[str, list[str]] = {}
    last = ""
    for name, part in lines(spec):
        last = name or last
        joined.setdefault(last, []).append(part)
    return [(field.name, ", ".join(joined.get(field.name, ["nothing"]))) for field in fields(spec)]


def main() -> None:
    """Print the numbers of the page."""
    parts()
    one_step()
    family()


if __name__ == "__main__":
    main()
