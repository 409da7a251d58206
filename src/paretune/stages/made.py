"""The records that the built-in world brings, where a recipe names no files of its own for them."""

from collections.abc import Iterable, Sequence
from typing import Any

from paretune.config import Experiment
from paretune.config.schema import WorldSection
from paretune.data import world
from paretune.data.drawn import Drawn
from paretune.data.records import Demonstration, Prompt, Rating
from paretune.data.world_truth import truth

TEST = 400
"""Unseen rated responses whose true scores a reward model is reported against."""


def made_prompts(e: Experiment) -> tuple[dict[str, list[Prompt]], list[Prompt]]:
    """Requests to be aligned on, by kind, and unseen ones of all kinds."""
    how = _how(e)
    found = world.requests("train", how.prompts, e.run.seed)
    pools = {kind: [prompt for prompt in found if prompt.kind == kind] for kind in world.MIX}
    test = world.requests("test", how.test_prompts, e.run.seed)
    return {kind: pool for kind, pool in pools.items() if pool}, test


def made_demonstrations(e: Experiment) -> Sequence[Demonstration]:
    """Answers of the careless help desk."""
    return world.demonstrations(_how(e).demonstrations, e.run.seed, _how(e).frame)


def made_ratings(e: Experiment, heads: Iterable[str]) -> tuple[Sequence[Rating], Sequence[Rating]]:
    """What the raters say of these objectives; and unseen answers with their true scores."""
    how, names = _how(e), frozenset(heads)
    raters: dict[str, Any] = {
        "raters": how.raters,
        "noise": how.noise,
        "length_bias": how.length_bias,
        "missing": how.missing,
        "frame": how.frame,
        "confidence_bias": how.confidence_bias,
    }
    given = world.rated(how.rated, e.run.seed, **raters)
    unseen = world.rated(TEST, e.run.seed, split="test", **raters)
    return (
        Drawn(len(given), lambda: (_with(rating, rating.labels, names) for rating in given)),
        Drawn(len(unseen), lambda: (_with(rating, _truth(rating), names) for rating in unseen)),
    )


def _how(e: Experiment) -> WorldSection:
    assert e.data.world is not None
    return e.data.world


def _with(rating: Rating, labels: Any, names: frozenset[str]) -> Rating:
    kept = {name: value for name, value in labels.items() if name in names}
    return Rating(prompt=rating.prompt, response=rating.response, labels=kept)


def _truth(rating: Rating) -> dict[str, float]:
    scores = truth(world.asked(rating.prompt), rating.response)
    return dict(zip(world.OBJECTIVES, scores, strict=True))
