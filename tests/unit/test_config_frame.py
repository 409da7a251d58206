"""Thoughts and stated confidence in a recipe: what belongs together, and what has no effect alone."""

import pytest

from paretune.config import find_recipe, load_config
from paretune.config.build import build_spec
from paretune.core.errors import ConfigError

SURE = "data.world.confidence=true"
THINKS = ("data.world.thinking=true", "thinking={unscored: worst}")
CALIBRATED = "reward.objectives.meaningfulness={loss: calibrated, right: 0.7}"


def ppo(name):
    return f"algorithm={{name: {name}, max_new: 64}}"


def demo(*more):
    return load_config(find_recipe("demo"), list(more))


def test_thinking_goes_around_any_algorithm_and_any_aggregator():
    for more in ([], ["aggregate={name: worst}"], ["algorithm={name: gdpo, max_new: 64}"]):
        recipe = build_spec(demo(*THINKS, *more))
        assert (recipe.prompt_format, recipe.scorer_view) == ("think", "after_thinking")
        assert "UnreadIsWorst()" in repr(recipe.reward_steps)
    assert "UnreadIsWorst" not in repr(build_spec(demo(THINKS[0], "thinking={unscored: drop}")))


def test_the_confidence_of_the_world_is_asked_for_by_any_algorithm():
    plain, blind = build_spec(demo(SURE)), build_spec(demo(SURE, ppo("ppo_c")))
    assert (plain.prompt_format, plain.scorer_view) == ("confidence", "whole")
    assert (blind.prompt_format, blind.scorer_view) == ("confidence", "without_confidence")
    assert build_spec(demo(SURE, ppo("ppo_m"), CALIBRATED)).scorer_view == "whole"
    assert demo(SURE).correctness_threshold == ("meaningfulness", 0.7)
    assert demo(SURE, "evaluate.correct_if=safety >= 0.9").correctness_threshold == ("safety", 0.9)
    assert demo().correctness_threshold is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["thinking={}"], r"thinking\.unscored: .*missing|thinking\.unscored: .*required"),
        (["thinking={unscored: best}"], r"thinking\.unscored"),
        (["thinking={unscored: worst}"], r"data\.world\.thinking: is missing.*data\.world\.thinking: true"),
        ([ppo("ppo_c")], r"data\.world\.confidence: is missing"),
        ([SURE, *THINKS], r"data\.world\.confidence: cannot be combined"),
        ([SURE, ppo("ppo_m")], r"reward\.objectives: ppo_m needs a head .* loss: calibrated"),
        ([SURE, ppo("ppo_c"), CALIBRATED], r"meaningfulness\.loss: calibrated has no effect"),
        ([CALIBRATED], r"meaningfulness\.loss: calibrated has no effect"),
        (["reward.objectives.safety={right: 0.5}"], r"safety\.right: has no effect with loss mse"),
        (["data.world.confidence_bias=0.3"], r"confidence_bias: has no effect without confidence"),
        (["evaluate.correct_if=safety >= 0.9"], r"evaluate\.correct: has no effect: grpo asks"),
        ([SURE, "evaluate.correct_if=safety"], r'evaluate\.correct: "safety" is no level'),
        (
            [SURE, "evaluate.correct_if=safty >= 0.5"],
            r'evaluate\.correct: "safty" is not judged; did you mean "safety"',
        ),
        ([*THINKS, "aggregate.missing=group_mean"], r"aggregate\.missing: is group_mean, which contradicts"),
        ([*THINKS, "aggregate.missing=drop"], r"aggregate\.missing: is drop, which contradicts"),
        (["objectives.quiet={reads: trace, of: safety}"], r"objectives\.quiet\.reads: reads thoughts"),
        ([*THINKS, "objectives.quiet={reads: trace}"], r"objectives\.quiet\.of: is missing"),
        (
            [*THINKS, "objectives.quiet={reads: trace, of: safty}"],
            r'objectives\.quiet\.of: "safty" is not in',
        ),
        (
            ["objectives.safety.scores_from=safety"],
            r"objectives\.safety\.of: has no effect without reads: trace",
        ),
        (
            ["algorithm={name: dpo, responses: stored, max_new: 64}", *THINKS],
            r"thinking: dpo reads stored responses, and thoughts have to be sampled",
        ),
        ([SURE, "algorithm={name: dpo, responses: stored, max_new: 64}"], r"confidence: dpo reads stored"),
    ],
)
def test_what_does_not_fit_is_told_where_it_stands(given, said):
    with pytest.raises(ConfigError, match=said):
        demo(*given)


def test_thoughts_may_have_an_objective_of_their_own():
    e = demo(*THINKS, "objectives.quiet={reads: trace, of: safety, weight: 0.5}")
    assert e.thinking_objectives == {"quiet": "safety"}
    assert e.weights["quiet"] == 0.5


def test_what_credits_objectives_apart_takes_no_confidence():
    safe = "algorithm={name: safe_rlhf, max_new: 64}"
    level = ["objectives.safety={at_least: 0.5}", "objectives.actionability={weight: 1.0}"]
    with pytest.raises(ConfigError, match="credits objectives apart"):
        demo(SURE, safe, *level)
