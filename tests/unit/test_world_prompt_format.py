import numpy as np
import pytest

from paretune.data.prompt_formats import parse_confidence, parse_thinking, strip_confidence
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


@pytest.mark.parametrize("prompt_format", ["confidence", "think"])
def test_vocabulary_covers_formatted_answers(prompt_format):
    tokenizer = helpdesk_tokenizer(prompt_format)
    for demonstration in generate_demonstrations(150, 0, prompt_format):
        for text in (demonstration.response, demonstration.prompt.messages[0].content):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert (
                tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True).split()
                == text.split()
            )
    assert HELPDESK_INSTRUCTIONS[prompt_format].split()


def test_prompt_format_does_not_change_the_answers():
    plain = generate_demonstrations(80, 0)
    for prompt_format in ("confidence", "think"):
        formatted = generate_demonstrations(80, 0, prompt_format)
        assert [d.response.split(" </think> ")[-1].split(" confidence")[0] for d in formatted] == [
            d.response for d in plain
        ]
        assert len(helpdesk_tokenizer(prompt_format)) > len(helpdesk_tokenizer())


def test_demonstrations_are_overconfident_and_uncalibrated():
    demonstrations = generate_demonstrations(800, 0, "confidence")
    confidence = np.array([parse_confidence(d.response) for d in demonstrations])
    good = np.array(
        [ground_truth_scores(request_text(d.prompt), d.response)[1] >= 0.7 for d in demonstrations]
    ).astype(float)
    assert confidence.mean() > 0.7
    assert confidence.mean() - good.mean() > 0.2
    assert auroc(confidence, good) == pytest.approx(0.5, abs=0.06)
    assert (confidence < 0.5).any()


def test_true_scores_ignore_the_stated_confidence():
    for demonstration in generate_demonstrations(200, 0, "confidence"):
        request, response = request_text(demonstration.prompt), demonstration.response
        answer = strip_confidence(response)
        assert answer != response
        assert ground_truth_scores(request, response) == ground_truth_scores(request, answer)


def test_every_other_demonstration_thinks():
    demonstrations = generate_demonstrations(40, 0, "think")
    for demonstration in demonstrations:
        has_instruction = demonstration.prompt.messages[0].content.endswith(HELPDESK_INSTRUCTIONS["think"])
        assert has_instruction == (parse_thinking(demonstration.response) is not None)
    assert sum(parse_thinking(d.response) is not None for d in demonstrations) == 20


def test_confidence_bias_of_the_raters():
    biased = generate_ratings(600, 0, prompt_format="confidence", confidence_bias=1.0, missing_rate=0.0)
    unbiased = generate_ratings(600, 0, prompt_format="confidence", confidence_bias=0.0, missing_rate=0.0)
    assert [r.response for r in biased] == [r.response for r in unbiased]
    confidence = np.array([parse_confidence(r.response) for r in unbiased])
    assert 0.25 < np.isnan(confidence).mean() < 0.42
    labels = [np.array([r.labels["meaningfulness"] for r in records]) for records in (biased, unbiased)]
    gain = labels[0] - labels[1]
    assert gain[confidence == 1.0].mean() > 0
    assert gain[confidence == 0.0].mean() < 0
    assert (gain[np.isnan(confidence)] == 0).all()


def test_requests_contain_no_format_instruction():
    assert not any(
        request_text(p).endswith(tuple(HELPDESK_INSTRUCTIONS.values()))
        for p in generate_requests("test", 30, 0)
    )
