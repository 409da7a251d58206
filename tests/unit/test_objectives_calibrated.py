"""Pairs that differ in the stated confidence alone."""

import pytest
import torch

from paretune.data.chat import parse_confidence, strip_confidence
from paretune.data.records import Message, PreferencePair, Prompt, Rating
from paretune.reward.confidence_pairs import add_confidence_pairs
from paretune.reward.losses import BradleyTerryLoss, ConfidenceCalibrationLoss

PROMPT = Prompt(messages=(Message("user", "q"),), id="p")


def rating(response, **labels):
    return Rating(prompt=PROMPT, response=response, labels=labels)


def test_a_pair_brings_two_whose_losses_add_up_to_those_of_the_method():
    pair = PreferencePair(prompt=PROMPT, chosen="good", rejected="bad", objective="x")
    kept, right, wrong = add_confidence_pairs([pair], {"x": None}, 0)
    assert kept is pair
    for made, text in ((right, "good"), (wrong, "bad")):
        assert {strip_confidence(made.chosen), strip_confidence(made.rejected)} == {text}
    high, low = parse_confidence(right.chosen), parse_confidence(right.rejected)
    assert high >= 0.7
    assert low <= 0.3
    assert parse_confidence(wrong.chosen) <= 0.3
    assert parse_confidence(wrong.rejected) >= 0.7
    score = {right.chosen: 1.5, right.rejected: 0.5, wrong.chosen: -0.4, wrong.rejected: 0.2}
    score = {text: torch.tensor([value]) for text, value in score.items()}
    ours = sum(BradleyTerryLoss()(score[made.chosen], score[made.rejected]) for made in (right, wrong))
    theirs = ConfidenceCalibrationLoss()(
        *(score[t] for t in (right.chosen, right.rejected, wrong.chosen, wrong.rejected))
    )
    torch.testing.assert_close(ours, theirs)
    assert ours.item() == pytest.approx(1.3507496)


def test_a_rated_response_brings_one_by_its_level_and_loses_what_it_stated():
    records = [rating("a. Confidence: 5.", x=0.8), rating("b", x=0.2), rating("c", y=1.0)]
    one, two = add_confidence_pairs(records, {"x": 0.5}, 0)[3:]
    assert parse_confidence(one.chosen) > parse_confidence(one.rejected)
    assert strip_confidence(one.chosen) == "a."
    assert parse_confidence(two.chosen) < parse_confidence(two.rejected)
    assert {made.objective for made in (one, two)} == {"x"}


def test_without_a_level_the_median_divides_right_from_wrong():
    records = [rating(f"r{i}", x=float(i)) for i in range(5)]
    made = add_confidence_pairs(records, {"x": None}, 0)[5:]
    right = [parse_confidence(m.chosen) > parse_confidence(m.rejected) for m in made]
    assert right == [False, False, True, True, True]


def test_the_seed_draws_and_heads_without_it_are_left_alone():
    records = [rating(f"r{i}", x=float(i)) for i in range(20)]
    assert add_confidence_pairs(records, {"x": None}, 1) == add_confidence_pairs(records, {"x": None}, 1)
    assert add_confidence_pairs(records, {"x": None}, 1) != add_confidence_pairs(records, {"x": None}, 2)
    assert add_confidence_pairs(records, {}, 1) == records
