"""The records that the built-in world brings, where a recipe names no files of its own for them."""

from collections.abc import Iterable, Sequence
from typing import Any

from paretune.config import Config
from paretune.config.schema import WorldSection
from paretune.data.records import Demonstration, LazySequence, Prompt, Rating
from paretune.worlds.helpdesk import world
from paretune.worlds.helpdesk.truth import ground_truth_scores

NUM_TEST_RATINGS = 400
"""Unseen rated responses whose true scores a reward model is reported against."""


def synthetic_prompts(config: Config) -> tuple[dict[str, list[Prompt]], list[Prompt]]:
    """Requests to be aligned on, by kind, and unseen ones of all kinds."""
    how = _helpdesk_section(config)
    found = world.generate_requests("train", how.num_prompts, config.run.seed)
    pools = {kind: [prompt for prompt in found if prompt.category == kind] for kind in world.CATEGORY_MIX}
    test = world.generate_requests("test", how.num_test_prompts, config.run.seed)
    return {kind: pool for kind, pool in pools.items() if pool}, test


def synthetic_demonstrations(config: Config) -> Sequence[Demonstration]:
    """Answers of the careless help desk."""
    return world.generate_demonstrations(
        _helpdesk_section(config).num_demonstrations, config.run.seed, _helpdesk_section(config).prompt_format
    )


def synthetic_ratings(config: Config, objectives: Iterable[str]) -> tuple[Sequence[Rating], Sequence[Rating]]:
    """What the raters say of these objectives; and unseen answers with their true scores."""
    how, names = _helpdesk_section(config), frozenset(objectives)
    raters: dict[str, Any] = {
        "raters": how.num_raters,
        "noise": how.rater_noise,
        "length_bias": how.length_bias,
        "missing": how.missing_rate,
        "frame": how.prompt_format,
        "confidence_bias": how.confidence_bias,
    }
    given = world.generate_ratings(how.num_ratings, config.run.seed, **raters)
    unseen = world.generate_ratings(NUM_TEST_RATINGS, config.run.seed, split="test", **raters)
    return (
        LazySequence(len(given), lambda: (_select_labels(rating, rating.labels, names) for rating in given)),
        LazySequence(
            len(unseen), lambda: (_select_labels(rating, _true_scores(rating), names) for rating in unseen)
        ),
    )


def _helpdesk_section(config: Config) -> WorldSection:
    assert config.data.world is not None
    return config.data.world


def _select_labels(rating: Rating, labels: Any, objectives: frozenset[str]) -> Rating:
    kept = {name: value for name, value in labels.items() if name in objectives}
    return Rating(prompt=rating.prompt, response=rating.response, labels=kept)


def _true_scores(rating: Rating) -> dict[str, float]:
    scores = ground_truth_scores(world.request_text(rating.prompt), rating.response)
    return dict(zip(world.OBJECTIVES, scores, strict=True))
