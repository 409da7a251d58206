import math

import pytest
import torch

from paretune.credit.scalarization import HypervolumeGuidedWeighting, growth_factor
from toy import graded

NAN = math.nan


def test_growth_factor_is_between_a_half_and_two():
    assert growth_factor(0.0) == 0.5
    assert growth_factor(-3.0) == 0.5
    assert growth_factor(math.inf) == 2.0


def test_hypervolume_growth_scales_rewards():
    part = HypervolumeGuidedWeighting(("k0", "k1"))
    state, rng, factors = part.init_state(), torch.Generator(), []
    points = ([0.2, 0.2], [0.4, 0.4], [0.3, 0.3], [0.6, 0.3], [NAN, 0.9], [0.1, 0.9])
    for point in points:
        batch, state, seen = part.apply_stateful(graded([point, point]), state, rng)
        factors.append(seen.get("state/growth_factor"))
        assert batch.rewards[0, 1].item() == pytest.approx(point[1] * (factors[-1] or 1.0))
    first, leap, inside, wider, unknown, outside = factors
    assert (first, leap, inside, unknown, outside) == (0.5, 2.0, 0.5, None, 0.5)
    assert wider == pytest.approx(0.5 + 1.5 * math.tanh(0.02 / 0.04))
    assert seen["state/hypervolume"] == pytest.approx(0.06)
    assert sorted(state["pareto_front"].tolist()) == [
        pytest.approx(p) for p in ([0.1, 0.9], [0.4, 0.4], [0.6, 0.3])
    ]


def test_absolute_hypervolume_growth():
    part = HypervolumeGuidedWeighting(("k0",), growth_mode="absolute")
    state, rng = part.init_state(), torch.Generator()
    for mean in (0.0, 0.3):
        _, state, seen = part.apply_stateful(graded([[mean]]), state, rng)
    assert seen["state/growth_factor"] == pytest.approx(0.5 + 1.5 * math.tanh(0.3), rel=1e-6)
