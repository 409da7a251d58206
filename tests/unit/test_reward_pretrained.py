"""Ready-made reward models as scorers: their outputs by name, and their scores in plain transformers."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from paretune.core.errors import WiringError
from paretune.data.records import Message, Prompt, Sample
from paretune.models.load import as_policy_model
from paretune.reward.checkpoint import data_provenance, reward_model_from_lm, save_reward_model
from paretune.reward.failures import FallibleScorer
from paretune.reward.model import RewardModelScorer
from paretune.reward.pretrained import load_pretrained_reward_scorer, reward_model_issues
from paretune.reward.scorers import Scorer, resolve_scorers
from support.tiny_classifiers import save_classifier, tokenizer
from support.tiny_models import tiny_model, tiny_tokenizer

ATTRIBUTES = ("helpsteer-helpfulness", "ultrafeedback-honesty", "beavertails-is_safe")
PLACEHOLDERS = ("LABEL_0", "LABEL_1", "LABEL_2")
ANSWERS = ("no.", "a much longer answer, with many more words", "é")


def samples(answers=ANSWERS):
    prompt = Prompt(messages=(Message("user", "How are you?"),))
    return [Sample(prompt=prompt, response=answer) for answer in answers]


@torch.no_grad()
def plain_logits(path):
    """Logits of each conversation alone in plain transformers."""
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    rows = []
    for sample in samples():
        turns = [
            {"role": "user", "content": "How are you?"},
            {"role": "assistant", "content": sample.response},
        ]
        ids = tokenizer("llama").apply_chat_template(turns, return_dict=False)
        rows.append(model(torch.tensor([ids])).logits[0])
    return torch.stack(rows)


def test_named_outputs_are_objectives_with_the_scores_of_plain_transformers(tmp_path):
    path = save_classifier(tmp_path / "armo", "llama", ATTRIBUTES, problem_type="regression")
    expected = plain_logits(path)
    assert expected.std(0).min() > 0.01, "the scores must differ for this test to mean anything"
    scorer = load_pretrained_reward_scorer(path, name="armo")
    assert isinstance(scorer, Scorer)
    assert isinstance(scorer, FallibleScorer)
    assert scorer.names == ATTRIBUTES
    # The whole rendering, up to and including the newline after the last turn.
    assert torch.allclose(scorer(samples()), expected, atol=1e-5, rtol=0)
    assert scorer.total_flops > 0
    assert scorer.data_hashes is None
    chosen = load_pretrained_reward_scorer(path, name="x", outputs={"safe": 2, "honest": ATTRIBUTES[1]})
    assert chosen.names == ("safe", "honest")
    assert torch.allclose(chosen(samples()), expected[:, [2, 1]], atol=1e-5, rtol=0)


def test_single_outputs_side_by_side_have_the_names_of_their_scorers(tmp_path):
    scorers = []
    for i, name in enumerate(("helpful", "harmless")):
        path = save_classifier(tmp_path / name, "llama", ("LABEL_0",), seed=i, pad_token_id=4)
        scorers.append(load_pretrained_reward_scorer(path, name=name))
        assert torch.allclose(scorers[-1](samples()), plain_logits(path), atol=1e-5, rtol=0)
    assert resolve_scorers(("harmless", "helpful"), scorers) == {"harmless": (1, 0), "helpful": (0, 0)}
    assert scorers[0].weights_hash() != scorers[1].weights_hash()
    assert scorers[0].provenance_files()


def test_our_own_model_reads_rows_as_in_its_training(tmp_path):
    text_tokenizer = tiny_tokenizer()
    policy = as_policy_model(
        tiny_model("llama", len(text_tokenizer), initial=0.3, context=64), text_tokenizer
    )
    model = reward_model_from_lm(policy, ("a", "b"), (2.0, 1.0), (5.0, -1.0))
    torch.nn.init.normal_(model.network.score.weight)
    model.provenance = data_provenance(())
    save_reward_model(model, tmp_path / "rm")
    scorer = load_pretrained_reward_scorer(str(tmp_path / "rm"), name="rm", outputs={"first": "a"})
    assert torch.allclose(scorer(samples()), RewardModelScorer(model)(samples())[:, :1], atol=1e-5, rtol=0)
    assert scorer(samples(("a" * 70, "b"))).isnan()[:, 0].tolist() == [True, False]
    assert scorer.failures.reasons == {"longer than the 64 tokens that the model reads": 1}
    assert scorer.failures.num_responses == 5


CASES = {
    "placeholders": ("llama", PLACEHOLDERS, {}, {}, "outputs", "does not name its 3 outputs; fix: name"),
    "no name": ("llama", ("is safe", "b"), {}, {}, "outputs", 'the label "is safe" cannot be the name'),
    "twice": (
        "llama",
        ATTRIBUTES,
        {},
        {"a": 1, "b": ATTRIBUTES[1]},
        "outputs",
        "a and b are the same output",
    ),
    "no label": ("llama", ATTRIBUTES, {}, {"a": "honesty"}, "outputs", "one of 0: helpsteer-helpfulness, 1:"),
    "out of range": ("llama", PLACEHOLDERS, {}, {"a": 3}, "outputs", "has no output 3"),
    "encoder": ("bert", ATTRIBUTES, {}, {}, "type", "type: classifier with output: logit"),
    "classes": (
        "llama",
        ATTRIBUTES,
        {"problem_type": "single_label_classification"},
        {},
        "type",
        "it is no reward model; fix: type: classifier",
    ),
    "own code": (
        "llama",
        ATTRIBUTES,
        {"architectures": ["LlamaForRewardModelWithGating"], "auto_map": {"AutoModel": "m.C"}},
        {},
        "path",
        "is never run; fix: use a model that transformers has itself",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_mistakes_are_told_before_weights_are_loaded(case, tmp_path):
    family, labels, fields, outputs, key, text = CASES[case]
    path = save_classifier(tmp_path / "rm", family, labels)
    file = Path(path) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | fields), encoding="utf-8")
    (issue,) = reward_model_issues(path, name="rm", outputs=outputs)
    assert issue.key == key
    assert text in f"{issue.problem}; fix: {issue.fix}"
    with pytest.raises(WiringError, match=f"^{key}: "):
        load_pretrained_reward_scorer(path, name="rm", outputs=outputs)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (None, "has no chat template"),
        ("{{ raise_exception('never') }}", "the chat template rejects"),
        ("{% if %}", "line 1 of the chat template fails"),
        ("{{ '' }}", "renders no text"),
        ("constant", "leaves out the response"),
    ],
)
def test_foreign_model_needs_a_chat_template_that_renders_conversations(template, text, tmp_path):
    text_tokenizer = tokenizer("llama")
    text_tokenizer.chat_template = template
    path = save_classifier(tmp_path / "rm", "llama", ("LABEL_0",), text_tokenizer=text_tokenizer)
    (issue,) = reward_model_issues(path, name="rm", outputs={})
    assert issue.key == "path"
    assert text in issue.problem
