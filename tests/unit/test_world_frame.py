"""The help desk that states a confidence, or thinks first."""

import numpy as np
import pytest

from paretune.data.chat import parse_confidence, parse_thinking, strip_confidence
from paretune.evaluate.confidence import auroc
from paretune.worlds.helpdesk.model import HELPDESK_INSTRUCTIONS
from paretune.worlds.helpdesk.world import (
    generate_demonstrations,
    generate_ratings,
    generate_requests,
    ground_truth_scores,
    helpdesk_tokenizer,
    request_text,
)


@pytest.mark.parametrize("frame", ["confidence", "think"])
def test_its_words_are_in_the_vocabulary_and_come_back(frame):
    ours = helpdesk_tokenizer(frame)
    for shown in generate_demonstrations(150, 0, frame):
        for text in (shown.response, shown.prompt.messages[0].content):
            ids = ours(text, add_special_tokens=False)["input_ids"]
            assert ours.unk_token_id not in ids
            assert ours.decode([*ids, ours.eos_token_id], skip_special_tokens=True).split() == text.split()
    assert HELPDESK_INSTRUCTIONS[frame].split()


def test_without_a_frame_nothing_is_new():
    plain = generate_demonstrations(80, 0)
    for frame in ("confidence", "think"):
        framed = generate_demonstrations(80, 0, frame)
        assert [d.response.split(" </think> ")[-1].split(" confidence")[0] for d in framed] == [
            d.response for d in plain
        ]
        assert len(helpdesk_tokenizer(frame)) > len(helpdesk_tokenizer())


def test_the_careless_desk_is_sure_whatever_its_answer_is_worth():
    found = generate_demonstrations(800, 0, "confidence")
    sure = np.array([parse_confidence(d.response) for d in found])
    good = np.array(
        [ground_truth_scores(request_text(d.prompt), d.response)[1] >= 0.7 for d in found]
    ).astype(float)
    assert sure.mean() > 0.7
    assert sure.mean() - good.mean() > 0.2
    assert auroc(sure, good) == pytest.approx(0.5, abs=0.06)
    assert (sure < 0.5).any()


def test_the_truth_does_not_see_the_confidence():
    for shown in generate_demonstrations(200, 0, "confidence"):
        bare = strip_confidence(shown.response)
        assert bare != shown.response
        assert ground_truth_scores(request_text(shown.prompt), shown.response) == ground_truth_scores(
            request_text(shown.prompt), bare
        )


def test_every_other_demonstration_thinks_where_it_is_asked_to():
    found = generate_demonstrations(40, 0, "think")
    for shown in found:
        asks = shown.prompt.messages[0].content.endswith(HELPDESK_INSTRUCTIONS["think"])
        assert asks == (parse_thinking(shown.response) is not None)
    assert sum(parse_thinking(d.response) is not None for d in found) == 20


def test_raters_like_what_is_sure_of_itself():
    biased = generate_ratings(600, 0, prompt_format="confidence", confidence_bias=1.0, missing_rate=0.0)
    fair = generate_ratings(600, 0, prompt_format="confidence", confidence_bias=0.0, missing_rate=0.0)
    assert [r.response for r in biased] == [r.response for r in fair]
    sure = np.array([parse_confidence(r.response) for r in fair])
    assert 0.25 < np.isnan(sure).mean() < 0.42
    label = [np.array([r.labels["meaningfulness"] for r in records]) for records in (biased, fair)]
    gain = label[0] - label[1]
    assert gain[sure == 1.0].mean() > 0
    assert gain[sure == 0.0].mean() < 0
    assert (gain[np.isnan(sure)] == 0).all()


def test_requests_themselves_ask_for_nothing():
    assert not any(
        request_text(p).endswith(tuple(HELPDESK_INSTRUCTIONS.values()))
        for p in generate_requests("test", 30, 0)
    )
