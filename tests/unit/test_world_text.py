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

CATEGORIES = ("ordinary", "harmful", "lookalike")


def sample_requests(split, count=400):
    rng = numpy_generator(3, 0, "test", split)
    return [sample_request(CATEGORIES[i % 3], split, rng) for i in range(count)]


def test_splits_share_no_combination_and_test_shares_no_verb_object_pair():
    train, rated, test = (
        {r.split_key for r in sample_requests(split)} for split in ("train", "rated", "test")
    )
    assert not train & rated
    pairs = {combination[:2] for combination in train | rated}
    assert not pairs & {combination[:2] for combination in test}


def test_verbs_and_objects_occur_nowhere_else_in_a_request():
    verbs = {verb for _, verbs, _, _ in words.CATEGORY_RULES for verb in verbs}
    objects = {object for _, _, objects, _ in words.CATEGORY_RULES for object in objects}
    texts = [
        *words.ADJECTIVES,
        *words.DETERMINERS,
        *words.CONTEXTS,
        *words.REQUEST_TEMPLATES,
        *words.FORMAT_INSTRUCTIONS.values(),
    ]
    others = {word for text in texts for word in text.replace("{task}", " ").split()}
    assert all(word.isalpha() for word in verbs | objects)
    assert not verbs & objects
    assert not (verbs | objects) & others


def test_words_of_test_requests_are_frequent_in_the_other_splits():
    for verbs, objects in {(rule[1], rule[2]) for rule in words.CATEGORY_RULES}:
        pairs = [(v, o) for v in verbs for o in objects if assign_split(v, o, "") != "test"]
        assert len(pairs) < len(verbs) * len(objects)
        assert min(Counter(v for v, _ in pairs)[v] for v in verbs) >= len(objects) / 3
        assert min(Counter(o for _, o in pairs)[o] for o in objects) >= len(verbs) / 3


@pytest.mark.parametrize("split", ["train", "rated", "test"])
def test_request_category_recognizes_the_sampled_category(split):
    for request in sample_requests(split):
        assert request_category(request.text) == request.category
        assert 5 <= len(request.text.split()) <= 22


def test_parse_answer_recovers_the_plan():
    rng = numpy_generator(1, 0, "test", "answers")
    for i, request in enumerate(sample_requests("train")):
        plan = diverse_plan(rng) if i % 2 else careless_plan(request.category, rng)
        response = render_answer(plan, request, rng)
        answer = parse_answer(response)
        assert answer.well_formedness == 1.0, response
        assert answer.is_refusal == plan.refuse == is_helpdesk_refusal(response)
        assert answer.num_dangers == plan.num_dangers
        assert answer.num_cautions == plan.num_cautions
        assert (request.object in answer.objects) == (plan.topic == "requested"), response
        assert (answer.alternative_value > 0) == plan.offer_alternative


def test_corrupted_answers_are_not_empty_and_mostly_score_lower():
    rng = numpy_generator(1, 0, "test", "spoilt")
    worse = 0
    for request in sample_requests("train", 200):
        response = render_answer(careless_plan(request.category, rng), request, rng)
        corrupted = corrupt_text(response, rng)
        assert corrupted.split()
        worse += (
            parse_answer(corrupted).well_formedness * parse_answer(corrupted).distinct_fraction
            < parse_answer(response).well_formedness * parse_answer(response).distinct_fraction
        )
    assert worse > 170


def test_demonstrations_mix_refusals_and_topics():
    rng = numpy_generator(1, 0, "test", "habits")
    for category, rate in REFUSAL_RATES.items():
        plans = [careless_plan(category, rng) for _ in range(2000)]
        assert sum(plan.refuse for plan in plans) / 2000 == pytest.approx(rate, abs=0.04)
        assert 0.6 < sum(plan.topic == "requested" for plan in plans) / 2000 < 0.9


def test_answers_and_requests_are_too_many_to_memorize():
    """Repetitions among answers to one request estimate the number of possible ones (birthday estimate)."""
    rng = numpy_generator(1, 0, "test", "variety")
    request = sample_requests("train", 1)[0]
    answers = [render_answer(careless_plan(request.category, rng), request, rng) for _ in range(2000)]
    repeats = len(answers) - len(set(answers))
    assert 2000**2 / 2 / max(1, repeats) > 20_000
    combinations = {
        (v, o, c) for _, vs, os, _ in words.CATEGORY_RULES for v in vs for o in os for c in words.CONTEXTS
    }
    num_requests = (
        len(combinations) * len(set(words.ADJECTIVES)) * len(words.DETERMINERS) * len(words.REQUEST_TEMPLATES)
    )
    assert num_requests > 1_000_000


def test_vocabulary_size():
    assert 250 <= len(words.vocabulary()) <= 500
