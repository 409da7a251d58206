import math

import pytest

from paretune.data.loader import ResponseGroupStream, group_responses, has_distinct_scores
from paretune.data.records import Message, PreferencePair, Prompt, Rating

BOTH = {"polite": 1.0, "safe": 2.0}


def rating(text, response, labels, id=""):
    return Rating(prompt=Prompt(messages=(Message("user", text),), id=id), response=response, labels=labels)


def test_ratings_are_grouped_by_messages_not_by_id():
    rows = [
        rating("q", "a", {"polite": 1.0}, "f.jsonl:1"),
        rating("r", "b", {"polite": 0.0}, "f.jsonl:2"),
        rating("q", "c", {"polite": 0.5}, "f.jsonl:3"),
    ]
    groups = group_responses(rows)
    assert [group.responses for group in groups] == [("a", "c"), ("b",)]
    assert groups[0].prompt.id == "f.jsonl:1"


def test_each_pair_is_a_group():
    prompt = Prompt(messages=(Message("user", "q"),))
    pair = PreferencePair(prompt=prompt, chosen="a", rejected="b", objective="safe")
    (group,) = group_responses([pair])
    assert (group.responses, group.labels) == (("a", "b"), ({"safe": 1.0}, {"safe": 0.0}))
    assert has_distinct_scores(group, BOTH, fill_missing=True)
    assert not has_distinct_scores(group, BOTH, fill_missing=False), "politeness is not labelled"
    assert has_distinct_scores(group, {"polite": 0.0, "safe": 1.0}, fill_missing=False)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (({"polite": 1.0, "safe": 0.0}, {"polite": 1.0, "safe": 1.0}), True),
        (({"polite": 1.0, "safe": 0.0}, {"polite": 1.0, "safe": 0.0}), False),
        (({"polite": 1.0, "safe": 0.0},), False),
        (({"polite": 1.0, "safe": math.nan}, {"polite": 0.0, "safe": 1.0}), False),
    ],
)
def test_has_distinct_scores(labels, expected):
    (group,) = group_responses([rating("q", str(i), row_labels) for i, row_labels in enumerate(labels)])
    assert has_distinct_scores(group, BOTH, fill_missing=False) is expected


def test_stream_has_every_group_once_per_epoch_in_another_order():
    groups = tuple(group_responses([rating(f"q{i}", "a", {"polite": 1.0}) for i in range(6)]))
    stream = ResponseGroupStream(groups, 3, seed=0)
    epochs = [[group.prompt for step in (2 * n, 2 * n + 1) for group in stream(step)] for n in range(2)]
    assert all(sorted(map(repr, epoch)) == sorted(repr(group.prompt) for group in groups) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert stream(1) == stream(1)
