import pytest
import torch

from paretune.data.loader import collate, hold_out_prompts, prompt_key, split_by_prompt
from paretune.data.records import Demonstration, Message, PreferencePair, Prompt, Rating


def prompt_of(text, role="user"):
    return Prompt(messages=(Message(role, text),))


def test_masks_come_from_lengths_not_from_pad_ids():
    pad_id = 0
    batch = collate([[5, 0], [7]], [[0, 6, 0], []], [3, 3], [False, True], ("a", "b"), pad_id)
    assert batch.input_ids.tolist() == [[5, 0, 0, 6, 0], [7, 0, 0, 0, 0]]
    assert batch.attention_mask.int().tolist() == [[1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]
    assert batch.response_mask.int().tolist() == [[0, 0, 1, 1, 1], [0, 0, 0, 0, 0]]
    assert batch.group.tolist() == [3, 3]
    assert batch.truncated.tolist() == [False, True]
    assert batch.scores.isnan().all()
    assert batch.scores.shape == batch.rewards.shape == (2, 2)
    assert batch.scores.data_ptr() != batch.rewards.data_ptr()


def test_collate_without_rows_or_objectives():
    assert len(collate([], [], [], [], (), 0)) == 0
    assert collate([[1]], [[2]], [0], [False], (), 0).scores.shape == (1, 0)


def test_unequal_numbers_of_prompts_and_responses_are_an_error():
    with pytest.raises(ValueError, match="zip"):
        collate([[1], [2]], [[2]], [0, 1], [False, False], (), 0)


def test_dtypes_of_a_batch():
    batch = collate([[1]], [[2, 3]], [0], [False], ("a",), 9)
    assert (batch.input_ids.dtype, batch.group.dtype) == (torch.int64, torch.int64)
    assert batch.attention_mask.dtype == batch.response_mask.dtype == batch.truncated.dtype == torch.bool


def test_split_keeps_all_records_of_a_prompt_together():
    records = [
        Rating(prompt=prompt_of(f"Question {i % 50}?"), response=f"r{i}", labels={"a": 1.0})
        for i in range(500)
    ]
    train, test = split_by_prompt(records, 0.3, seed=4)
    assert len(train) + len(test) == 500
    assert not {prompt_key(r) for r in train} & {prompt_key(r) for r in test}
    assert len({prompt_key(r) for r in test}) == 15
    assert [r.response for r in test] == sorted((r.response for r in test), key=lambda text: int(text[1:]))


def test_split_of_a_prompt_depends_on_its_text_alone():
    ratings = [Rating(prompt=prompt_of(f"How do I do {i}?"), response="r", labels={}) for i in range(200)]
    others = [Demonstration(prompt=prompt_of(f"  how do I do {i} "), response="other") for i in range(200)]
    first, second, fewer = (
        {prompt_key(record) for record in split_by_prompt(records, 0.5, seed=0)[1]}
        for records in (ratings, others[::-1], others[:150])
    )
    assert first == second
    # Of fewer prompts the same ones come first; the border moves by as many as the fraction is off.
    assert len(fewer - first) + len(first - fewer - {f"how do i do {i}" for i in range(150, 200)}) < 10
    assert split_by_prompt(ratings, 0.5, seed=1)[1] != split_by_prompt(ratings, 0.5, seed=0)[1]


@pytest.mark.parametrize(
    ("num_prompts", "fraction", "held_out"),
    [
        (2000, 0.1, 200), (60, 0.1, 6), (20, 0.1, 2), (2, 0.1, 1), (3, 0.01, 1), (2, 0.99, 1), (1, 0.1, 0),
        (9, 0.0, 0), (9, 1.0, 9), (0, 0.5, 0), (33, 0.2, 7),
    ],
)  # fmt: skip
def test_a_split_holds_out_the_exact_fraction_of_the_prompts(num_prompts, fraction, held_out):
    prompts = [prompt_of(str(i // 3)) for i in range(3 * num_prompts)]
    for seed in range(3):
        train, test = split_by_prompt(prompts, fraction, seed=seed)
        assert len({prompt_key(prompt) for prompt in test}) == held_out
        assert len(train) + len(test) == 3 * num_prompts


def test_a_prompt_held_out_of_one_pool_is_held_out_of_all():
    pools = {"a": [prompt_of(str(i)) for i in range(20)], "b": [prompt_of(str(i)) for i in range(10, 40)]}
    train, test = hold_out_prompts(pools, 0.1, seed=0)
    assert 3 <= len(test) <= 5
    assert {p.messages for p in test}.isdisjoint(p.messages for pool in train.values() for p in pool)
    assert {p.messages for pool in train.values() for p in pool} | {p.messages for p in test} == {
        prompt_of(str(i)).messages for i in range(40)
    }


def test_prompt_key_ignores_case_space_and_punctuation():
    empty = Prompt(messages=())
    conversation = Prompt(
        messages=(Message("system", "s"), Message("assistant", "hi"), Message("user", "Why, oh WHY?"))
    )
    assert prompt_key(conversation) == "why oh why"
    assert prompt_key(prompt_of("Only this.", "system")) == "only this"
    assert prompt_key(Rating(prompt=empty, response="A text", labels={})) == "a text"
    assert prompt_key(PreferencePair(prompt=empty, chosen="c", rejected="R!", objective="o")) == "r"
    assert prompt_key(prompt_of("你好吗")) != prompt_key(prompt_of("再见"))
    assert prompt_key(prompt_of("?!")) == "?!"
