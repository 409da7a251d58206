"""Verbalized confidence, sampling by rank, and token rewards.

python docs/examples/worth.py
"""

import torch
from small import after, block, column, graded, table

from paretune.credit.returns import RedistributeTokenRewards
from paretune.credit.selection import RankFiltrationStrategy, rank_probabilities
from paretune.credit.shaping import AdjustmentType, confidence_adjustment
from paretune.models.model_passes import implicit_reward


def confidence() -> None:
    """Two rewards around a mean of 1, for three confidences."""
    block("confidence")
    forms: dict[AdjustmentType, float] = {"difference": 2.0, "threshold": 0.5}
    rows: list[list[object]] = []
    for adjustment, w in forms.items():
        for reward in (2.0, 0.2):
            r, c = torch.full((3,), reward), torch.tensor([0.1, 0.5, 0.9])
            adjusted = r + confidence_adjustment(r, c, torch.tensor(1.0), w, adjustment)
            rows.append([f'"{adjustment}", w = {w:g}', f"{reward:g}", *column(adjusted)])
    table(("", "reward", "c = 0.1", "c = 0.5", "c = 0.9"), rows)


def probabilities() -> None:
    """Five responses, the best first."""
    block("probabilities")
    names: tuple[RankFiltrationStrategy, ...] = ("best_of_n", "best_random", "best_worst")
    table(("rank", *"12345"), [[name, *column(torch.tensor(rank_probabilities(name, 5)))] for name in names])


def dense() -> None:
    """One response of three tokens, and the placement of its rewards."""
    block("token rewards")
    batch = graded([0.8], lengths=[3])
    gain = torch.tensor([[0.0, 0.4, -0.2, 0.2]])
    reward = implicit_reward(gain, torch.zeros(1, 4), batch.response_mask, 0.05)
    batch = batch.replace(input_ids=torch.tensor([[5, 6, 7, 8]]), token_rewards=reward[..., None])
    parts = {
        "unchanged": (),
        'RedistributeTokenRewards("sentence", (7,))': (
            RedistributeTokenRewards("sentence", sentence_end_ids=(7,)),
        ),
        'RedistributeTokenRewards("end")': (RedistributeTokenRewards("end"),),
        'RedistributeTokenRewards("shaping")': (RedistributeTokenRewards("shaping"),),
    }
    rows: list[list[object]] = []
    for name, steps in parts.items():
        rewards = after(batch, *steps).require("token_rewards")[0, 1:]
        rows.append([name, *column(rewards), *column(rewards.sum(0))])
    table(("", "r1", "r2", "r3", "sum"), rows)


def main() -> None:
    """Print the numbers of the page."""
    confidence()
    probabilities()
    dense()


if __name__ == "__main__":
    main()
