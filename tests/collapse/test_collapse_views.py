"""Frames and views are nothing at their neutral settings, and hide nothing from the policy's own credit."""

import pytest
import torch

from battery import MORE, SIZES, recipe_of, weights_of, world_of
from paretune.algorithms.grpo import grpo
from paretune.algorithms.ppo import rto
from paretune.algorithms.wrappers import ppo_c, with_confidence, with_thinking
from paretune.core.errors import WiringError
from paretune.credit.base import flatten_steps
from paretune.credit.score_transforms import InvalidFormatPenalty
from paretune.credit.selection import ResampleByRank
from paretune.credit.shaping import ConfidenceCalibratedReward
from paretune.data.chat import THINK_START_TAG
from paretune.data.records import Sample
from paretune.rl.loop import TrainingContext, rollout_and_score
from paretune.rl.validate import check_spec
from toy import WEIGHTS, Cut, stop_after, trained

STEPS = {"steps": 2, "every": 2}


def learnt(folder, recipe):
    world = world_of(recipe, folder)
    trained(folder / "run", world, recipe, **STEPS)
    return weights_of(world.models.policy)


def same(one, other):
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", ["grpo", "gdpo", "ppo", "pf_ppo", "dpo"])
@pytest.mark.parametrize("unscored", ["worst", "drop"])
def test_thinking_without_frame_and_view_is_the_recipe(tmp_path, name, unscored):
    recipe = recipe_of(name)
    neutral = with_thinking(recipe, unscored, prompt_format="", scorer_view="whole")
    same(learnt(tmp_path / "ours", neutral), learnt(tmp_path / "parent", recipe))


def test_ppo_c_whose_confidence_does_not_matter_is_ppo(tmp_path):
    how = SIZES | MORE["ppo"]
    parent = with_confidence(recipe_of("ppo")).replace(scorer_view="without_confidence")
    same(
        learnt(tmp_path / "ours", ppo_c(WEIGHTS, confidence_coef=0.0, **how)),
        learnt(tmp_path / "parent", parent),
    )


def test_ppo_m_is_ppo_that_is_asked_for_its_confidence():
    assert recipe_of("ppo_m", epochs=2).replace(name="ppo") == with_confidence(
        recipe_of("ppo", n=8, epochs=2)
    )


def test_what_is_unread_gets_its_worth_before_anything_is_selected():
    names = [
        type(s).__name__ for s in flatten_steps(with_thinking(recipe_of("pf_ppo"), "worst").reward_steps)
    ]
    assert names.index(InvalidFormatPenalty.__name__) == names.index(ResampleByRank.__name__) - 1
    assert InvalidFormatPenalty() not in flatten_steps(
        with_thinking(recipe_of("pf_ppo"), "drop").reward_steps
    )
    cut = [type(s).__name__ for s in flatten_steps(recipe_of("ppo_c", unfinished=-1.0).reward_steps)]
    assert cut[-2:] == [ConfidenceCalibratedReward.__name__, "Unfinished"]


def test_models_that_are_made_beforehand_think_likewise():
    recipe = with_thinking(rto(WEIGHTS), "worst")
    (phase,) = recipe.phases
    assert (phase.spec.prompt_format, phase.spec.scorer_view) == ("think", "after_thinking")


def test_a_response_has_one_frame_and_stored_ones_have_none():
    with pytest.raises(WiringError, match="reads stored responses"):
        with_thinking(recipe_of("dpo", responses="stored"), "worst")
    with pytest.raises(WiringError, match="reads stored responses"):
        with_confidence(recipe_of("dpo", responses="stored"))
    with pytest.raises(WiringError, match="has a frame and a view of its own"):
        with_thinking(recipe_of("ppo_c"), "worst")
    with pytest.raises(WiringError, match="has a frame of its own"):
        with_confidence(with_thinking(recipe_of("grpo"), "worst"))


class Thinker:
    """A sampler whose responses think, each about something else, and all answer alike but the last one."""

    def __init__(self, inner):
        self.inner, self.asked = inner, []

    def __call__(self, prompts, how, **more):
        self.asked.append(how.frame)
        batch, samples = self.inner(prompts, how, **more)
        texts = [f"{THINK_START_TAG}{s.response}</think> 9 9" for s in samples[:-1]]
        return batch, tuple(
            Sample(prompt=s.prompt, response=text)
            for s, text in zip(samples, [*texts, f"{THINK_START_TAG}4"], strict=True)
        )


def test_thoughts_change_no_score_and_are_credited_like_every_token(tmp_path):
    recipe = with_thinking(grpo(WEIGHTS, num_generations=4, max_new_tokens=6), "worst")
    world = world_of(recipe, tmp_path)
    thinker = Thinker(world.sampler)
    world = TrainingContext(
        **{**{f: getattr(world, f) for f in world.__dataclass_fields__}, "sampler": thinker}
    )
    batch, _ = rollout_and_score(recipe, world, 0, 0)
    assert thinker.asked == ["think"]
    assert (batch.scores[:-1] == batch.scores[0]).all()
    assert batch.scores[-1].isnan().all()
    assert batch.format_valid.tolist() == [True] * (len(batch) - 1) + [False]
    rng = torch.Generator()
    worth, _, _ = recipe.reward_steps.apply_stateful(batch, recipe.reward_steps.init_state(), rng)
    assert not worth.rewards.isnan().any()
    credited, _, _ = recipe.credit.apply_stateful(
        worth.replace(rewards=torch.randn_like(worth.rewards)), (None, None), rng
    )
    for row in range(len(batch)):
        mine = credited.advantages[row, credited.response_mask[row], 0]
        assert (mine == mine[0]).all()


def test_a_stated_confidence_is_a_column_behind_the_objectives():
    recipe = recipe_of("ppo_c")
    assert recipe.scored_objectives(("a", "b")) == ("a", "b", "confidence")
    assert recipe_of("ppo").scored_objectives(("a", "b")) == ("a", "b")
    assert check_spec(recipe, ("even", "high")).num_critic_heads == 1


def test_what_the_worst_was_survives_a_stop(tmp_path):
    recipe = with_thinking(recipe_of("gdpo"), "worst", prompt_format="", scorer_view="whole")
    whole = trained(tmp_path / "whole", world_of(recipe, tmp_path), recipe, steps=3, every=1)
    with pytest.raises(Cut):
        trained(tmp_path / "r", world_of(recipe, tmp_path), recipe, steps=3, every=1, on_step=stop_after(2))
    assert trained(tmp_path / "r", world_of(recipe, tmp_path), recipe, steps=3, every=1) == whole
