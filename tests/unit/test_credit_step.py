from dataclasses import dataclass

import pytest
import torch

from paretune.core.errors import WiringError
from paretune.credit.base import CreditStep, chain
from toy import advance, graded


@dataclass(frozen=True)
class Running(CreditStep):
    """Adds up the signal it has seen."""

    def init_state(self):
        return torch.zeros(())

    def apply_stateful(self, batch, state, rng):
        state = state + batch.rewards.sum()
        return batch.replace(rewards=batch.rewards + state), state, {"state/sum": float(state)}


def test_chain_passes_batch_and_states_on():
    both = chain(Running(), Running())
    batch, state, seen = both.apply_stateful(graded([1.0, 2.0]), both.init_state(), torch.Generator())
    assert batch.rewards.flatten().tolist() == [13.0, 14.0]
    assert [float(s) for s in state] == [3.0, 9.0]
    assert seen == {"state/sum": 9.0}
    batch, state, _ = both.apply_stateful(graded([1.0]), state, torch.Generator())
    assert float(state[0]) == 4.0


def test_empty_chain_does_nothing():
    batch = graded([1.0, 2.0])
    assert advance(chain(), batch) == (batch, {})


def test_step_without_override_raises():
    with pytest.raises(WiringError, match="overrides neither"):
        advance(CreditStep(), graded([1.0]))


def test_repr_of_a_chain():
    assert repr(chain(Running())) == "Chain(steps=(Running(),))"
