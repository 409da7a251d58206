import json
import math

import pytest
import torch

from paretune.credit.advantage import GroupNormalise, Spread, group_normalise
from paretune.credit.aggregate import WeightedSum
from paretune.credit.step import chain
from shared import shared
from toy import advance, graded


@pytest.mark.parametrize("divide", ["std", "none"])
def test_a_flat_group_a_group_of_one_and_rounding_noise_get_exactly_zero(divide):
    batch = graded([0.1 + 0.2, 0.3, 0.3, 5.0], group=[0, 0, 0, 1])
    assert (GroupNormalise(divide).apply(batch).signal == 0).all()


def test_unscored_rows_stay_unscored_count_in_no_mean_and_teach_nothing():
    batch = graded([1.0, math.nan, 0.0], lengths=[1, 2, 2])
    out = chain(GroupNormalise("none"), Spread())
    batch, _ = advance(out, batch)
    assert batch.signal[1].isnan()
    assert batch.advantages[:, :, 0].tolist() == [[0, 0.5, 0], [0, 0, 0], [0, -0.5, -0.5]]


def test_objectives_are_normalised_apart():
    x = torch.tensor([[0.0, 10.0], [1.0, 10.0], [2.0, 40.0]])
    out = group_normalise(x, torch.zeros(3).long(), "std", eps=0.0)
    alone = torch.cat(
        [group_normalise(x[:, k : k + 1], torch.zeros(3).long(), "std", eps=0.0) for k in (0, 1)], 1
    )
    torch.testing.assert_close(out, alone)


def test_published_group_advantages():
    file = json.loads(shared("golden", "trl_grpo_advantages.json").read_text())
    seen = 0
    for case in file["cases"]:
        rewards, p = case["inputs"]["rewards"], case["params"]
        scale = {"group": "std", "none": "none"}.get(p["scale_rewards"])
        summed = p["aggregation"] == "sum_then_normalize"
        # A missing reward counts as 0 there, and leaves the row unscored here.
        if not summed or scale is None or any(r is None for row in rewards for r in row):
            continue
        n = p["num_generations"]
        group = [i // n for i in range(len(rewards))]
        weights = {f"k{k}": float(w) for k, w in enumerate(case["inputs"]["weights"])}
        if not any(weights.values()):
            continue
        batch, _ = advance(chain(WeightedSum(weights), GroupNormalise(scale)), graded(rewards, group=group))
        want = torch.tensor(case["expected"]["advantages"], dtype=torch.float32)
        # Where a group is flat but for rounding, we say 0 and they say noise over 1e-4.
        torch.testing.assert_close(batch.signal[:, 0], want, atol=2e-3, rtol=1e-4, msg=case["name"])
        seen += 1
    assert seen >= 3
