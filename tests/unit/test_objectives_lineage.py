import pytest
import torch
from test_objectives_reward_model import language

from paretune.data.records import Message, PreferencePair, Prompt, Rating
from paretune.evaluate.evaluate import Judge
from paretune.reward.checkpoint import (
    data_provenance,
    load_reward_model,
    provenance_hashes,
    reward_model_from_lm,
    save_reward_model,
)


def rated(text, question="why?", mark=1.0):
    return Rating(prompt=Prompt(messages=(Message("user", question),)), response=text, labels={"a": mark})


def known(records, files=()):
    return provenance_hashes(data_provenance(records, files))


class Mute:
    names = ("a",)

    def __call__(self, samples):
        return torch.zeros(len(samples), 1)


def judge(data):
    return Judge(name="", scorer=Mute(), data_hashes=data)


def test_one_common_response_is_found_whatever_its_label():
    one = known([rated(f"left {i}") for i in range(500)] + [rated("the  same\n", mark=0.2)])
    assert judge(one).overlaps_with(judge(known([rated("the same", mark=0.9), rated("another")])))
    assert not judge(one).overlaps_with(judge(known([rated("the same", "who?"), rated("another")])))


def test_a_response_is_common_to_a_rating_and_a_pair():
    prompt = Prompt(messages=(Message("user", "why?"),))
    pair = PreferencePair(prompt=prompt, chosen="yes", rejected="no", objective="a")
    for text in ("yes", "no"):
        assert judge(known([rated(text)])).overlaps_with(judge(known([pair])))


def test_of_many_records_a_common_part_is_found(monkeypatch):
    monkeypatch.setattr("paretune.reward.checkpoint.KEPT", 32)
    many = known([rated(f"left {i}") for i in range(320)])
    assert len(many) == 32
    few = known([rated(f"right {i}") for i in range(80)] + [rated(f"left {i}") for i in range(40)])
    assert judge(many).overlaps_with(judge(few))


def test_a_common_file_is_enough():
    assert judge(known([rated("x")], ["f"])).overlaps_with(judge(known([rated("y")], ["f", "g"])))
    assert not judge(known([rated("x")], ["f"])).overlaps_with(judge(known([rated("y")], ["g"])))


@pytest.mark.parametrize("other", [None, frozenset({"records 1"})])
def test_a_judge_of_unknown_data_is_never_independent(other):
    assert judge(None).overlaps_with(judge(other))
    assert judge(other).overlaps_with(judge(None))


def test_a_rule_was_fitted_on_nothing():
    assert not judge(frozenset()).overlaps_with(judge(None))
    assert not judge(frozenset({"records 1"})).overlaps_with(judge(frozenset()))


def test_a_stored_model_knows_its_data_and_a_foreign_one_does_not(tmp_path):
    model = reward_model_from_lm(language(), ("a",), (1.0,), (0.0,))
    assert provenance_hashes(model.provenance) is None
    model.provenance = data_provenance([rated("x"), rated("y")], ["f"])
    save_reward_model(model, tmp_path / "m")
    assert load_reward_model(str(tmp_path / "m")).provenance == model.provenance
    assert provenance_hashes(model.provenance) == known([rated("y"), rated("x")], ["f"])
