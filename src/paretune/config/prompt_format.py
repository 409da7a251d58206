"""Thinking and stated confidence: wraps the algorithm accordingly, and checks the settings around them."""

import math
from collections.abc import Iterator

from paretune.algorithms.wrappers import with_confidence, with_thinking
from paretune.config.issues import ConfigIssue, closest_match, list_names
from paretune.config.objective_schema import parse_correctness_threshold
from paretune.config.schema import Config
from paretune.config.validate import WORLD, non_default_keys
from paretune.config.yaml import short_repr
from paretune.data.prompt_formats import PromptFormat
from paretune.rl.algorithm_spec import CONFIDENCE_OBJECTIVE, AlgorithmSpec
from paretune.rl.evolution.spec import EvolutionSpec
from paretune.worlds import get_world

Spec = AlgorithmSpec | EvolutionSpec


def apply_prompt_format(config: Config, spec: Spec) -> Spec:
    """The algorithm with the prompt format that the recipe asks for; unchanged if it asks for none.

    Raises:
        WiringError: The algorithm samples no responses, or has a prompt format of its own.
    """
    if config.thinking is not None:
        return with_thinking(spec, config.thinking.invalid_format)
    if config.data.world is not None and config.data.world.confidence:
        return with_confidence(spec)
    return spec


def prompt_format_issues(config: Config, spec: Spec, algorithm_format: PromptFormat) -> Iterator[ConfigIssue]:
    """Settings that the prompt format and the scorer view need, and settings without effect.

    Args:
        config: The recipe.
        spec: The algorithm with the prompt format that the recipe asks for.
        algorithm_format: The prompt format of the algorithm itself.
    """
    yield from _world_issues(config, spec)
    yield from _thinking_issues(config)
    yield from _missing_score_issues(config)
    yield from _calibrated_head_issues(config, spec, algorithm_format)
    yield from _correctness_issues(config, spec)
    if spec.prompt_format == "confidence" and CONFIDENCE_OBJECTIVE in config.objectives:
        problem = "is the reserved name of the confidence that responses state"
        yield ConfigIssue(("objectives", CONFIDENCE_OBJECTIVE), problem, fix="rename the objective")


def _world_issues(config: Config, spec: Spec) -> Iterator[ConfigIssue]:
    world = config.data.world
    if world is None:
        return
    if world.confidence and (world.thinking or config.thinking is not None):
        problem = "cannot be combined with thinking: a prompt asks for one of the two"
        yield ConfigIssue(("data", "world", "confidence"), problem, fix="remove one of the two")
    elif config.policy.path == WORLD and spec.prompt_format != world.prompt_format and spec.prompt_format:
        key = "thinking" if spec.prompt_format == "think" else "confidence"
        problem = "is missing: the vocabulary of the built-in world's policy lacks the words"
        yield ConfigIssue(("data", "world", key), problem, fix=f"write data.world.{key}: true")
    if "confidence_bias" in non_default_keys(world) and not world.confidence:
        fix = "remove it, or write data.world.confidence: true"
        yield ConfigIssue(("data", "world", "confidence_bias"), "has no effect without confidence", fix=fix)


def _thinking_issues(config: Config) -> Iterator[ConfigIssue]:
    for name, objective in config.objectives.items():
        if objective.scored_text == "thinking" and config.thinking is None:
            problem, fix = "scores thinking, and there is none", "write thinking: {invalid_format: penalize}"
            yield ConfigIssue(("objectives", name, "scored_text"), problem, fix=fix)


def _missing_score_issues(config: Config) -> Iterator[ConfigIssue]:
    """Imputations of missing scores that would also apply to responses of an invalid format.

    These have no scores either, so they would be dropped, or get the group's mean, instead of the penalty.
    """
    if config.thinking is None:
        return
    handling = config.thinking.invalid_format
    contradicting = {"penalize": ("drop", "group_mean"), "drop": ("group_mean",)}[handling]
    if config.aggregate.missing in contradicting:
        problem = f"is {config.aggregate.missing}, which contradicts thinking.invalid_format: {handling}"
        yield ConfigIssue(("aggregate", "missing"), problem, fix="remove aggregate.missing")


def _calibrated_head_issues(
    config: Config, spec: Spec, algorithm_format: PromptFormat
) -> Iterator[ConfigIssue]:
    """Heads with loss calibrated: required by PPO-M, without effect if the scorer sees no confidence."""
    calibrated = [name for name, head in config.reward_heads.items() if head.loss == "calibrated"]
    sees_confidence = spec.prompt_format == "confidence" and spec.scorer_view == "full"
    is_fitted = config.reward is not None and config.reward.path is None
    if sees_confidence and algorithm_format == "confidence" and not calibrated and is_fitted:
        problem = f"{config.algorithm.name} needs a head that scores stated confidence"
        fix = "write loss: calibrated at the head that scores correctness"
        yield ConfigIssue(("reward", "objectives"), problem, fix=fix)
    for name in calibrated:
        if not sees_confidence:
            problem = f"calibrated has no effect: with {config.algorithm.name} the reward sees no confidence"
            fix = "write another loss, or algorithm.name: ppo_m"
            yield ConfigIssue(("reward", "objectives", name, "loss"), problem, fix=fix)


def _correctness_issues(config: Config, spec: Spec) -> Iterator[ConfigIssue]:
    path, threshold = ("evaluate", "correct_if"), parse_correctness_threshold(config.evaluate.correct_if)
    if config.evaluate.correct_if is None:
        return
    if threshold is None or not math.isfinite(threshold[1]):
        problem = f"{short_repr(config.evaluate.correct_if)} is not a threshold"
        yield ConfigIssue(path, problem, fix='write it like "quality >= 0.5"', standalone=True)
        return
    judged = list(config.objectives)
    if config.judge == "ground_truth":
        judged += [name for name in get_world().objectives if name not in judged]
    if threshold[0] not in judged:
        suggestion, fix = closest_match(threshold[0], judged), f"one of {list_names(judged)}"
        yield ConfigIssue(path, f"{short_repr(threshold[0])} is not judged", suggestion=suggestion, fix=fix)
    if spec.prompt_format != "confidence":
        problem = f"has no effect: {config.algorithm.name} asks for no confidence"
        fix = "remove it, or write an algorithm that asks for a confidence"
        yield ConfigIssue(path, problem, fix=fix)
