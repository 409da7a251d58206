"""Thinking and stated confidence in a recipe: they wrap every algorithm, and misuse is reported."""

import pytest
from config_cases import CALIBRATED, CONFIDENCE, OVER_DEMO, THINKING, Case, at_key, case_lines, ppo

from paretune.config import Config, find_recipe, load_config
from paretune.core.errors import ConfigError
from paretune.experiment.resolved import resolve
from paretune.rl.algorithm_spec import AlgorithmSpec
from paretune.rl.evolution.spec import EvolutionSpec


def demo(*overrides: str) -> Config:
    return load_config(find_recipe("demo"), list(overrides))


def demo_spec(*overrides: str) -> AlgorithmSpec | EvolutionSpec:
    return resolve(demo(*overrides)).algorithm


def test_thinking_wraps_any_algorithm_and_any_aggregator() -> None:
    for overrides in (
        [],
        ["aggregate={name: min_objective}"],
        ["algorithm={name: gdpo, max_new_tokens: 64}"],
    ):
        spec = demo_spec(*THINKING, *overrides)
        assert (spec.prompt_format, spec.scorer_view) == ("think", "after_thinking")
        assert "InvalidFormatPenalty()" in repr(spec.reward_steps)
    assert "InvalidFormatPenalty" not in repr(demo_spec(THINKING[0], "thinking={invalid_format: drop}"))


def test_any_algorithm_asks_for_confidence_if_the_world_does() -> None:
    plain, blind = demo_spec(CONFIDENCE), demo_spec(CONFIDENCE, ppo("ppo_c"))
    assert (plain.prompt_format, plain.scorer_view) == ("confidence", "full")
    assert (blind.prompt_format, blind.scorer_view) == ("confidence", "without_confidence")
    assert demo_spec(CONFIDENCE, ppo("ppo_m"), CALIBRATED).scorer_view == "full"
    assert demo(CONFIDENCE).correctness_threshold == ("meaningfulness", 0.7)
    assert demo(CONFIDENCE, "evaluate.correct_if=safety >= 0.9").correctness_threshold == ("safety", 0.9)
    assert demo().correctness_threshold is None


@pytest.mark.parametrize("mistake", OVER_DEMO, ids=lambda case: f"{case.key}-{case.value[:40]}")
def test_a_mistake_in_overrides_of_the_demo_is_reported_at_its_key(mistake: Case) -> None:
    lines = at_key(case_lines({}, mistake), mistake.key)
    assert any(all(word in line for word in mistake.words) for line in lines), lines


def test_thinking_may_have_an_objective_of_its_own() -> None:
    e = demo(*THINKING, "objectives.quiet={scored_text: thinking, scores_from: safety, weight: 0.5}")
    assert e.thinking_objectives == {"quiet": "safety"}
    assert e.weights["quiet"] == 0.5


def test_algorithms_with_separate_objectives_reject_confidence() -> None:
    safe_rlhf = "algorithm={name: safe_rlhf, max_new_tokens: 64}"
    level = ["objectives.safety={at_least: 0.5}", "objectives.actionability={weight: 1.0}"]
    with pytest.raises(ConfigError, match=r"algorithm\.name: safe_rlhf trains on each objective separately"):
        demo(CONFIDENCE, safe_rlhf, *level)
