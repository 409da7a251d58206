import math

import pytest
import torch

from paretune.core.errors import WiringError
from paretune.credit.base import chain
from paretune.credit.normalization import RunningMoments, RunningNormalize, Whiten
from paretune.credit.returns import Gae, ReturnToGo
from paretune.credit.selection import DropZeroVarianceGroups
from paretune.credit.shaping import ClipReward, KlPenalty, OverlongPenalty, TerminalReward
from paretune.training.checkpoint import deserialize_tree, serialize_tree
from toy import Cut, advance, graded, stop_after, toy_recipe, trained

NAN = math.nan


def shaped(scores, lengths, **more):
    batch = graded(scores, lengths=lengths, **more)
    zero = torch.zeros(batch.input_ids.shape)
    return batch.replace(old_logprobs=zero + 0.3 * batch.response_mask, ref_logprobs=zero)


def test_terminal_reward_is_at_the_last_response_token():
    respond = torch.tensor([[False, True, False, True, False], [True, False, False, False, False]])
    out, _ = advance(TerminalReward(), graded([2.0, 3.0], respond=respond))
    assert out.token_rewards[..., 0].tolist() == [[0, 0, 0, 2, 0], [3, 0, 0, 0, 0]]


def test_unscored_response_trains_neither_policy_nor_critic():
    batch = shaped([1.0, NAN, 0.0], [2, 3, 3]).replace(values=torch.full((3, 4, 1), 0.25))
    paid = chain(TerminalReward(), KlPenalty(0.1))
    out, _ = advance(chain(paid, Gae()), batch)
    assert (out.advantages[1] == 0).all()
    assert torch.equal(out.returns[1], out.values[1] * batch.response_mask[1][:, None])
    out, _ = advance(chain(paid, ReturnToGo(), Whiten()), batch)
    assert (out.advantages[1] == 0).all()
    alone, _ = advance(chain(paid, ReturnToGo(), Whiten()), batch.select(torch.tensor([0, 2])))
    torch.testing.assert_close(out.advantages[[0, 2]], alone.advantages)


def test_gae_with_lambda_one_is_return_minus_value():
    batch = shaped([1.0, -1.0], [2, 3])
    batch = batch.replace(values=torch.sin(torch.arange(8.0)).reshape(2, 4, 1))
    paid = chain(TerminalReward(), KlPenalty(0.1))
    critic, _ = advance(chain(paid, Gae(0.9, 1.0)), batch)
    returns, _ = advance(chain(paid, ReturnToGo(0.9)), batch)
    mask = batch.response_mask[..., None]
    torch.testing.assert_close(critic.advantages, (returns.advantages - batch.values) * mask)
    torch.testing.assert_close(critic.returns, returns.advantages)


def test_gae_with_zero_values_is_whitened_reinforce():
    batch = shaped([1.0, -1.0], [2, 3])
    paid = chain(TerminalReward(), KlPenalty(0.1))
    critic, _ = advance(chain(paid, Gae(1.0, 1.0), Whiten()), batch.replace(values=torch.zeros(2, 4, 1)))
    returns, _ = advance(chain(paid, ReturnToGo(), Whiten()), batch)
    assert torch.equal(critic.advantages, returns.advantages)


@pytest.mark.parametrize("at", ["inside", "outside"])
def test_whiten_is_per_objective(at):
    batch = graded([[1.0, 5.0], [3.0, 5.0]], lengths=[1, 2])
    batch = batch.replace(advantages=batch.rewards[:, None, :] * batch.response_mask[..., None])
    white, _ = advance(Whiten("population", eps=0.0, eps_position=at), batch)
    one = white.advantages[..., 0][batch.response_mask]
    assert float(one.mean()) == pytest.approx(0, abs=1e-6)
    assert float(one.square().mean()) == pytest.approx(1, rel=1e-5)
    assert (white.advantages[..., 1] == 0).all()
    assert (white.advantages[~batch.response_mask] == 0).all()


def test_whiten_can_restore_or_keep_the_mean():
    batch = graded([4.0, 6.0], lengths=[1, 1])
    batch, _ = advance(TerminalReward(), batch)
    back, _ = advance(Whiten("population", "restore", 0.0, apply_to="token_rewards"), batch)
    assert back.token_rewards[:, 1, 0].tolist() == pytest.approx([4.0, 6.0])
    kept, _ = advance(Whiten("population", "none", 0.0, apply_to="token_rewards"), batch)
    assert kept.token_rewards[:, 1, 0].tolist() == pytest.approx([4.0, 6.0])
    flat, _ = advance(
        Whiten("population", "restore", apply_to="token_rewards"), batch.select(torch.tensor([0, 0]))
    )
    assert flat.token_rewards[:, 1, 0].tolist() == [4.0, 4.0]


