"""Weights that do not fit config.json, and files that are torn or missing, from names and headers alone."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from smallfiles import describe_model
from transformers import AutoConfig

from paretune.core.errors import DataError, first_line
from paretune.models.load import (
    ModelSpec,
    load_model_config,
    load_policy,
    load_tokenizer,
    stored_context_length,
)
from paretune.models.loading_report import incompleteness, loading_report
from paretune.models.lora import shared_network
from paretune.models.weight_files import require_full_precision, require_safetensors, stored_shapes
from support.families import FAMILIES
from support.tiny_models import tiny_config, tiny_model

FILE = Path("model/model.safetensors")
INDEX = Path("model/model.safetensors.index.json")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    describe_model()


def edit(path, **entries):
    Path(path).write_text(json.dumps({**json.loads(Path(path).read_text()), **entries}))


def report(task="CAUSAL_LM"):
    return loading_report(shared_network(load_model_config("model"), task), stored_shapes("model"))


def problem(task="CAUSAL_LM"):
    return incompleteness(report(task), load_model_config("model"))[0]


def change_weights(change):
    weights = load_file(FILE)
    change(weights)
    save_file(weights, FILE, metadata={"format": "pt"})


def split_weights():
    """Two shards with an index, in place of the one file."""
    weights = load_file(FILE)
    FILE.unlink()
    names = sorted(weights)
    shards = {"model-1.safetensors": names[:5], "model-2.safetensors": names[5:]}
    for shard, part in shards.items():
        save_file({name: weights[name] for name in part}, FILE.with_name(shard))
    INDEX.write_text(json.dumps({"weight_map": {name: s for s, part in shards.items() for name in part}}))


def test_a_complete_model_has_no_issue_whole_and_in_shards():
    assert problem() == ""
    split_weights()
    require_safetensors("model")
    assert problem() == ""


def test_a_model_that_config_json_cuts_is_an_error_at_the_door_and_on_loading():
    edit("model/config.json", num_hidden_layers=1)
    assert "9 weights that config.json has no place for, the first is model.layers.1." in problem()
    assert problem().endswith("it has 2 layers, and config.json 1")
    with pytest.raises(DataError, match="has no place for"):
        load_policy(ModelSpec(path="model"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda w: w.pop("model.norm.weight"), "no values for 1 weights, the first is model.norm.weight"),
        (lambda w: w.update({"model.layers.0.mlp.gate.weight": torch.ones(2)}), "has no place for"),
        (lambda w: w.update({"score.weight": torch.ones(1, 32)}), ""),
        (lambda w: w.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}), ""),
        (lambda w: w.update({"lm_head.weight": torch.ones(101, 32)}), ""),
    ],
    ids=["missing", "left over", "another head", "an old buffer", "a tied head"],
)
def test_tensors_that_are_missing_or_left_over(change, expected):
    change_weights(change)
    assert expected in problem()
    assert bool(problem()) == bool(expected)
    assert report().unused_heads == (("score.weight",) if "score.weight" in load_file(FILE) else ())


def test_a_policy_lacks_the_head_of_a_classifier():
    assert problem("SEQ_CLS") == "the file has no values for 1 weights, the first is score.weight"


def test_weights_saved_from_the_body_alone_are_recognized():
    model = tiny_model("gpt2", 101)
    model.config.save_pretrained("model")
    model.transformer.save_pretrained("model")
    assert problem() == ""
    edit("model/config.json", n_layer=1)
    assert "has no place for" in problem()


def read_weights():
    require_safetensors("model")
    return stored_shapes("model")


def damage(name):
    match name:
        case "cut":
            FILE.write_bytes(FILE.read_bytes()[:-10])
        case "extended":
            FILE.write_bytes(FILE.read_bytes() + b"0")
        case "shard":
            split_weights()
            FILE.with_name("model-2.safetensors").unlink()
        case "pointer":
            split_weights()
            FILE.with_name("model-2.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
        case "index":
            split_weights()
            INDEX.write_text('{"weight_map": [1]}')
        case "index entry":
            split_weights()
            index = json.loads(INDEX.read_text())["weight_map"]
            INDEX.write_text(json.dumps({"weight_map": index | {"model.extra": "model-1.safetensors"}}))
        case "name":
            FILE.rename("model/consolidated.safetensors")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cut", r"model\.safetensors is damaged: it has [\d,]+ bytes, and its header says"),
        ("extended", "is damaged: it has"),
        ("shard", r"1 of 2 files of weights are missing: model-2\.safetensors; fix: copy or download"),
        ("pointer", r"model-2\.safetensors: a pointer file of Git LFS"),
        ("index", r"index\.json is damaged: it does not map weights to files"),
        ("index entry", r"index\.json names weights that no file has: model\.extra"),
        ("name", "neither model.safetensors nor .*, only consolidated.safetensors; fix: convert"),
    ],
)
def test_files_that_are_torn_missing_or_misnamed(name, expected):
    damage(name)
    with pytest.raises(DataError, match=expected) as caught:
        read_weights()
    assert "\n" not in str(caught.value)


def test_files_that_transformers_does_not_read_are_not_looked_at():
    save_file({"layers.0.w": torch.ones(1)}, "model/consolidated.safetensors")
    assert problem() == ""


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.int8, "I8"),
        (torch.uint8, "U8"),
        (torch.bool, "BOOL"),
        (torch.float8_e4m3fn, "F8_E4M3"),
        (torch.int64, "I64"),
    ],
)
def test_packed_weights_need_a_quantization_config(dtype, name):
    def pack(weights):
        first = min(name for name in weights if name.endswith("weight"))
        weights[first] = torch.zeros(weights[first].shape, dtype=dtype)

    change_weights(pack)
    with pytest.raises(DataError, match=f"weight is stored as {name}, and config.json has no quantization"):
        load_policy(ModelSpec(path="model"))


def test_weights_of_16_bits_and_integer_buffers_pass():
    def change(weights):
        halves = {name: weight.half() for name, weight in weights.items()}
        weights.update(halves | {"h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8)})

    change_weights(change)
    require_full_precision("model")
    require_full_precision("owner/name")


def test_an_adapter_and_a_wrong_configuration_say_what_they_are():
    edit("model/config.json", hidden_size="wide")
    with pytest.raises(DataError, match=r"cannot load the model configuration .*hidden_size.*\)$") as caught:
        load_model_config("model")
    assert "\n" not in str(caught.value)
    Path("model/config.json").rename("model/adapter_config.json")
    with pytest.raises(DataError, match=r"model: this is a LoRA adapter, .*; fix: merge it into its base"):
        load_model_config("model")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Class validation error for validator 'v':\n    ValueError: odd", "validator 'v': ValueError: odd"),
        ("a:\n\n b\nc", "a: b"),
        ("a:", "a:"),
        ("a\nb", "a"),
        ("", "ValueError"),
    ],
)
def test_a_line_that_announces_a_reason_is_shown_with_it(text, expected):
    assert first_line(ValueError(text)).endswith(expected)


@pytest.mark.parametrize("length", [0, -1, 10**15])
def test_a_length_that_no_model_has_is_an_error(length):
    edit("model/config.json", max_position_embeddings=length)
    with pytest.raises(DataError, match=f"max_position_embeddings is {length}, which is no number of tokens"):
        stored_context_length("model")


@pytest.mark.parametrize("config", [{"kind": "tf-idf linear classifier"}, {"estimator": "svm", "classes": 2}])
def test_what_is_no_model_of_transformers_is_said(config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        DataError, match=r"it is no model of transformers; fix: .* use type: python for other"
    ):
        load_model_config(str(tmp_path))


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (
            {"model_type": "lama"},
            r"model_type 'lama' is not known to .* 5.*did you mean \"llama\"\?; fix",
        ),
        ({"model_type": "superlm9"}, r"'superlm9' is not known .*pip install -U transformers"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "c.C"}}, "code of its own is not run"),
        ({"model_type": None}, "config.json has no model_type"),
    ],
)
def test_an_unknown_family_is_named(entry, expected):
    edit("model/config.json", **entry)
    with pytest.raises(DataError, match=expected):
        load_model_config("model")


def test_a_missing_tokenizer_is_named():
    for file in Path("model").glob("*token*"):
        file.unlink()
    with pytest.raises(DataError, match=r"model: no tokenizer\.json, nor other .*; fix: write the tokenizer"):
        load_tokenizer("model")


def test_a_folder_is_read_once_until_its_files_change(monkeypatch):
    reads = []
    read = AutoConfig.from_pretrained
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *a, **k: reads.append(1) or read(*a, **k))
    first, second = load_model_config("model"), load_model_config("model")
    second.num_hidden_layers = 7
    assert load_model_config("model").num_hidden_layers == first.num_hidden_layers == 2
    assert len(reads) == 1
    assert shared_network(first, "CAUSAL_LM") is shared_network(load_model_config("model"), "CAUSAL_LM")
    assert load_tokenizer("model") is load_tokenizer("model")
    reads.clear()
    tiny_config("llama", 101, context=48).save_pretrained("model")
    assert load_model_config("model").max_position_embeddings == 48
    assert len(reads) == 1


ROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
LONGROPE = {"max_position_embeddings": 64, "original_max_position_embeddings": 16, "rope_parameters": ROPE}


def test_positions_that_change_with_the_longest_row_are_not_reached():
    """Phi-3 with 128K: transformers takes other frequencies for the whole batch once a row is longer."""
    from paretune.models.load import context_length

    family = next(family for family in FAMILIES if family.model_type == "phi3")
    model = family.model(**LONGROPE)
    assert context_length(model) == 16
    short, full, longer = torch.arange(3, 11), torch.arange(20, 36), torch.arange(20, 37)

    def beside(other):
        rows = torch.zeros(2, len(other), dtype=torch.long)
        rows[0, : len(short)], rows[1] = short, other
        mask = torch.zeros_like(rows, dtype=torch.bool)
        mask[0, : len(short)], mask[1] = True, True
        with torch.no_grad():
            return model(input_ids=rows, attention_mask=mask).logits[0, : len(short)]

    with torch.no_grad():
        alone = model(input_ids=short[None]).logits[0]
    assert torch.allclose(beside(full), alone, atol=1e-5)
    assert not torch.allclose(beside(longer), alone, atol=1e-2), "otherwise the limit is not needed any more"
