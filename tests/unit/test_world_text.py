"""Requests and answers of the help desk: splits, kinds, variety, and one language on both sides."""

from collections import Counter

import pytest

from paretune.core.rng import numpy_generator
from paretune.worlds.helpdesk import words
from paretune.worlds.helpdesk.text import (
    REFUSAL_RATES,
    assign_split,
    careless_plan,
    corrupt_text,
    diverse_plan,
    render_answer,
    sample_request,
)
from paretune.worlds.helpdesk.truth import is_helpdesk_refusal, parse_answer, request_category

KINDS = ("ordinary", "harmful", "lookalike")


def drawn(split, count=400):
    rng = numpy_generator(3, 0, "test", split)
    return [sample_request(KINDS[i % 3], split, rng) for i in range(count)]


def test_splits_are_disjoint_by_combination_and_test_by_pair_of_verb_and_object():
    train, rated, test = ({r.split_key for r in drawn(split)} for split in ("train", "rated", "test"))
    assert not train & rated
    seen = {combination[:2] for combination in train | rated}
    assert not seen & {combination[:2] for combination in test}


def test_no_request_of_the_test_split_reads_like_one_of_another():
    """Its verb and its object decide the split, and nothing else in a request has their words."""
    verbs = {verb for _, of_kind, _, _ in words.CATEGORY_RULES for verb in of_kind}
    things = {thing for _, _, of_kind, _ in words.CATEGORY_RULES for thing in of_kind}
    around = [
        *words.ADJECTIVES,
        *words.DETERMINERS,
        *words.CONTEXTS,
        *words.REQUEST_TEMPLATES,
        *words.FORMAT_INSTRUCTIONS.values(),
    ]
    others = {word for text in around for word in text.replace("{deed}", " ").split()}
    assert all(word.isalpha() for word in verbs | things)
    assert not verbs & things
    assert not (verbs | things) & others


def test_every_word_of_a_test_request_is_common_in_the_other_splits():
    for verbs, objects in {(pairing[1], pairing[2]) for pairing in words.CATEGORY_RULES}:
        kept = [(v, o) for v in verbs for o in objects if assign_split(v, o, "") != "test"]
        assert len(kept) < len(verbs) * len(objects)
        assert min(Counter(v for v, _ in kept)[v] for v in verbs) >= len(objects) / 3
        assert min(Counter(o for _, o in kept)[o] for o in objects) >= len(verbs) / 3


@pytest.mark.parametrize("split", ["train", "rated", "test"])
def test_the_true_scorer_finds_the_kind_that_was_drawn(split):
    for request in drawn(split):
        assert request_category(request.text) == request.category
        assert 5 <= len(request.text.split()) <= 22


def test_every_answer_is_understood_and_on_plan():
    rng = numpy_generator(1, 0, "test", "answers")
    for i, request in enumerate(drawn("train")):
        plan = diverse_plan(rng) if i % 2 else careless_plan(request.category, rng)
        response = render_answer(plan, request, rng)
        answer = parse_answer(response)
        assert answer.well_formedness == 1.0, response
        assert answer.is_refusal == plan.refuse == is_helpdesk_refusal(response)
        assert answer.num_dangers == plan.num_dangers
        assert answer.num_cautions == plan.num_cautions
        assert (request.object in answer.objects) == (plan.topic == "asked"), response
        assert (answer.alternative_value > 0) == plan.offer_alternative


def test_spoilt_answers_are_never_empty_and_mostly_worth_less():
    rng = numpy_generator(1, 0, "test", "spoilt")
    worse = 0
    for request in drawn("train", 200):
        response = render_answer(careless_plan(request.category, rng), request, rng)
        spoilt = corrupt_text(response, rng)
        assert spoilt.split()
        worse += (
            parse_answer(spoilt).well_formedness * parse_answer(spoilt).distinct_fraction
            < parse_answer(response).well_formedness * parse_answer(response).distinct_fraction
        )
    assert worse > 170


def test_the_starting_habits_are_a_mixture():
    rng = numpy_generator(1, 0, "test", "habits")
    for kind, share in REFUSAL_RATES.items():
        plans = [careless_plan(kind, rng) for _ in range(2000)]
        assert sum(plan.refuse for plan in plans) / 2000 == pytest.approx(share, abs=0.04)
        assert 0.6 < sum(plan.topic == "asked" for plan in plans) / 2000 < 0.9


def test_nothing_can_be_memorised():
    """Repeats among answers to one request estimate the number of possible ones (birthday estimate)."""
    rng = numpy_generator(1, 0, "test", "variety")
    request = drawn("train", 1)[0]
    answers = [render_answer(careless_plan(request.category, rng), request, rng) for _ in range(2000)]
    repeats = len(answers) - len(set(answers))
    assert 2000**2 / 2 / max(1, repeats) > 20_000
    combinations = {
        (v, o, c) for _, vs, os, _ in words.CATEGORY_RULES for v in vs for o in os for c in words.CONTEXTS
    }
    texts = (
        len(combinations) * len(set(words.ADJECTIVES)) * len(words.DETERMINERS) * len(words.REQUEST_TEMPLATES)
    )
    assert texts > 1_000_000


def test_some_hundreds_of_words():
    assert 250 <= len(words.vocabulary()) <= 500
