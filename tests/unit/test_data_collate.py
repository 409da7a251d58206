import pytest
import torch

from paretune.data.loader import collate, prompt_key, split_by_prompt
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
    assert 5 <= len({prompt_key(r) for r in test}) <= 25
    assert [r.response for r in test] == sorted((r.response for r in test), key=lambda text: int(text[1:]))


def test_split_of_a_prompt_is_the_same_in_every_file():
    ratings = [Rating(prompt=prompt_of(f"How do I do {i}?"), response="r", labels={}) for i in range(200)]
    others = [Demonstration(prompt=prompt_of(f"  how do I do {i} "), response="other") for i in range(200)]
    sides = [split_by_prompt(records, 0.5, seed=0)[1] for records in (ratings, others[:150])]
    first = {prompt_key(record) for record in sides[0]}
    second = {prompt_key(record) for record in sides[1]}
    assert second == {key for key in first if int(key.split()[-1]) < 150}
    assert split_by_prompt(ratings, 0.5, seed=1)[1] != sides[0]


def test_test_fraction_is_approximate_and_exact_at_its_ends():
    prompts = [prompt_of(str(i)) for i in range(2000)]
    assert split_by_prompt(prompts, 0.0, seed=0) == (prompts, [])
    assert split_by_prompt(prompts, 1.0, seed=0) == ([], prompts)
    assert abs(len(split_by_prompt(prompts, 0.1, seed=0)[1]) - 200) < 45


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
