from collections import Counter

from paretune.data.loader import PromptStream
from paretune.data.records import Message, Prompt


def pool(category, size):
    return tuple(
        Prompt(messages=(Message("user", f"{category} {i}"),), id=f"{category}-{i}", category=category)
        for i in range(size)
    )


def test_a_step_is_a_function_of_seed_and_step():
    one, other = (PromptStream((pool("a", 7), pool("b", 5)), (1.0, 1.0), 4, 3) for _ in range(2))
    assert [one(s) for s in (5, 2, 9)] == [other(s) for s in (5, 2, 9)]
    assert PromptStream((pool("a", 7), pool("b", 5)), (1.0, 1.0), 4, 4)(5) != one(5)


def test_epoch_has_every_prompt_once_with_weights_in_proportion_to_sizes():
    stream = PromptStream((pool("a", 6), pool("b", 6)), (1.0, 1.0), 4, 0)
    counts = Counter(p.id for s in range(3) for p in stream(s))
    assert len(counts) == 12
    assert set(counts.values()) == {1}


def test_sampling_weights_decide_the_mixture():
    stream = PromptStream((pool("a", 900), pool("b", 100)), (1.0, 3.0), 10, 0)
    categories = Counter(p.category for s in range(100) for p in stream(s))
    assert categories == {"a": 250, "b": 750}
    repeats = Counter(p.id for s in range(100) for p in stream(s) if p.category == "b")
    assert max(repeats.values()) - min(repeats.values()) <= 1


def test_pool_quotas_and_count_drawn_match_the_stream():
    stream = PromptStream((pool("a", 900), pool("b", 100), pool("c", 9)), (1.0, 3.0, 1e-4), 10, 0)
    assert stream.pool_quotas() == (252, 757, 0)
    for steps in (0, 3, 101, 250):
        categories = Counter(p.category for s in range(steps) for p in stream(s))
        assert stream.count_drawn(steps) == tuple(categories[name] for name in "abc")
    assert PromptStream((), (), 4, 0).count_drawn(3) == ()
