from collections import Counter

from paretune.data.loader import PromptStream
from paretune.data.records import Message, Prompt


def pool(kind, size):
    return tuple(
        Prompt(messages=(Message("user", f"{kind} {i}"),), id=f"{kind}-{i}", category=kind)
        for i in range(size)
    )


def test_a_step_is_a_function_of_seed_and_step():
    one, other = (PromptStream((pool("a", 7), pool("b", 5)), (1.0, 1.0), 4, 3) for _ in range(2))
    assert [one(s) for s in (5, 2, 9)] == [other(s) for s in (5, 2, 9)]
    assert PromptStream((pool("a", 7), pool("b", 5)), (1.0, 1.0), 4, 4)(5) != one(5)


def test_every_prompt_of_a_pass_comes_once_when_shares_follow_sizes():
    stream = PromptStream((pool("a", 6), pool("b", 6)), (1.0, 1.0), 4, 0)
    seen = Counter(p.id for s in range(3) for p in stream(s))
    assert len(seen) == 12
    assert set(seen.values()) == {1}


def test_shares_decide_the_mixture_not_the_sizes():
    stream = PromptStream((pool("a", 900), pool("b", 100)), (1.0, 3.0), 10, 0)
    kinds = Counter(p.category for s in range(100) for p in stream(s))
    assert kinds == {"a": 250, "b": 750}
    repeats = Counter(p.id for s in range(100) for p in stream(s) if p.category == "b")
    assert max(repeats.values()) - min(repeats.values()) <= 1


def test_a_pass_and_a_run_say_how_many_prompts_each_pool_gives():
    stream = PromptStream((pool("a", 900), pool("b", 100), pool("c", 9)), (1.0, 3.0, 1e-4), 10, 0)
    assert stream.pool_quotas() == (252, 757, 0)
    for steps in (0, 3, 101, 250):
        kinds = Counter(p.category for s in range(steps) for p in stream(s))
        assert stream.count_drawn(steps) == tuple(kinds[kind] for kind in "abc")
    assert PromptStream((), (), 4, 0).count_drawn(3) == ()
