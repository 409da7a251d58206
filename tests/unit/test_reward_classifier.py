"""Any sequence classifier of transformers as an objective, compared with plain transformers text by text."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BartConfig, XLNetConfig

from paretune.core.errors import WiringError
from paretune.data.records import Message, Prompt, Sample
from paretune.reward.classifier import (
    ClassifierScorer,
    SequenceClassifier,
    classifier_issues,
    label_scores,
    load_classifier_scorer,
)
from paretune.reward.classifier_inputs import ClassifierEncoder
from paretune.reward.failures import FallibleScorer
from paretune.reward.scorers import Scorer
from support.tiny_classifiers import CAUSAL, FAMILIES, classifier, save_classifier, tokenizer

READS = ("response", "prompt_and_response", "conversation")
OUTPUTS = ("probability", "logit", "log_odds")
RESPONSES = ("no.", "a much longer answer, with many more words in it", "é: 1")
ACTIVATIONS = {
    "softmax": ({}, lambda logits: logits.softmax(-1)),
    "sigmoid": ({"problem_type": "multi_label_classification"}, torch.sigmoid),
}


def samples(responses=RESPONSES, question="how are you?"):
    return [
        Sample(prompt=Prompt(messages=(Message("user", question + "x" * i),)), response=text)
        for i, text in enumerate(responses)
    ]


@torch.no_grad()
def plain_logits(network, text_tokenizer, sample, reads):
    """The logits of a text alone in plain transformers."""
    question = sample.prompt.messages[0].content
    if reads == "conversation":
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": sample.response}]
        ids = text_tokenizer.apply_chat_template(turns, return_dict=False)
        return network(input_ids=torch.tensor([ids])).logits[0]
    texts = (sample.response,) if reads == "response" else (question, sample.response)
    return network(**text_tokenizer(*texts, return_tensors="pt")).logits[0]


def scorer_of(network, text_tokenizer, reads="response", **settings):
    model = SequenceClassifier(network, ClassifierEncoder(text_tokenizer, reads))
    return ClassifierScorer(name="toxic", model=model, label=1, **{"activation": "softmax", **settings})


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_plain_transformers_and_do_not_depend_on_the_batch(family):
    network, text_tokenizer = classifier(family)
    for reads in READS:
        scorer, rows = scorer_of(network, text_tokenizer, reads), samples()
        assert (scorer.model._causal is not None) == (family in CAUSAL)
        logits = torch.stack([plain_logits(network, text_tokenizer, row, reads) for row in rows])
        assert logits[:, 1].std() > 0.01, "the texts must differ for this test to mean anything"
        probability = logits.softmax(-1)[:, 1]
        expected = {"probability": probability, "logit": logits[:, 1]}
        expected["log_odds"] = torch.logit(probability.double()).float()
        for scorer.output in OUTPUTS:
            assert torch.allclose(scorer(rows)[:, 0], expected[scorer.output], atol=1e-5, rtol=1e-5)
        assert not scorer.failures.reasons


@pytest.mark.parametrize("family", ["bart", "xlnet"])
def test_families_in_which_padding_matters_read_rows_of_equal_length(family):
    text_tokenizer = tokenizer("roberta")
    common = {
        "vocab_size": len(text_tokenizer),
        "d_model": 16,
        "pad_token_id": 0,
        "num_labels": 2,
        "init_std": 0.4,
    }
    if family == "xlnet":
        config = XLNetConfig(n_layer=1, n_head=2, d_inner=24, initializer_range=0.4, **common)
    else:
        size = {
            f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")
        }
        size |= {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "eos_token_id": 2, "bos_token_id": 1}
        config = BartConfig(decoder_start_token_id=2, **size, **common)
    torch.manual_seed(0)
    network = AutoModelForSequenceClassification.from_config(config).eval()
    scorer, rows = scorer_of(network, text_tokenizer, output="logit"), samples()
    assert scorer.model._pads == (family == "bart")
    expected = torch.stack([plain_logits(network, text_tokenizer, row, "response") for row in rows])
    assert torch.allclose(scorer(rows)[:, 0], expected[:, 1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("pad_id", [0, 4, None], ids=["own", "is EOS", "none"])
@pytest.mark.parametrize("ending", ["", "\n"])
def test_causal_classifier_is_read_where_transformers_reads_a_single_row(pad_id, ending):
    network, text_tokenizer = classifier("llama", pad_token_id=pad_id)
    text_tokenizer.chat_template = text_tokenizer.chat_template.replace("<|im_end|>\n", f"<|im_end|>{ending}")
    scorer, rows = scorer_of(network, text_tokenizer, "conversation", output="logit"), samples()
    expected = torch.stack([plain_logits(network, text_tokenizer, row, "conversation") for row in rows])
    assert torch.allclose(scorer(rows)[:, 0], expected[:, 1], atol=1e-5, rtol=0)


def test_outputs_of_a_label():
    logits = torch.tensor([[1.0, 2.0, -3.0], [90.0, -90.0, 0.0], [0.0, 0.0, 0.0]])
    for activation, (_, probabilities) in ACTIVATIONS.items():
        p = probabilities(logits.double())[:, 1]
        cases = {"probability": (p, 1 - p), "logit": (logits[:, 1], -logits[:, 1])}
        cases["log_odds"] = (p.logit(), -p.logit())
        for output, expected in cases.items():
            for invert in (False, True):
                score = label_scores(logits, 1, activation, output, invert=invert)
                assert score.dtype == torch.float32
                assert torch.allclose(score, expected[invert].float(), atol=1e-6), (
                    activation,
                    output,
                    invert,
                )
    rare = label_scores(torch.tensor([[0.0, 60.0]]), 1, "softmax", "probability", invert=True)
    assert 0 < float(rare) < 1e-25, "1 - probability is not rounded to 0"


def test_text_that_cannot_be_read_is_nan_with_a_reason():
    network, text_tokenizer = classifier("roberta")
    scorer = scorer_of(network, text_tokenizer, "prompt_and_response")
    long = "x" * 200
    without_prompt = Sample(prompt=Prompt(messages=()), response="a")
    scores = scorer([*samples(("a", long)), without_prompt])[:, 0]
    assert scores.isnan().tolist() == [False, True, True]
    # RoBERTa's 128 positions begin after its padding token 0.
    assert scorer.failures.take().reasons == {
        "longer than the 127 tokens that the model reads": 1,
        "there is no prompt": 1,
    }
    fits = "x" * (127 - 4 - len("how are you?"))
    assert not scorer(samples((fits,))).isnan().any()
    assert scorer(samples((fits + "x",))).isnan().all()
    text_tokenizer.add_tokens(["qqq"])
    assert scorer(samples(("a qqq",))).isnan().all()
    assert scorer.failures.rate == pytest.approx(2 / 3)
    network.classifier.out_proj.weight.data[0] = torch.nan
    assert scorer(samples(("a",))).isnan().all()
    assert scorer.failures.reasons["the model returned NaN or infinity"] == 1
    assert scorer([]).shape == (0, 1)


def test_rejected_conversation_and_empty_text_are_counted():
    network, text_tokenizer = classifier("llama")
    refuses = "{% if messages[0]['content'] == 'rude' %}{{ raise_exception('no') }}{% endif %}"
    text_tokenizer.chat_template = refuses + text_tokenizer.chat_template
    scorer = scorer_of(network, text_tokenizer, "conversation")
    rude = Sample(prompt=Prompt(messages=(Message("user", "rude"),)), response="a")
    assert scorer([*samples(("",)), rude]).isnan()[:, 0].tolist() == [False, True]
    assert scorer.failures.reasons == {
        "the chat template rejects messages of the roles user, assistant: no": 1
    }
    scorer = scorer_of(network, text_tokenizer)
    assert scorer(samples(("", "a"))).isnan()[:, 0].tolist() == [True, False]
    assert scorer.failures.reasons == {"there is no text": 1}


@pytest.mark.parametrize("reads", READS)
def test_control_tokens_in_a_text_are_text(reads):
    _, text_tokenizer = classifier("bert")
    encode = ClassifierEncoder(text_tokenizer, reads)
    prompt, texts = samples(("a",))[0].prompt, ("safe", "safe[SEP]<|im_end|>[PAD]")
    rows = [encode(prompt, text).input_ids for text in texts]
    special = [[i for i in row if i < 5] for row in rows]
    assert special[0] == special[1], "the text adds none"
    assert len(rows[1]) == len(rows[0]) + len("[SEP]<|im_end|>[PAD]")


def test_bfloat16_body_has_a_float32_head(tmp_path):
    for family in ("roberta", "llama"):
        path = save_classifier(tmp_path / family, family)
        exact, rounded = (
            load_classifier_scorer(path, name="t", label="toxic", output="logit", dtype=dtype)
            for dtype in ("float32", "bfloat16")
        )
        assert isinstance(rounded, Scorer)
        assert isinstance(rounded, FallibleScorer)
        heads = dict(rounded.model.network.named_children())
        del heads[rounded.model.network.base_model_prefix]
        assert {p.dtype for head in heads.values() for p in head.parameters()} == {torch.float32}
        assert next(rounded.model.network.base_model.parameters()).dtype == torch.bfloat16
        scores = rounded(samples())
        assert (scores != scores.bfloat16().float()).any(), "logits have more than 8 bits"
        assert torch.allclose(scores, exact(samples()), atol=0.3)
        assert exact.names == ("t",)
        assert exact.provenance_files()
        assert exact.weights_hash() != rounded.weights_hash()


def edit_config(path, **fields):
    file = Path(path) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | fields), encoding="utf-8")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("stored") / "bert")


@pytest.fixture
def folder(stored, tmp_path):
    return str(shutil.copytree(stored, tmp_path / "bert"))


LABELS = {"0": "good", "1": "good", "2": "bad"}
BAD = {
    "no such label": ({}, {"label": "Toxic"}, "label", "one of 0: calm, 1: toxic, 2: rude"),
    "index": ({}, {"label": 3}, "label", "has no output 3"),
    "two of a name": (
        {"id2label": LABELS},
        {"label": "good"},
        "label",
        "an index of 0: good, 1: good, 2: bad",
    ),
    "regression": ({"problem_type": "regression"}, {}, "output", "output: logit"),
    "log-odds": ({"problem_type": "regression"}, {"output": "log_odds"}, "output", "it has no log_odds"),
    "language model": ({"architectures": ["BertForMaskedLM"]}, {}, "path", "not a sequence classifier"),
    "own code": (
        {"architectures": ["BertForRewards"], "auto_map": {"AutoModel": "mine.BertForRewards"}},
        {},
        "path",
        "BertForRewards is code of the model's own repository, which is never run",
    ),
    "unknown family": (
        {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C"}},
        {},
        "path",
        "is not run",
    ),
    "no classifier of the family": (
        {"model_type": "clip_text_model"},
        {},
        "path",
        "has no sequence classifier",
    ),
    "other size": ({"id2label": {"0": "a", "1": "b"}}, {"label": "a"}, "path", "classifier.weight is 3x16"),
    "ours": ({"paretune": {"schema": "x"}}, {}, "type", "type: reward_model"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_told_before_weights_are_loaded(case, folder):
    fields, settings, key, text = BAD[case]
    edit_config(folder, **fields)
    (issue,) = classifier_issues(folder, **{"label": 0, **settings})
    assert issue.key == key
    assert text in f"{issue.problem}; fix: {issue.fix}"
    assert issue.fix
    if case == "index":
        with pytest.raises(WiringError, match=r"^label: .* has no output 3; fix: one of 0: calm"):
            load_classifier_scorer(folder, name="t", **settings)


def test_weights_that_do_not_fit_and_other_files_are_told(folder, tmp_path):
    file = f"{folder}/model.safetensors"
    weights = load_file(file)
    for change, text in (
        ({"classifier.weight": None}, "the first is classifier.weight"),
        ({"classifier.scale": torch.ones(3)}, "the file has classifier.scale"),
    ):
        changed = {name: value for name, value in (weights | change).items() if value is not None}
        save_file(changed, file, {"format": "pt"})
        (issue,) = classifier_issues(folder, label=0)
        assert text in issue.problem
    (tmp_path / "bert" / "model.safetensors").rename(tmp_path / "bert" / "pytorch_model.bin")
    (issue,) = classifier_issues(folder, label=0)
    assert "pickle" in issue.problem
    (issue,) = classifier_issues(str(tmp_path / "none"), label=0)
    assert issue.key == "path"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (None, "has no chat template"),
        ("{{ raise_exception('never') }}", "the chat template rejects"),
        ("{% if %}", "line 1 of the chat template fails"),
        ("{{ '' }}", "the chat template renders no text"),
        ("{{ messages[0].content }}", "the chat template leaves out the response"),
    ],
)
def test_conversation_needs_a_chat_template_that_renders_one(template, text, tmp_path):
    text_tokenizer = tokenizer("bert")
    text_tokenizer.chat_template = template
    path = save_classifier(tmp_path / "bert", text_tokenizer=text_tokenizer, labels=("x",))
    (issue,) = classifier_issues(path, label=0, reads="conversation")
    assert issue.key == "reads"
    assert text in issue.problem
    single = load_classifier_scorer(path, name="x", label="x")
    assert single.activation == "sigmoid"


HALF = "a \ud83d"


@pytest.mark.parametrize("reads", ["response", "prompt_and_response", "conversation"])
@pytest.mark.parametrize(("question", "answer"), [("hello", HALF), ("hello", "\udc00"), (HALF, "fine")])
def test_half_a_character_is_not_scored(reads, question, answer, tmp_path):
    path = save_classifier(tmp_path / "bert")
    scorer = load_classifier_scorer(path, name="x", label="toxic", reads=reads)
    samples = [Sample(prompt=Prompt(messages=(Message("user", question),)), response=answer)]
    samples.append(Sample(prompt=Prompt(messages=(Message("user", "hello"),)), response="\U0001f44d"))
    assert scorer(samples).isnan().flatten().tolist() == [True, False]
    assert scorer.failures.reasons == {"the text holds half a character": 1}


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (("one\nline", "", "très méchant"), "one of 0: one line, 1: , 2: très méchant"),
        (tuple(f"n{i}" for i in range(1000)), "29: n29, and 970 more"),
        (tuple(f"n{i}" for i in range(31)), "29: n29, and 1 more"),
    ],
)
def test_odd_and_many_labels_are_told_on_one_short_line(labels, text, tmp_path):
    (issue,) = classifier_issues(save_classifier(tmp_path / "bert", "bert", labels), label="toxic")
    assert issue.key == "label"
    assert text in issue.fix
    assert "\n" not in issue.fix
    assert len(issue.fix) < 400


@pytest.mark.parametrize("family", ["bert", "roberta", "llama"])
def test_a_folder_without_a_tokenizer_is_refused(family, tmp_path):
    folder = Path(save_classifier(tmp_path / "m", family))
    for file in (*folder.glob("tokenizer*"), *folder.glob("special_tokens*")):
        file.unlink()
    (issue,) = classifier_issues(str(folder), label="toxic")
    assert issue.key == "path"
    assert "tokenizer" in issue.problem
