"""Preference pairs that differ in the stated confidence only."""

import pytest
import torch

from paretune.data.prompt_formats import parse_confidence, strip_confidence
from paretune.data.records import Message, PreferencePair, Prompt, Rating
from paretune.reward.confidence_pairs import add_confidence_pairs
from paretune.reward.losses import BradleyTerryLoss

PROMPT = Prompt(messages=(Message("user", "q"),), id="p")


def rating(response, **labels):
    return Rating(prompt=PROMPT, response=response, labels=labels)


def test_pair_adds_two_pairs_whose_losses_sum_to_the_ppo_m_loss():
    pair = PreferencePair(prompt=PROMPT, chosen="good", rejected="bad", objective="x")
    original, right, wrong = add_confidence_pairs([pair], {"x": None}, 0)
    assert original is pair
    for added, text in ((right, "good"), (wrong, "bad")):
        assert {strip_confidence(added.chosen), strip_confidence(added.rejected)} == {text}
    high, low = parse_confidence(right.chosen), parse_confidence(right.rejected)
    assert high >= 0.7
    assert low <= 0.3
    assert parse_confidence(wrong.chosen) <= 0.3
    assert parse_confidence(wrong.rejected) >= 0.7
    score = {right.chosen: 1.5, right.rejected: 0.5, wrong.chosen: -0.4, wrong.rejected: 0.2}
    score = {text: torch.tensor([value]) for text, value in score.items()}
    loss = sum(BradleyTerryLoss()(score[added.chosen], score[added.rejected]) for added in (right, wrong))
    # -log sigmoid(1.5 - 0.5) - log sigmoid(-0.4 - 0.2)
    assert loss.item() == pytest.approx(0.3132617 + 1.0374880)


def test_rating_adds_a_pair_by_its_threshold_and_loses_its_stated_confidence():
    records = [rating("a. Confidence: 5.", x=0.8), rating("b", x=0.2), rating("c", y=1.0)]
    right, wrong = add_confidence_pairs(records, {"x": 0.5}, 0)[3:]
    assert parse_confidence(right.chosen) > parse_confidence(right.rejected)
    assert strip_confidence(right.chosen) == "a."
    assert parse_confidence(wrong.chosen) < parse_confidence(wrong.rejected)
    assert {pair.objective for pair in (right, wrong)} == {"x"}


def test_median_is_the_default_threshold():
    records = [rating(f"r{i}", x=float(i)) for i in range(5)]
    pairs = add_confidence_pairs(records, {"x": None}, 0)[5:]
    is_correct = [parse_confidence(p.chosen) > parse_confidence(p.rejected) for p in pairs]
    assert is_correct == [False, False, True, True, True]


def test_seed_determines_the_confidences_and_other_objectives_are_unchanged():
    records = [rating(f"r{i}", x=float(i)) for i in range(20)]
    assert add_confidence_pairs(records, {"x": None}, 1) == add_confidence_pairs(records, {"x": None}, 1)
    assert add_confidence_pairs(records, {"x": None}, 1) != add_confidence_pairs(records, {"x": None}, 2)
    assert add_confidence_pairs(records, {}, 1) == records
