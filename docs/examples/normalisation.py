"""Baselines and scales: group, leave-one-out, batch and running normalization.

python docs/examples/normalisation.py
"""

import torch
from small import after, block, column, graded, table

from paretune.credit.base import CreditStep
from paretune.credit.normalization import (
    BatchNormalize,
    BroadcastToTokens,
    GroupNormalize,
    LeaveOneOut,
    RunningNormalize,
    Whiten,
    group_normalize,
)
from paretune.credit.selection import DropZeroVarianceGroups
from paretune.credit.shaping import ClipReward

FORMS: dict[str, CreditStep] = {
    'GroupNormalize("group")': GroupNormalize("group"),
    '  std_estimator="population"': GroupNormalize("group", std_estimator="population"),
    '  "none"': GroupNormalize("none"),
    "LeaveOneOut()": LeaveOneOut(),
    '  "group"': LeaveOneOut("group"),
}


def forms() -> None:
    """One group under each baseline."""
    block("forms")
    rewards = (0.2, 0.5, 0.9, 0.4)
    table(
        ("rewards", *map(str, rewards), "sum"), [_summed(name, step, rewards) for name, step in FORMS.items()]
    )
    block("forms of one success")
    rewards = (1.0, 0.0, 0.0, 0.0)
    table(
        ("rewards", *map(str, rewards), "sum"), [_summed(name, step, rewards) for name, step in FORMS.items()]
    )


def _summed(name: str, step: CreditStep, rewards: tuple[float, ...]) -> list[object]:
    signal = column(after(graded(rewards), step).rewards)
    return [name, *signal, sum(signal)]


def zero_variance() -> None:
    """Groups of nearly equal rewards."""
    block("zero variance")
    noise = torch.full((4, 1), 0.7, dtype=torch.float32)
    noise[3] = torch.nextafter(noise[3], torch.ones(1, dtype=torch.float32))
    saturated = torch.tensor([[0.990], [0.991], [0.990], [0.989]])
    group = torch.zeros(4, dtype=torch.long)
    rows: list[list[object]] = []
    for name, x in (("rounding", noise), ("saturated", saturated)):
        for eps, rtol in ((0.0, 0.0), (1e-4, 0.0), (1e-4, 1e-5)):
            z = group_normalize(x, group, "group", "population", eps, rtol)
            rows.append([name, f"{eps:g}", f"{rtol:g}", *column(z)])
    table(("group", "eps", "zero_std_rtol", "A1", "A2", "A3", "A4"), rows)


def batch() -> None:
    """Two prompts, of large and of small variance, and one with equal rewards."""
    block("batch")
    rewards, group = (1.0, 0.0, 0.0, 1.0, 0.6, 0.4, 0.5, 0.5), [0] * 4 + [1] * 4
    scales: dict[str, tuple[CreditStep, ...]] = {
        "of the group": (GroupNormalize("group", std_estimator="population", eps=0.0),),
        "of the batch": (GroupNormalize("batch", std_estimator="population", eps=0.0),),
        "none": (GroupNormalize("none"),),
        "none, then BatchNormalize": (
            GroupNormalize("none"),
            BatchNormalize(std_estimator="population", eps=0.0),
        ),
    }
    rows = [[name, *column(after(graded(rewards, group=group), *s).rewards)] for name, s in scales.items()]
    table(("rewards", *map(str, rewards)), rows, 3)
    kept = after(graded((*rewards, 0.7, 0.7), group=[*group, 2, 2]), DropZeroVarianceGroups(0.2))
    groups = kept.group.unique().tolist()
    print(f"DropZeroVarianceGroups(0.2) of these and of (0.7, 0.7): {groups} of [0, 1, 2] stay")


def whitening() -> None:
    """Statistics over responses, or over tokens."""
    block("whitening")
    rewards, group, lengths = (1.0, 0.0, 0.0, 0.0, 1.0, 1.0), [0] * 4 + [1] * 2, (2, 20, 20, 20, 4, 4)
    chains: dict[str, tuple[CreditStep, ...]] = {
        "group mean only": (GroupNormalize("none"), BroadcastToTokens()),
        "BatchNormalize()": (GroupNormalize("none"), BatchNormalize(), BroadcastToTokens()),
        "Whiten()": (GroupNormalize("none"), BroadcastToTokens(), Whiten()),
        'Whiten(shift_mean="none")': (GroupNormalize("none"), BroadcastToTokens(), Whiten(shift_mean="none")),
    }
    rows: list[list[object]] = []
    for name, steps in chains.items():
        advantages = after(graded(rewards, group=group, lengths=lengths), *steps).require("advantages")
        rows.append([name, *column(advantages[:, 1])])
    table(("tokens", *map(str, lengths)), rows)


def running() -> None:
    """Three training steps; the third one has an outlier."""
    block("running")
    rows: list[list[object]] = []
    parts: dict[str, CreditStep] = {
        "exact": RunningNormalize(),
        "inflated": RunningNormalize(moments_mode="inflated"),
        "ema": RunningNormalize(moments_mode="ema"),
    }
    for name, part in parts.items():
        state = part.init_state()
        for step, rewards in enumerate(((1.0, 3.0), (2.0, 4.0), (3.0, 30.0))):
            out, state, _ = part.apply_stateful(graded(rewards), state, torch.Generator())
            cut = after(out, ClipReward(-0.8, 0.8)).rewards
            rows.append([name, step, *map(str, rewards), *column(out.rewards), *column(cut)])
    table(("moments_mode", "step", "s1", "s2", "scaled 1", "scaled 2", "clipped 1", "clipped 2"), rows)


def main() -> None:
    """Print the numbers of the page."""
    forms()
    zero_variance()
    batch()
    whitening()
    running()


if __name__ == "__main__":
    main()
