"""Common training data of two reward models is found through the hashes in their checkpoints."""

import pytest
import torch

from paretune.data.records import Message, PreferencePair, Prompt, Rating
from paretune.evaluate.judging import Judge
from paretune.models.load import as_policy_model
from paretune.reward.checkpoint import (
    data_provenance,
    load_reward_model,
    provenance_hashes,
    reward_model_from_lm,
    save_reward_model,
)
from support.tiny_models import tiny_model, tiny_tokenizer


def rating(text, question="why?", label=1.0):
    return Rating(prompt=Prompt(messages=(Message("user", question),)), response=text, labels={"a": label})


def hashes_of(records, files=()):
    return provenance_hashes(data_provenance(records, files))


class ZeroScorer:
    names = ("a",)

    def __call__(self, samples):
        return torch.zeros(len(samples), 1)


def judge(hashes):
    return Judge(name="", scorer=ZeroScorer(), data_hashes=hashes)


def test_one_common_response_overlaps_whatever_its_label():
    many = hashes_of([rating(f"left {i}") for i in range(500)] + [rating("the  same\n", label=0.2)])
    assert judge(many).overlaps_with(judge(hashes_of([rating("the same", label=0.9), rating("another")])))
    assert not judge(many).overlaps_with(judge(hashes_of([rating("the same", "who?"), rating("another")])))


def test_response_of_a_rating_overlaps_with_that_of_a_pair():
    prompt = Prompt(messages=(Message("user", "why?"),))
    pair = PreferencePair(prompt=prompt, chosen="yes", rejected="no", objective="a")
    for text in ("yes", "no"):
        assert judge(hashes_of([rating(text)])).overlaps_with(judge(hashes_of([pair])))


def test_common_records_are_found_among_more_than_are_kept(monkeypatch):
    monkeypatch.setattr("paretune.reward.checkpoint.MAX_RECORD_HASHES", 32)
    many = hashes_of([rating(f"left {i}") for i in range(320)])
    assert len(many) == 32
    few = hashes_of([rating(f"right {i}") for i in range(80)] + [rating(f"left {i}") for i in range(40)])
    assert judge(many).overlaps_with(judge(few))


def test_common_file_overlaps():
    assert judge(hashes_of([rating("x")], ["f"])).overlaps_with(judge(hashes_of([rating("y")], ["f", "g"])))
    assert not judge(hashes_of([rating("x")], ["f"])).overlaps_with(judge(hashes_of([rating("y")], ["g"])))


@pytest.mark.parametrize("other", [None, frozenset({"record_hashes 1"})])
def test_judge_with_unknown_data_is_never_independent(other):
    assert judge(None).overlaps_with(judge(other))
    assert judge(other).overlaps_with(judge(None))


def test_rule_has_no_training_data():
    assert not judge(frozenset()).overlaps_with(judge(None))
    assert not judge(frozenset({"record_hashes 1"})).overlaps_with(judge(frozenset()))


def test_provenance_is_saved_and_unknown_for_a_model_without_one(tmp_path):
    tokenizer = tiny_tokenizer()
    policy = as_policy_model(tiny_model("llama", len(tokenizer), initial=0.3), tokenizer)
    model = reward_model_from_lm(policy, ("a",), (1.0,), (0.0,))
    assert provenance_hashes(model.provenance) is None
    model.provenance = data_provenance([rating("x"), rating("y")], ["f"])
    save_reward_model(model, tmp_path / "m")
    assert load_reward_model(str(tmp_path / "m")).provenance == model.provenance
    assert provenance_hashes(model.provenance) == hashes_of([rating("y"), rating("x")], ["f"])
