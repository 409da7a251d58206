"""Scores do not depend on the batch, and transformers loads a saved reward model."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from paretune.core.errors import DataError, WiringError
from paretune.data.records import Message, Prompt, Sample
from paretune.models.forward.length_batching import batches_by_length, pad_sequences
from paretune.models.load import as_policy_model, save_model
from paretune.models.lora import LoraSpec
from paretune.reward.checkpoint import (
    PAD_TOKEN,
    RewardModelSpec,
    load_reward_model,
    new_reward_model,
    read_objectives,
    reward_model_from_lm,
    save_reward_model,
)
from paretune.reward.model import RewardModelScorer
from paretune.reward.scorers import Scorer
from support.tiny_models import KINDS, tiny_model, tiny_tokenizer

NAMES = ("politeness", "safety", "depth")
TEXTS = ("hi", "a much longer answer with many more words in it", "No.", "", "right, then: 1, 2, 3")


def policy_model(kind="llama", **size):
    tokenizer = tiny_tokenizer()
    return as_policy_model(tiny_model(kind, len(tokenizer), initial=0.3, **size), tokenizer)


def reward_model(kind="llama", *, lora=None, **size):
    model = reward_model_from_lm(
        policy_model(kind, **size), NAMES, (2.0, 1.0, 0.5), (1.0, 0.0, -1.0), lora=lora, seed=3
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def prompt(text="how are you?"):
    return Prompt(messages=(Message("user", text),))


def rows_of(model):
    return [model.encode(prompt("x" * (i + 1)), text) for i, text in enumerate(TEXTS)]


@pytest.mark.parametrize("kind", KINDS)
def test_score_is_independent_of_batch_and_padding(kind):
    model = reward_model(kind)
    rows = rows_of(model)
    batched = model.score_sequences(rows)
    single = torch.cat([model.score_sequences([row]) for row in rows])
    assert torch.allclose(single, batched, atol=1e-5, rtol=0)
    assert batched.std(0).min() > 0.01, "the scores must differ for this test to mean anything"
    longest = max(map(len, rows)) + 7
    for pad in (0, 1, 50):
        for left in (False, True):
            ids, attend = [], []
            for row in rows:
                blank = [pad] * (longest - len(row))
                ids.append(blank + row if left else row + blank)
                mark, off = [True] * len(row), [False] * len(blank)
                attend.append(off + mark if left else mark + off)
            with torch.no_grad():
                logits = model(torch.tensor(ids), torch.tensor(attend))
            assert torch.allclose(model.to_label_units(logits), batched, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_auto_class_logits_plus_offset_are_scores_and_id2label_has_the_names(kind, tmp_path):
    model = reward_model(kind)
    save_reward_model(model, tmp_path / "rm")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "rm")
    assert plain.config.id2label == dict(enumerate(NAMES))
    rows = rows_of(model)
    padded = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    with torch.no_grad():
        theirs = plain(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]).logits
        ours = model(*pad_sequences(rows))
    assert torch.allclose(theirs, ours * torch.tensor(model.scale), atol=1e-5, rtol=0)
    entry = plain.config.paretune
    assert torch.allclose(
        theirs + torch.tensor(entry["offset"]), model.score_sequences(rows), atol=1e-5, rtol=0
    )


def test_readme_example_gives_the_scores(tmp_path, capsys):
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    (code,) = (block for block in blocks if "AutoModelForSequenceClassification" in block)
    model = reward_model()
    save_reward_model(model, tmp_path / "rm")
    assert code.count('"runs/mine/reward/model"') == 1
    names = {}
    exec(compile(code.replace("runs/mine/reward/model", str(tmp_path / "rm")), "README.md", "exec"), names)
    question = prompt(names["question"][0]["content"])
    (scores,) = RewardModelScorer(load_reward_model(str(tmp_path / "rm")))(
        [Sample(prompt=question, response=names["answer"])]
    )
    assert torch.allclose(names["labels"], scores, atol=1e-5, rtol=0)
    output = capsys.readouterr().out
    assert all(name in output for name in NAMES)


def test_saving_leaves_the_weights_in_memory_unchanged(tmp_path):
    for lora in (None, LoraSpec(r=4, alpha=8)):
        model = reward_model(lora=lora)
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        save_reward_model(model, tmp_path / "rm")
        assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def test_other_schema_is_rejected(tmp_path):
    save_reward_model(reward_model(), tmp_path / "rm")
    path = tmp_path / "rm" / "config.json"
    path.write_text(path.read_text().replace("paretune/reward/3", "paretune/reward/2"))
    with pytest.raises(DataError, match="expected paretune/reward/3; fix:"):
        load_reward_model(str(tmp_path / "rm"))


def test_padding_token_equal_to_eos_is_replaced(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    policy = as_policy_model(tiny_model("gpt2", len(tokenizer), pad=1, initial=0.3), tokenizer)
    model = reward_model_from_lm(policy, ("a",), (1.0,), (0.0,))
    torch.nn.init.normal_(model.network.score.weight)
    save_reward_model(model, tmp_path / "rm")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm").eval()
    saved = AutoTokenizer.from_pretrained(tmp_path / "rm")
    assert saved.pad_token == PAD_TOKEN
    assert policy.tokenizer.pad_token == policy.tokenizer.eos_token, (
        "the policy's tokenizer is not ours to change"
    )
    rows = rows_of(model)
    padded = saved.pad({"input_ids": rows}, return_tensors="pt")
    with torch.no_grad():
        theirs = plain(**padded).logits
    assert torch.allclose(theirs, model.score_sequences(rows), atol=1e-5)


def test_loaded_model_equals_the_saved_one(tmp_path):
    model = reward_model()
    model.provenance = {"sha256": "0" * 64}
    save_reward_model(model, tmp_path / "rm")
    again = load_reward_model(str(tmp_path / "rm"))
    assert (again.objectives, again.scale, again.offset, again.eos_id) == (
        NAMES,
        model.scale,
        model.offset,
        model.eos_id,
    )
    assert again.provenance == model.provenance
    # The heads are written times their scales and divided by them when read: the last bit may differ.
    assert torch.allclose(
        again.score_sequences(rows_of(model)), model.score_sequences(rows_of(model)), atol=1e-6, rtol=0
    )
    assert read_objectives(str(tmp_path / "rm")) == NAMES


def test_lora_model_is_merged_on_saving(tmp_path):
    model = reward_model(lora=LoraSpec(r=4, alpha=8))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any("lora" in name for name in trained)
    assert any("score" in name for name in trained)
    assert all("lora" in name or "score" in name for name in trained)
    save_reward_model(model, tmp_path / "rm")
    again = load_reward_model(str(tmp_path / "rm"))
    assert torch.allclose(
        again.score_sequences(rows_of(model)), model.score_sequences(rows_of(model)), atol=1e-4
    )


def test_new_model_predicts_the_mean_label_with_the_body_of_the_policy(tmp_path):
    policy = policy_model()
    save_model(policy.model, policy.tokenizer, tmp_path / "policy")
    spec = RewardModelSpec(path=str(tmp_path / "policy"), objectives=NAMES)
    model = new_reward_model(spec, (2.0, 1.0, 0.5), (1.0, 0.0, -1.0))
    assert torch.equal(model.score_sequences(rows_of(model)), torch.tensor([[1.0, 0.0, -1.0]] * len(TEXTS)))
    mine, theirs = model.network.base_model.state_dict(), policy.model.base_model.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_construction_leaves_the_global_generator_unchanged():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    reward_model()
    assert torch.equal(torch.rand(3), expected)


def test_scorer_scores_text():
    model = reward_model()
    scorer = RewardModelScorer(model, max_tokens_per_pass=64)
    assert isinstance(scorer, Scorer)
    assert scorer.names == NAMES
    samples = [Sample(prompt=prompt("x" * (i + 1)), response=text) for i, text in enumerate(TEXTS)]
    assert torch.allclose(scorer(samples), model.score_sequences(rows_of(model)), atol=1e-5)
    assert scorer([]).shape == (0, 3)


def test_text_longer_than_the_context_is_unscored():
    model = reward_model(context=64)
    samples = [Sample(prompt=prompt(), response="a" * 80), Sample(prompt=prompt(), response="b")]
    scores = RewardModelScorer(model)(samples)
    assert scores[0].isnan().all()
    assert not scores[1].isnan().any()


def test_bfloat16_body_has_float32_heads():
    policy = policy_model()
    policy.model.to(torch.bfloat16)
    model = reward_model_from_lm(policy, ("a",), (1.0,), (0.0,))
    assert model.network.score.weight.dtype == torch.float32
    assert model(*pad_sequences(rows_of(model))).dtype == torch.float32


def test_other_chat_template_is_rejected(tmp_path):
    save_reward_model(reward_model(), tmp_path / "rm")
    for path in (tmp_path / "rm").glob("*"):
        if path.name == "chat_template.jinja":
            path.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(DataError, match="chat template"):
        load_reward_model(str(tmp_path / "rm"))


def test_foreign_classifier_scores_with_its_logits(tmp_path):
    model = reward_model()
    save_reward_model(model, tmp_path / "rm")
    config = json.loads((tmp_path / "rm" / "config.json").read_text())
    del config["paretune"]
    (tmp_path / "rm" / "config.json").write_text(json.dumps(config))
    foreign = load_reward_model(str(tmp_path / "rm"))
    assert foreign.scale == (1.0, 1.0, 1.0)
    with torch.no_grad():
        logits = model(*pad_sequences(rows_of(model))) * torch.tensor(model.scale)
    assert torch.allclose(foreign.score_sequences(rows_of(model)), logits, atol=1e-5)


@pytest.mark.parametrize("names", [(), ("a", "a")])
def test_missing_or_duplicate_objectives_are_rejected(names):
    with pytest.raises(WiringError, match="different objectives"):
        reward_model_from_lm(policy_model(), names, (1.0,) * len(names), (0.0,) * len(names))


def test_length_batches_hold_every_row_once_within_the_token_limit():
    lengths = [5, 90, 7, 7, 30, 1, 200]
    parts = list(batches_by_length(lengths, 100))
    assert sorted(i for part in parts for i in part) == list(range(7))
    assert all(len(part) == 1 or len(part) * max(lengths[i] for i in part) <= 100 for part in parts)
    assert list(batches_by_length([], 100)) == []
    assert list(batches_by_length([9, 9, 9], 36, [2, 2, 1])) == [[0, 1], [2]]
    assert list(batches_by_length([100, 10, 9], 600)) == [[0], [1, 2]], "a row is not padded tenfold"


def test_new_padding_embedding_is_zero_and_leaves_the_generator_unchanged():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    policy = as_policy_model(tiny_model("gpt2", len(tokenizer), pad=1, initial=0.3), tokenizer)
    before = torch.random.get_rng_state()
    model = reward_model_from_lm(policy, ("a",), (1.0,), (0.0,))
    assert torch.equal(torch.random.get_rng_state(), before)
    weight = model.network.get_input_embeddings().weight
    assert len(weight) == len(tokenizer) + 1
    assert not weight[-1].any()
    assert weight[:-1].any(-1).all()


def test_model_is_loaded_in_its_dtype_and_on_its_device(tmp_path):
    save_reward_model(reward_model(), tmp_path / "rm")
    stored = load_reward_model(str(tmp_path / "rm"), dtype="bfloat16", device="meta")
    assert {p.device.type for p in stored.parameters()} == {"meta"}
    assert stored.network.base_model.embed_tokens.weight.dtype is torch.bfloat16
