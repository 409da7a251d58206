"""What is asked of a policy beside its prompts, thoughts or a confidence, and what a recipe holds for it."""

import math
from collections.abc import Iterator

from paretune.algorithms.confidence import asking
from paretune.algorithms.thinking import with_thinking
from paretune.config.faults import Fault, nearest
from paretune.config.rules import WORLD, given
from paretune.config.schema import Experiment, level
from paretune.config.tree import short
from paretune.data.frame import Frame
from paretune.learn.evolution import Evolution
from paretune.learn.recipe import CONFIDENCE, Recipe


def with_frame(e: Experiment, recipe: Recipe | Evolution) -> Recipe | Evolution:
    """The algorithm's recipe with the frame that the experiment asks for; with its own, as it is.

    Raises:
        WiringError: The recipe samples nothing, or has a frame of its own.
    """
    if e.thinking is not None:
        return with_thinking(recipe, e.thinking.unscored)
    if e.data.world is not None and e.data.world.confidence:
        return asking(recipe)
    return recipe


def frame_faults(e: Experiment, recipe: Recipe | Evolution, own: Frame) -> Iterator[Fault]:
    """What frame and view need of the rest of a recipe, and what has no effect without them.

    Args:
        e: The experiment.
        recipe: The algorithm's, with the frame that the experiment asks for.
        own: The frame of the algorithm itself.
    """
    yield from _world(e, recipe)
    yield from _traces(e)
    yield from _missing(e)
    yield from _heads(e, recipe, own)
    yield from _correct(e, recipe)
    if recipe.frame == "confidence" and CONFIDENCE in e.objectives:
        wrong, fix = "is the name of the confidence that responses state", "give it another name"
        yield Fault(("objectives", CONFIDENCE), wrong, fix=fix)


def _world(e: Experiment, recipe: Recipe | Evolution) -> Iterator[Fault]:
    world = e.data.world
    if world is None:
        return
    if world.confidence and (world.thinking or e.thinking is not None):
        wrong = "cannot be combined with confidence: a request asks for one of the two"
        yield Fault(("data", "world", "confidence"), wrong, fix="leave out one of the two")
    elif e.policy.path == WORLD and recipe.frame != world.frame and recipe.frame:
        key = "thinking" if recipe.frame == "think" else "confidence"
        wrong = "is missing: the policy of the built-in world has not learnt the words"
        yield Fault(("data", "world", key), wrong, fix=f"write data.world.{key}: true")
    if "confidence_bias" in given(world) and not world.confidence:
        fix = "leave it out, or write data.world.confidence: true"
        yield Fault(("data", "world", "confidence_bias"), "has no effect without confidence", fix=fix)


def _traces(e: Experiment) -> Iterator[Fault]:
    for name, objective in e.objectives.items():
        if objective.reads == "trace" and e.thinking is None:
            wrong, fix = "reads thoughts, and there are none", "write thinking: {unscored: worst}"
            yield Fault(("objectives", name, "reads"), wrong, fix=fix)


def _missing(e: Experiment) -> Iterator[Fault]:
    """Ways to fill what is missing that would take a response without form for one that nobody judged."""
    if e.thinking is None:
        return
    against = {"worst": ("drop", "group_mean"), "drop": ("group_mean",)}[e.thinking.unscored]
    if e.aggregate.missing in against:
        wrong = f"is {e.aggregate.missing}, which contradicts thinking.unscored: {e.thinking.unscored}"
        yield Fault(("aggregate", "missing"), wrong, fix="leave out aggregate.missing")


def _heads(e: Experiment, recipe: Recipe | Evolution, own: Frame) -> Iterator[Fault]:
    """Heads that know what confidence is worth, where they are needed and where they are not."""
    calibrated = [name for name, head in e.reward.objectives.items() if head.loss == "calibrated"]
    told = recipe.frame == "confidence" and recipe.view == "whole"
    if told and own == "confidence" and not calibrated and e.reward.path is None:
        wrong = f"{e.algorithm.name} needs a head that knows what a stated confidence is worth"
        fix = "write loss: calibrated at one that says whether an answer is right"
        yield Fault(("reward", "objectives"), wrong, fix=fix)
    for name in calibrated:
        if not told:
            wrong = f"calibrated has no effect: no response shows {e.algorithm.name}'s reward a confidence"
            fix = "take another loss, or algorithm.name: ppo_m"
            yield Fault(("reward", "objectives", name, "loss"), wrong, fix=fix)


def _correct(e: Experiment, recipe: Recipe | Evolution) -> Iterator[Fault]:
    path, said = ("evaluate", "correct"), level(e.evaluate.correct)
    if e.evaluate.correct is None:
        return
    if said is None or not math.isfinite(said[1]):
        wrong, fix = f"{short(e.evaluate.correct)} is no level", 'write it like "quality >= 0.5"'
        yield Fault(path, wrong, fix=fix, alone=True)
        return
    known = list(e.objectives)
    if e.judge == "truth":
        from paretune.data.world import OBJECTIVES

        known += [name for name in OBJECTIVES if name not in known]
    if said[0] not in known:
        fix = f"one of {', '.join(known)}"
        yield Fault(path, f"{short(said[0])} is not judged", meant=nearest(said[0], known), fix=fix)
    if recipe.frame != "confidence":
        fix = "leave it out, or take a method that asks for a confidence"
        yield Fault(path, f"has no effect: {e.algorithm.name} asks for no confidence", fix=fix)
