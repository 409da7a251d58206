"""Rewards on tokens: worked numbers, places, and that nothing is lost on the way."""

import pytest
import torch

from paretune.core.errors import WiringError
from paretune.credit.base import chain
from paretune.credit.returns import RedistributeTokenRewards, sum_at_segment_ends
from paretune.credit.shaping import KlPenalty, TerminalReward
from paretune.models.model_passes import implicit_reward
from toy import advance, graded

TUNED, REFERENCE, POLICY = (-1.0, -0.5, -2.0), (-1.4, -0.3, -2.2), (-1.2, -0.3, -1.7)
PAY = chain(TerminalReward(), KlPenalty(0.01))
pytestmark = pytest.mark.usefixtures("double")


def three_tokens(tuned=TUNED, score=0.8, clip=0.05, beta=0.05):
    def shown(logp):
        return torch.tensor([[0.0, *logp]])

    batch = graded([score], lengths=[3])
    dense = implicit_reward(shown(tuned), shown(REFERENCE), batch.response_mask, beta, clip)
    return batch.replace(
        old_logprobs=shown(POLICY), ref_logprobs=shown(REFERENCE), token_rewards=dense[..., None]
    )


def paid(batch, *steps):
    return advance(chain(*steps), batch)[0].token_rewards[0, 1:, 0].tolist()


def test_token_rewards_match_manual_values():
    batch = three_tokens()
    assert paid(batch) == pytest.approx([0.02, -0.01, 0.01])
    assert paid(batch.replace(token_rewards=None), KlPenalty(0.01)) == pytest.approx([-0.002, 0, -0.005])
    assert paid(batch, PAY) == pytest.approx([0.018, -0.010, 0.805])


def test_clip_applies_after_scaling():
    assert paid(three_tokens(tuned=(0.6, -0.3, -2.2), clip=None))[0] == pytest.approx(0.1)
    assert paid(three_tokens(tuned=(0.6, -0.3, -2.2)))[0] == pytest.approx(0.05)


def test_rewards_move_to_sentence_ends_or_the_last_token():
    batch = three_tokens()
    tokens = torch.tensor([[7, 1, 7, 2]])
    at = batch.replace(input_ids=tokens)
    assert paid(at, RedistributeTokenRewards("sentence", sentence_end_ids=(7, 9))) == pytest.approx(
        [0, 0.01, 0.01]
    )
    assert paid(at, RedistributeTokenRewards("end")) == pytest.approx([0, 0, 0.02])


def test_shaping_does_not_change_the_return():
    batch = three_tokens()
    shaped = paid(batch, RedistributeTokenRewards("shaping"), PAY)
    assert shaped == pytest.approx([0.018, -0.010, 0.785])
    plain = paid(batch.replace(token_rewards=None), PAY)
    assert sum(shaped) == pytest.approx(sum(plain)) == pytest.approx(0.793)


def test_token_rewards_telescope():
    assert sum(paid(three_tokens(clip=None))) == pytest.approx(0.05 * (sum(TUNED) - sum(REFERENCE)))


def test_tuned_model_equal_to_reference_adds_no_reward():
    batch = three_tokens(tuned=REFERENCE)
    assert paid(batch, PAY) == paid(batch.replace(token_rewards=None), PAY)


def test_tuned_model_is_optimal_for_equal_reward_and_kl_coefficients():
    """Any other policy over four tokens has a lower mean of reward less price, whose optimum is 0."""
    gen = torch.Generator().manual_seed(0)
    tuned, reference = (torch.randn(4, generator=gen).log_softmax(0) for _ in range(2))

    def worth(policy):
        return float((policy.exp() * ((tuned - reference) - (policy - reference))).sum())

    assert worth(tuned) == pytest.approx(0, abs=1e-12)
    assert all(worth((tuned + 0.3 * torch.randn(4, generator=gen)).log_softmax(0)) < 0 for _ in range(20))


def test_segments_skip_masked_tokens_and_padding():
    respond = torch.tensor([[False, True, True, False, True, True, False], [False, *[True] * 6]])
    reward = torch.arange(1.0, 15.0).reshape(2, 7, 1)
    ends = torch.tensor([[True, False, True, True, False, False, True], [False] * 7])
    got = sum_at_segment_ends(reward, respond, ends)[..., 0]
    assert got.tolist() == [[0, 0, 2 + 3, 0, 0, 5 + 6, 0], [0, 0, 0, 0, 0, 0, sum(range(9, 15))]]


def test_token_rewards_are_added_to_every_head():
    batch = graded([[1.0, 2.0]], lengths=[3]).replace(token_rewards=three_tokens().token_rewards)
    out, _ = advance(TerminalReward(), batch)
    assert out.token_rewards[0, 3].tolist() == pytest.approx([1.01, 2.01])


def test_invalid_settings_and_wiring_raise():
    with pytest.raises(WiringError, match='sentence_end_ids with mode "sentence"'):
        RedistributeTokenRewards("sentence")
    with pytest.raises(WiringError, match="and with no other"):
        RedistributeTokenRewards("end", sentence_end_ids=(1,))
    with pytest.raises(WiringError, match=r"batch\.token_rewards"):
        advance(RedistributeTokenRewards("end"), graded([1.0]))
