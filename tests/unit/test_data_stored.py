"""Stored responses: who is compared with whom, and what could teach nothing."""

import math

import pytest

from paretune.data.loader import ResponseGroupStream, group_responses, has_distinct_scores
from paretune.data.records import Message, PreferencePair, Prompt, Rating

BOTH = {"polite": 1.0, "safe": 2.0}


def rating(text, response, labels, id=""):
    return Rating(prompt=Prompt(messages=(Message("user", text),), id=id), response=response, labels=labels)


def test_ratings_of_one_prompt_are_one_list_whatever_their_rows_are_called():
    rows = [
        rating("q", "a", {"polite": 1.0}, "f.jsonl:1"),
        rating("r", "b", {"polite": 0.0}, "f.jsonl:2"),
        rating("q", "c", {"polite": 0.5}, "f.jsonl:3"),
    ]
    found = group_responses(rows)
    assert [each.responses for each in found] == [("a", "c"), ("b",)]
    assert found[0].prompt.id == "f.jsonl:1"


def test_every_pair_is_a_list_of_its_own():
    prompt = Prompt(messages=(Message("user", "q"),))
    pair = PreferencePair(prompt=prompt, chosen="a", rejected="b", objective="safe")
    (found,) = group_responses([pair])
    assert (found.responses, found.labels) == (("a", "b"), ({"safe": 1.0}, {"safe": 0.0}))
    assert has_distinct_scores(found, BOTH, fill_missing=True)
    assert not has_distinct_scores(found, BOTH, fill_missing=False), "nobody said how polite they are"
    assert has_distinct_scores(found, {"polite": 0.0, "safe": 1.0}, fill_missing=False)


@pytest.mark.parametrize(
    ("labels", "tells"),
    [
        (({"polite": 1.0, "safe": 0.0}, {"polite": 1.0, "safe": 1.0}), True),
        (({"polite": 1.0, "safe": 0.0}, {"polite": 1.0, "safe": 0.0}), False),
        (({"polite": 1.0, "safe": 0.0},), False),
        (({"polite": 1.0, "safe": math.nan}, {"polite": 0.0, "safe": 1.0}), False),
    ],
)
def test_a_list_teaches_when_two_are_worth_something_different(labels, tells):
    (found,) = group_responses([rating("q", str(i), given) for i, given in enumerate(labels)])
    assert has_distinct_scores(found, BOTH, fill_missing=False) is tells


def test_every_pass_reads_every_list_once_in_another_order():
    lists = tuple(group_responses([rating(f"q{i}", "a", {"polite": 1.0}) for i in range(6)]))
    stream = ResponseGroupStream(lists, 3, seed=0)
    passes = [[each.prompt for step in (2 * n, 2 * n + 1) for each in stream(step)] for n in range(2)]
    assert all(sorted(map(repr, one)) == sorted(repr(each.prompt) for each in lists) for one in passes)
    assert passes[0] != passes[1]
    assert stream(1) == stream(1)
