"""What a response is compared with: the forms of a baseline and of a scale.

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
    'GroupNormalise("std")': GroupNormalize("std"),
    '  form="population"': GroupNormalize("std", std_estimator="population"),
    '  "none"': GroupNormalize("none"),
    "LeaveOneOut()": LeaveOneOut(),
    '  "std"': LeaveOneOut("std"),
}


def forms() -> None:
    """One group under each form."""
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


def flat() -> None:
    """Groups in which nobody was better than anybody."""
    block("flat")
    noise = torch.full((4, 1), 0.7, dtype=torch.float32)
    noise[3] = torch.nextafter(noise[3], torch.ones(1, dtype=torch.float32))
    settled = torch.tensor([[0.990], [0.991], [0.990], [0.989]])
    group = torch.zeros(4, dtype=torch.long)
    rows: list[list[object]] = []
    for name, x in (("rounding", noise), ("settled", settled)):
        for eps, floor in ((0.0, 0.0), (1e-4, 0.0), (1e-4, 1e-5)):
            z = group_normalize(x, group, "std", "population", eps, floor)
            rows.append([name, f"{eps:g}", f"{floor:g}", *column(z)])
    table(("group", "eps", "floor", "A1", "A2", "A3", "A4"), rows)


def batch() -> None:
    """Two prompts, of large and of small spread, and one whose responses are all alike."""
    block("batch")
    rewards, group = (1.0, 0.0, 0.0, 1.0, 0.6, 0.4, 0.5, 0.5), [0] * 4 + [1] * 4
    scales: dict[str, tuple[CreditStep, ...]] = {
        "of the group": (GroupNormalize("std", std_estimator="population", eps=0.0),),
        "of the batch": (GroupNormalize("batch", std_estimator="population", eps=0.0),),
        "none": (GroupNormalize("none"),),
        "none, then BatchNormalise": (
            GroupNormalize("none"),
            BatchNormalize(std_estimator="population", eps=0.0),
        ),
    }
    rows = [[name, *column(after(graded(rewards, group=group), *s).rewards)] for name, s in scales.items()]
    table(("rewards", *map(str, rewards)), rows, 3)
    kept = after(graded((*rewards, 0.7, 0.7), group=[*group, 2, 2]), DropZeroVarianceGroups(0.2))
    print(f"DropFlatGroups(0.2) of these and of (0.7, 0.7): {kept.group.unique().tolist()} of [0, 1, 2] stay")


def whitening() -> None:
    """Each response once, or as often as it is long."""
    block("whitening")
    rewards, group, lengths = (1.0, 0.0, 0.0, 0.0, 1.0, 1.0), [0] * 4 + [1] * 2, (2, 20, 20, 20, 4, 4)
    chains: dict[str, tuple[CreditStep, ...]] = {
        "group mean only": (GroupNormalize("none"), BroadcastToTokens()),
        "BatchNormalise()": (GroupNormalize("none"), BatchNormalize(), BroadcastToTokens()),
        "Whiten()": (GroupNormalize("none"), BroadcastToTokens(), Whiten()),
        'Whiten(mean="kept")': (GroupNormalize("none"), BroadcastToTokens(), Whiten(shift_mean="kept")),
    }
    rows: list[list[object]] = []
    for name, steps in chains.items():
        advantages = after(graded(rewards, group=group, lengths=lengths), *steps).require("advantages")
        rows.append([name, *column(advantages[:, 1])])
    table(("tokens", *map(str, lengths)), rows)


def running() -> None:
    """Three steps of training; the third one has a runaway score."""
    block("running")
    rows: list[list[object]] = []
    parts: dict[str, CreditStep] = {
        "exact": RunningNormalize(),
        "inflated": RunningNormalize(moments_mode="inflated"),
        "fading": RunningNormalize(moments_mode="fading"),
    }
    for name, part in parts.items():
        state = part.init_state()
        for step, rewards in enumerate(((1.0, 3.0), (2.0, 4.0), (3.0, 30.0))):
            out, state, _ = part.apply_stateful(graded(rewards), state, torch.Generator())
            cut = after(out, ClipReward(-0.8, 0.8)).rewards
            rows.append([name, step, *map(str, rewards), *column(out.rewards), *column(cut)])
    table(("memory", "step", "s1", "s2", "scaled 1", "scaled 2", "cut 1", "cut 2"), rows)


def main() -> None:
    """Print the numbers of the page."""
    forms()
    flat()
    batch()
    whitening()
    running()


if __name__ == "__main__":
    main()
