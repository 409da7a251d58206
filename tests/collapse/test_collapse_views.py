"""Frames and views are nothing at their neutral settings, and hide nothing from the policy's own credit."""

import pytest
import torch

from battery import MORE, SIZES, recipe_of, weights_of, world_of
from paretune.algorithms.confidence import asking, ppo_c
from paretune.algorithms.grpo import grpo
from paretune.algorithms.ppo import rto
from paretune.algorithms.thinking import with_thinking
from paretune.credit.confidence import CalibrateByConfidence
from paretune.credit.resample import ResampleByRank
from paretune.credit.step import steps_of
from paretune.credit.unread import UnreadIsWorst
from paretune.data.frame import OPEN
from paretune.data.records import Sample
from paretune.errors import WiringError
from paretune.learn.check import check
from paretune.learn.descend import World, collect
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
    neutral = with_thinking(recipe, unscored, frame="", view="whole")
    same(learnt(tmp_path / "ours", neutral), learnt(tmp_path / "parent", recipe))


def test_ppo_c_whose_confidence_does_not_matter_is_ppo(tmp_path):
    how = SIZES | MORE["ppo"]
    parent = asking(recipe_of("ppo")).but(view="without_confidence")
    same(learnt(tmp_path / "ours", ppo_c(WEIGHTS, w=0.0, **how)), learnt(tmp_path / "parent", parent))


def test_ppo_m_is_ppo_that_is_asked_for_its_confidence():
    assert recipe_of("ppo_m", epochs=2).but(name="ppo") == asking(recipe_of("ppo", n=8, epochs=2))


def test_what_is_unread_gets_its_worth_before_anything_is_selected():
    names = [type(s).__name__ for s in steps_of(with_thinking(recipe_of("pf_ppo"), "worst").worth)]
    assert names.index(UnreadIsWorst.__name__) == names.index(ResampleByRank.__name__) - 1
    assert UnreadIsWorst() not in steps_of(with_thinking(recipe_of("pf_ppo"), "drop").worth)
    cut = [type(s).__name__ for s in steps_of(recipe_of("ppo_c", unfinished=-1.0).worth)]
    assert cut[-2:] == [CalibrateByConfidence.__name__, "Unfinished"]


def test_models_that_are_made_beforehand_think_likewise():
    recipe = with_thinking(rto(WEIGHTS), "worst")
    (phase,) = recipe.before
    assert (phase.recipe.frame, phase.recipe.view) == ("think", "after_thinking")


def test_a_response_has_one_frame_and_stored_ones_have_none():
    with pytest.raises(WiringError, match="reads stored responses"):
        with_thinking(recipe_of("dpo", responses="stored"), "worst")
    with pytest.raises(WiringError, match="reads stored responses"):
        asking(recipe_of("dpo", responses="stored"))
    with pytest.raises(WiringError, match="has a frame and a view of its own"):
        with_thinking(recipe_of("ppo_c"), "worst")
    with pytest.raises(WiringError, match="has a frame of its own"):
        asking(with_thinking(recipe_of("grpo"), "worst"))


class Thinker:
    """A sampler whose responses think, each about something else, and all answer alike but the last one."""

    def __init__(self, inner):
        self.inner, self.asked = inner, []

    def __call__(self, prompts, how, **more):
        self.asked.append(how.frame)
        batch, samples = self.inner(prompts, how, **more)
        texts = [f"{OPEN}{s.response}</think> 9 9" for s in samples[:-1]]
        return batch, tuple(
            Sample(prompt=s.prompt, response=text)
            for s, text in zip(samples, [*texts, f"{OPEN}4"], strict=True)
        )


def test_thoughts_change_no_score_and_are_credited_like_every_token(tmp_path):
    recipe = with_thinking(grpo(WEIGHTS, n=4, max_new=6), "worst")
    world = world_of(recipe, tmp_path)
    thinker = Thinker(world.sampler)
    world = World(**{**{f: getattr(world, f) for f in world.__dataclass_fields__}, "sampler": thinker})
    batch, _ = collect(recipe, world, 0, 0)
    assert thinker.asked == ["think"]
    assert (batch.scores[:-1] == batch.scores[0]).all()
    assert batch.scores[-1].isnan().all()
    assert batch.readable.tolist() == [True] * (len(batch) - 1) + [False]
    rng = torch.Generator()
    worth, _, _ = recipe.worth.advance(batch, recipe.worth.start(), rng)
    assert not worth.signal.isnan().any()
    credited, _, _ = recipe.credit.advance(
        worth.set(signal=torch.randn_like(worth.signal)), (None, None), rng
    )
    for row in range(len(batch)):
        mine = credited.advantages[row, credited.respond[row], 0]
        assert (mine == mine[0]).all()


def test_a_stated_confidence_is_a_column_behind_the_objectives():
    recipe = recipe_of("ppo_c")
    assert recipe.scored(("a", "b")) == ("a", "b", "confidence")
    assert recipe_of("ppo").scored(("a", "b")) == ("a", "b")
    assert check(recipe, ("even", "high")).critic_heads == 1


def test_what_the_worst_was_survives_a_stop(tmp_path):
    recipe = with_thinking(recipe_of("gdpo"), "worst", frame="", view="whole")
    whole = trained(tmp_path / "whole", world_of(recipe, tmp_path), recipe, steps=3, every=1)
    with pytest.raises(Cut):
        trained(tmp_path / "r", world_of(recipe, tmp_path), recipe, steps=3, every=1, on_step=stop_after(2))
    assert trained(tmp_path / "r", world_of(recipe, tmp_path), recipe, steps=3, every=1) == whole
