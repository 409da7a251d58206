"""A response without form is as bad as the worst so far."""

import pytest
import torch

from paretune.core.errors import WiringError
from paretune.credit.score_transforms import InvalidFormatPenalty
from toy import advance, graded

NAN = float("nan")


def batch(scores, readable):
    return graded(scores).replace(format_valid=torch.tensor(readable))


def test_invalid_format_gets_the_minimum_of_each_column():
    found, _ = advance(
        InvalidFormatPenalty(), batch([[0.5, 3.0], [0.2, 4.0], [NAN, NAN]], [True, True, False])
    )
    assert found.rewards[2].tolist() == pytest.approx([0.2, 3.0])
    assert found.scores[2].isnan().all()


def test_minimum_is_kept_across_steps():
    step, rng = InvalidFormatPenalty(), torch.Generator()
    _, state, _ = step.apply_stateful(batch([[0.1], [0.9]], [True, True]), step.init_state(), rng)
    found, state, _ = step.apply_stateful(batch([[0.5], [NAN]], [True, False]), state, rng)
    assert found.rewards[1].item() == pytest.approx(0.1)
    found, _, _ = step.apply_stateful(batch([[-1.0], [NAN]], [True, False]), state, rng)
    assert found.rewards[1].item() == -1.0


def test_valid_unscored_responses_and_batches_without_scores_stay_unscored():
    found, _ = advance(InvalidFormatPenalty(), batch([[0.5], [NAN]], [True, True]))
    assert found.rewards[1].isnan()
    found, _ = advance(InvalidFormatPenalty(), batch([[NAN], [NAN]], [True, False]))
    assert found.rewards.isnan().all()


def test_format_valid_is_required():
    with pytest.raises(WiringError, match=r"batch\.format_valid"):
        advance(InvalidFormatPenalty(), graded([[0.5]]))