@pytest.mark.parametrize("memory", ["exact", "inflated", "ema"])
def test_running_normalize_resumes_bit_for_bit(memory):
    step = RunningNormalize(moments_mode=memory)
    _, state, _ = step.apply_stateful(graded([[1.0, NAN], [2.5, 0.5]]), step.init_state(), torch.Generator())
    packed, tensors = serialize_tree(state)
    again = deserialize_tree(packed, tensors, step.init_state())
    assert isinstance(again, RunningMoments)
    batch = graded([[0.1, 0.2], [0.7, NAN]])
    one, two = (step.apply_stateful(batch, s, torch.Generator())[0].rewards for s in (state, again))
    assert torch.equal(one.nan_to_num(9), two.nan_to_num(9))
    assert one.isnan().tolist() == [[False, False], [False, True]]


def test_running_normalize_gives_zero_for_equal_rewards():
    for mean in ("subtract", "none"):
        out, _ = advance(RunningNormalize(mean), graded([0.1 + 0.2, 0.3, 0.3]))
        assert (out.rewards == 0).all()


def test_clip_reward_clips_and_logs_the_fraction():
    out, seen = advance(ClipReward(-1.0, 1.0), graded([-3.0, NAN, 0.5]))
    assert out.rewards.flatten().nan_to_num(9).tolist() == [-1.0, 9.0, 0.5]
    assert seen == {"reward/clipped": 0.5}
    batch = graded([0.0, 0.0], lengths=[1, 2])
    batch = batch.replace(advantages=torch.tensor([[0, 5.0, 7.0], [0, 0.5, 0.5]])[..., None])
    out, seen = advance(ClipReward(-1.0, 1.0, apply_to="advantages"), batch)
    assert out.advantages.max() == 1
    assert seen == {"advantages/clipped": pytest.approx(1 / 3)}


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: KlPenalty(-0.1), "must not be negative"),
        (lambda: Gae(lam=1.5), r"lam is 1.5; it must be in \[0, 1\]"),
        (lambda: ReturnToGo(-0.5), "gamma is -0.5"),
        (lambda: ClipReward(1.0, 1.0), "the first must be the smaller"),
        (lambda: OverlongPenalty(10, 11), "buffer must be in"),
        (lambda: DropZeroVarianceGroups(-1.0), "min_relative_std is -1.0"),
        (lambda: RunningNormalize(ema_decay=1.0), "ema_decay is 1.0"),
        (lambda: advance(OverlongPenalty(10, 5), graded([[1.0, 2.0]])), "OverlongPenalty needs one reward"),
        (lambda: advance(KlPenalty(0.1, level="sequence"), shaped([[1.0, 2.0]], [2])), "KlPenalty needs one"),
        (lambda: advance(Gae(), two_heads()), "of 2 objectives and the critic has 1 heads"),
        (lambda: advance(KlPenalty(0.1), graded([1.0])), "batch.old_logprobs"),
        (lambda: advance(Whiten(), graded([1.0])), "batch.advantages"),
    ],
)
def test_invalid_settings_and_wiring_raise(make, match):
    with pytest.raises(WiringError, match=match):
        make()


def two_heads():
    batch, _ = advance(TerminalReward(), graded([[1.0, 2.0]]))
    object.__setattr__(batch, "values", torch.zeros(1, 3, 1))  # past the shape checks of the tests
    return batch


def test_run_with_stateful_steps_resumes_bit_for_bit(tmp_path):
    recipe = toy_recipe(num_generations=4, max_new_tokens=4)
    recipe = recipe.replace(
        reward_steps=chain(
            recipe.reward_steps, DropZeroVarianceGroups(0.05), RunningNormalize(), ClipReward(-5.0, 5.0)
        )
    )
    whole = trained(tmp_path / "whole", recipe=recipe, steps=3, every=1)
    with pytest.raises(Cut):
        trained(tmp_path / "cut", recipe=recipe, steps=3, every=1, on_step=stop_after(2))
    assert trained(tmp_path / "cut", recipe=recipe, steps=3, every=1) == whole
