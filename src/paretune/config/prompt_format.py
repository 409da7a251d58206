"""What is asked of a policy beside its prompts, thoughts or a confidence, and what a recipe holds for it."""

import math
from collections.abc import Iterator

from paretune.algorithms.wrappers import with_confidence, with_thinking
from paretune.config.issues import ConfigIssue, closest_match
from paretune.config.schema import Config, parse_threshold
from paretune.config.validate import WORLD, non_default_keys
from paretune.config.yaml import short_repr
from paretune.data.chat import PromptFormat
from paretune.rl.algorithm_spec import CONFIDENCE_OBJECTIVE, AlgorithmSpec
from paretune.rl.evolution.spec import EvolutionSpec


def apply_prompt_format(config: Config, spec: AlgorithmSpec | EvolutionSpec) -> AlgorithmSpec | EvolutionSpec:
    """The algorithm's recipe with the frame that the experiment asks for; with its own, as it is.

    Raises:
        WiringError: The recipe samples nothing, or has a frame of its own.
    """
    if config.thinking is not None:
        return with_thinking(spec, config.thinking.invalid_format)
    if config.data.world is not None and config.data.world.confidence:
        return with_confidence(spec)
    return spec


def prompt_format_issues(
    config: Config, spec: AlgorithmSpec | EvolutionSpec, algorithm_format: PromptFormat
) -> Iterator[ConfigIssue]:
    """What frame and view need of the rest of a recipe, and what has no effect without them.

    Args:
        config: The experiment.
        spec: The algorithm's, with the frame that the experiment asks for.
        algorithm_format: The frame of the algorithm itself.
    """
    yield from _world_issues(config, spec)
    yield from _thinking_issues(config)
    yield from _missing_score_issues(config)
    yield from _calibrated_head_issues(config, spec, algorithm_format)
    yield from _correctness_issues(config, spec)
    if spec.prompt_format == "confidence" and CONFIDENCE_OBJECTIVE in config.objectives:
        wrong, fix = "is the name of the confidence that responses state", "give it another name"
        yield ConfigIssue(("objectives", CONFIDENCE_OBJECTIVE), wrong, fix=fix)


def _world_issues(config: Config, spec: AlgorithmSpec | EvolutionSpec) -> Iterator[ConfigIssue]:
    world = config.data.world
    if world is None:
        return
    if world.confidence and (world.thinking or config.thinking is not None):
        wrong = "cannot be combined with confidence: a request asks for one of the two"
        yield ConfigIssue(("data", "world", "confidence"), wrong, fix="leave out one of the two")
    elif config.policy.path == WORLD and spec.prompt_format != world.prompt_format and spec.prompt_format:
        key = "thinking" if spec.prompt_format == "think" else "confidence"
        wrong = "is missing: the policy of the built-in world has not learnt the words"
        yield ConfigIssue(("data", "world", key), wrong, fix=f"write data.world.{key}: true")
    if "confidence_bias" in non_default_keys(world) and not world.confidence:
        fix = "leave it out, or write data.world.confidence: true"
        yield ConfigIssue(("data", "world", "confidence_bias"), "has no effect without confidence", fix=fix)


def _thinking_issues(config: Config) -> Iterator[ConfigIssue]:
    for name, objective in config.objectives.items():
        if objective.scored_text == "trace" and config.thinking is None:
            wrong, fix = "reads thoughts, and there are none", "write thinking: {unscored: worst}"
            yield ConfigIssue(("objectives", name, "reads"), wrong, fix=fix)


def _missing_score_issues(config: Config) -> Iterator[ConfigIssue]:
    """Ways to fill what is missing that would take a response without form for one that nobody judged."""
    if config.thinking is None:
        return
    against = {"worst": ("drop", "group_mean"), "drop": ("group_mean",)}[config.thinking.invalid_format]
    if config.aggregate.missing in against:
        wrong = f"is {config.aggregate.missing}, which contradicts thinking.invalid_format: {config.thinking.invalid_format}"
        yield ConfigIssue(("aggregate", "missing"), wrong, fix="leave out aggregate.missing")


def _calibrated_head_issues(
    config: Config, spec: AlgorithmSpec | EvolutionSpec, algorithm_format: PromptFormat
) -> Iterator[ConfigIssue]:
    """Heads that know what confidence is worth, where they are needed and where they are not."""
    calibrated = [name for name, head in config.reward.objectives.items() if head.loss == "calibrated"]
    told = spec.prompt_format == "confidence" and spec.scorer_view == "whole"
    if told and algorithm_format == "confidence" and not calibrated and config.reward.path is None:
        wrong = f"{config.algorithm.name} needs a head that knows what a stated confidence is worth"
        fix = "write loss: calibrated at one that says whether an answer is right"
        yield ConfigIssue(("reward", "objectives"), wrong, fix=fix)
    for name in calibrated:
        if not told:
            wrong = (
                f"calibrated has no effect: no response shows {config.algorithm.name}'s reward a confidence"
            )
            fix = "take another loss, or algorithm.name: ppo_m"
            yield ConfigIssue(("reward", "objectives", name, "loss"), wrong, fix=fix)


def _correctness_issues(config: Config, spec: AlgorithmSpec | EvolutionSpec) -> Iterator[ConfigIssue]:
    path, said = ("evaluate", "correct_if"), parse_threshold(config.evaluate.correct_if)
    if config.evaluate.correct_if is None:
        return
    if said is None or not math.isfinite(said[1]):
        wrong, fix = f"{short_repr(config.evaluate.correct_if)} is no level", 'write it like "quality >= 0.5"'
        yield ConfigIssue(path, wrong, fix=fix, standalone=True)
        return
    known = list(config.objectives)
    if config.judge == "truth":
        from paretune.worlds.helpdesk.world import OBJECTIVES

        known += [name for name in OBJECTIVES if name not in known]
    if said[0] not in known:
        fix = f"one of {', '.join(known)}"
        yield ConfigIssue(
            path, f"{short_repr(said[0])} is not judged", suggestion=closest_match(said[0], known), fix=fix
        )
    if spec.prompt_format != "confidence":
        fix = "leave it out, or take a method that asks for a confidence"
        yield ConfigIssue(path, f"has no effect: {config.algorithm.name} asks for no confidence", fix=fix)
