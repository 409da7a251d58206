"""Prompt formats and scorer views: neutral settings change nothing, and all tokens are trained."""

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
from paretune.data.chat_template import THINK_START_TAG
from paretune.data.records import Sample
from paretune.rl.context import TrainingContext
from paretune.rl.rollout import rollout_and_score
from paretune.rl.validate import check_spec
from toy import WEIGHTS, Cut, stop_after, trained

STEPS = {"steps": 2, "every": 2}


def final_weights(folder, recipe):
    world = world_of(recipe, folder)
    trained(folder / "run", world, recipe, **STEPS)
    return weights_of(world.models.policy)


def same(one, other):
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", ["grpo", "gdpo", "ppo", "pf_ppo", "dpo"])
@pytest.mark.parametrize("unscored", ["penalize", "drop"])
def test_thinking_without_format_and_view_trains_as_the_original(tmp_path, name, unscored):
    recipe = recipe_of(name)
    neutral = with_thinking(recipe, unscored, prompt_format="", scorer_view="full")
    same(final_weights(tmp_path / "ours", neutral), final_weights(tmp_path / "parent", recipe))


def test_ppo_c_with_coefficient_0_equals_ppo(tmp_path):
    how = SIZES | MORE["ppo"]
    parent = with_confidence(recipe_of("ppo")).replace(scorer_view="without_confidence")
    same(
        final_weights(tmp_path / "ours", ppo_c(WEIGHTS, confidence_coef=0.0, **how)),
        final_weights(tmp_path / "parent", parent),
    )


def test_ppo_m_is_ppo_with_confidence_prompt_format():
    assert recipe_of("ppo_m", num_iterations=2).replace(name="ppo") == with_confidence(
        recipe_of("ppo", num_generations=8, num_iterations=2)
    )


def test_format_penalty_comes_before_selection():
    names = [
        type(s).__name__ for s in flatten_steps(with_thinking(recipe_of("pf_ppo"), "penalize").reward_steps)
    ]
    assert names.index(InvalidFormatPenalty.__name__) == names.index(ResampleByRank.__name__) - 1
    assert InvalidFormatPenalty() not in flatten_steps(
        with_thinking(recipe_of("pf_ppo"), "drop").reward_steps
    )
    cut = [type(s).__name__ for s in flatten_steps(recipe_of("ppo_c", missing_eos_reward=-1.0).reward_steps)]
    assert cut[-2:] == [ConfidenceCalibratedReward.__name__, "EosTrick"]


def test_phases_have_the_same_thinking_format():
    recipe = with_thinking(rto(WEIGHTS), "penalize")
    (phase,) = recipe.phases
    assert (phase.spec.prompt_format, phase.spec.scorer_view) == ("think", "after_thinking")


def test_second_prompt_format_and_stored_responses_are_refused():
    with pytest.raises(WiringError, match="uses stored responses"):
        with_thinking(recipe_of("dpo", response_source="stored"), "penalize")
    with pytest.raises(WiringError, match="uses stored responses"):
        with_confidence(recipe_of("dpo", response_source="stored"))
    with pytest.raises(WiringError, match='already has the prompt format "confidence" and the scorer view'):
        with_thinking(recipe_of("ppo_c"), "penalize")
    with pytest.raises(WiringError, match='already has the prompt format "think"'):
        with_confidence(with_thinking(recipe_of("grpo"), "penalize"))


class Thinker:
    """A sampler whose responses have different thinking and the same final response, except the last one."""

    def __init__(self, inner):
        self.inner, self.formats = inner, []

    def __call__(self, prompts, rollout, **kwargs):
        self.formats.append(rollout.prompt_format)
        batch, samples = self.inner(prompts, rollout, **kwargs)
        texts = [f"{THINK_START_TAG}{s.response}</think> 9 9" for s in samples[:-1]]
        return batch, tuple(
            Sample(prompt=s.prompt, response=text)
            for s, text in zip(samples, [*texts, f"{THINK_START_TAG}4"], strict=True)
        )


def test_thinking_changes_no_score_and_is_trained_like_other_tokens(tmp_path):
    recipe = with_thinking(grpo(WEIGHTS, num_generations=4, max_new_tokens=6), "penalize")
    world = world_of(recipe, tmp_path)
    thinker = Thinker(world.sampler)
    world = TrainingContext(
        **{**{f: getattr(world, f) for f in world.__dataclass_fields__}, "sampler": thinker}
    )
    batch, _ = rollout_and_score(recipe, world, 0, 0)
    assert thinker.formats == ["think"]
    assert (batch.scores[:-1] == batch.scores[0]).all()
    assert batch.scores[-1].isnan().all()
    assert batch.format_valid.tolist() == [True] * (len(batch) - 1) + [False]
    rng = torch.Generator()
    shaped, _, _ = recipe.reward_steps.apply_stateful(batch, recipe.reward_steps.init_state(), rng)
    assert not shaped.rewards.isnan().any()
    credited, _, _ = recipe.credit.apply_stateful(
        shaped.replace(rewards=torch.randn_like(shaped.rewards)), (None, None), rng
    )
    for row in range(len(batch)):
        advantages = credited.advantages[row, credited.response_mask[row], 0]
        assert (advantages == advantages[0]).all()


def test_confidence_is_the_last_score_column():
    recipe = recipe_of("ppo_c")
    assert recipe.scored_objectives(("a", "b")) == ("a", "b", "confidence")
    assert recipe_of("ppo").scored_objectives(("a", "b")) == ("a", "b")
    assert check_spec(recipe, ("even", "high")).num_critic_heads == 1


def test_format_penalty_state_survives_resume(tmp_path):
    recipe = with_thinking(recipe_of("gdpo"), "penalize", prompt_format="", scorer_view="full")
    whole = trained(tmp_path / "whole", world_of(recipe, tmp_path), recipe, steps=3, every=1)
    with pytest.raises(Cut):
        trained(tmp_path / "r", world_of(recipe, tmp_path), recipe, steps=3, every=1, on_step=stop_after(2))
    assert trained(tmp_path / "r", world_of(recipe, tmp_path), recipe, steps=3, every=1) == whole
