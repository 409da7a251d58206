"""A response without form is as bad as the worst so far."""

import pytest
import torch

from paretune.credit.unread import UnreadIsWorst
from paretune.errors import WiringError
from toy import advance, graded

NAN = float("nan")


def batch(scores, readable):
    return graded(scores).set(readable=torch.tensor(readable))


def test_it_gets_the_worst_of_each_column():
    found, _ = advance(UnreadIsWorst(), batch([[0.5, 3.0], [0.2, 4.0], [NAN, NAN]], [True, True, False]))
    assert found.signal[2].tolist() == pytest.approx([0.2, 3.0])
    assert found.scores[2].isnan().all()


def test_the_worst_is_remembered():
    step, rng = UnreadIsWorst(), torch.Generator()
    _, state, _ = step.advance(batch([[0.1], [0.9]], [True, True]), step.start(), rng)
    found, state, _ = step.advance(batch([[0.5], [NAN]], [True, False]), state, rng)
    assert found.signal[1].item() == pytest.approx(0.1)
    found, _, _ = step.advance(batch([[-1.0], [NAN]], [True, False]), state, rng)
    assert found.signal[1].item() == -1.0


def test_what_nobody_could_judge_stays_unscored_and_so_does_everything_before_any_score():
    found, _ = advance(UnreadIsWorst(), batch([[0.5], [NAN]], [True, True]))
    assert found.signal[1].isnan()
    found, _ = advance(UnreadIsWorst(), batch([[NAN], [NAN]], [True, False]))
    assert found.signal.isnan().all()


def test_it_needs_to_know_what_was_readable():
    with pytest.raises(WiringError, match=r"batch\.readable"):
        advance(UnreadIsWorst(), graded([[0.5]]))
