"""Prompts and ratings of the help desk, as a run uses them: by category, and with unseen test ratings."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from paretune.data.records import LazySequence, Prompt, Rating
from paretune.worlds.helpdesk import world
from paretune.worlds.helpdesk.truth import ground_truth_scores

NUM_TEST_RATINGS = 400
"""Unseen answers with true scores that a reward model is evaluated on."""


def training_and_test_prompts(
    num_prompts: int, num_test_prompts: int, seed: int
) -> tuple[dict[str, list[Prompt]], list[Prompt]]:
    """Training requests by category, and unseen requests of all categories."""
    prompts = world.generate_requests("train", num_prompts, seed)
    pools = {
        category: [prompt for prompt in prompts if prompt.category == category]
        for category in world.CATEGORY_MIX
    }
    test_prompts = world.generate_requests("test", num_test_prompts, seed)
    # A small number of prompts can leave a category empty.
    return {category: pool for category, pool in pools.items() if pool}, test_prompts


def training_and_test_ratings(
    num_ratings: int, seed: int, objectives: Iterable[str], **raters: Any
) -> tuple[Sequence[Rating], Sequence[Rating]]:
    """Ratings with the raters' labels, and unseen answers with their true scores.

    Args:
        num_ratings: Number of training ratings.
        seed: Seed of both.
        objectives: Objectives whose labels are kept.
        raters: Keyword arguments of `generate_ratings`: number of raters, noise, biases, prompt format.
    """
    names = frozenset(objectives)
    train = world.generate_ratings(num_ratings, seed, **raters)
    test = world.generate_ratings(NUM_TEST_RATINGS, seed, split="test", **raters)
    return (
        LazySequence(len(train), lambda: (_with_labels(rating, rating.labels, names) for rating in train)),
        LazySequence(
            len(test), lambda: (_with_labels(rating, _true_labels(rating), names) for rating in test)
        ),
    )


def _with_labels(rating: Rating, labels: Mapping[str, float], objectives: frozenset[str]) -> Rating:
    kept = {name: value for name, value in labels.items() if name in objectives}
    return Rating(prompt=rating.prompt, response=rating.response, labels=kept)


def _true_labels(rating: Rating) -> dict[str, float]:
    scores = ground_truth_scores(world.request_text(rating.prompt), rating.response)
    return dict(zip(world.OBJECTIVES, scores, strict=True))
