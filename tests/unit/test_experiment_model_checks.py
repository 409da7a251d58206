"""Models that do not fit together, or need what is not here, are reported before any weights are loaded."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from smallfiles import describe_model, write
from transformers import AutoTokenizer, Qwen2Config

from paretune.config import load_config
from paretune.core.errors import ConfigError, DataError, MissingDependencyError, ResourceError
from paretune.experiment.data import load_data
from paretune.experiment.preflight import model_config_issues, model_descriptions
from paretune.experiment.resolved import resolve
from paretune.models.save import save_model
from support.tiny_models import tiny_config, tiny_model, tiny_tokenizer

SIZE = 101
RECIPE = {
    "name": "r",
    "data": {"prompts": {"a": {"file": "a.jsonl"}}, "test_prompts": {"a": {"file": "test.jsonl"}}},
    "policy": {"path": "model"},
    "reward": {
        "objectives": {"safety": {}},
        "ratings": {"r": {"file": "rated.jsonl", "labels": {"safety": "safe"}}},
        "holdout_fraction": 0.5,
    },
    "objectives": {"safety": {}},
    "algorithm": {"name": "grpo", "max_new_tokens": 8},
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    describe_model()
    write("a.jsonl", [{"prompt": f"train {i}"} for i in range(4)])
    write("test.jsonl", [{"prompt": "test"}])
    write("rated.jsonl", [{"prompt": f"p {i}", "response": "reply", "safe": i} for i in range(12)])


def run(*overrides):
    Path("r.yaml").write_text(json.dumps(RECIPE))
    return resolve(load_config("r.yaml", overrides))


def edit(path, **entries):
    config = json.loads(Path(path).read_text()) if Path(path).exists() else {}
    Path(path).write_text(json.dumps({**config, **entries}))


def issue(*overrides):
    (line,) = model_config_issues(run(*overrides))
    assert line.startswith("r.yaml:1: ") or line.startswith("(override)")
    return line


def add_tokens(folder, *tokens):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(tokens))
    tokenizer.save_pretrained(folder)


def test_a_prompt_with_a_token_that_has_no_embedding_is_reported_with_its_line():
    add_tokens("model", "<tool>", "<unused>")
    assert load_data(run()), "unused tokens are no mistake"
    assert any("102" not in line and "rows that use <tool>, <unused>" in line for line in notes())
    write("a.jsonl", [{"prompt": "x"}, {"prompt": "what is <tool> for"}])
    with pytest.raises(DataError) as caught:
        load_data(run())
    (line,) = str(caught.value).splitlines()
    assert line.startswith('a.jsonl:2: prompt: uses the token "<tool>" (id 101), and the embedding')
    assert "101 rows; fix: call model.resize_token_embeddings" in line


def notes(*overrides):
    return model_descriptions(run(*overrides))


def test_demonstrations_and_stored_responses_are_checked_as_prompts_are():
    add_tokens("model", "<tool>")
    write("demo.jsonl", [{"prompt": "x", "response": "a <tool>"}])
    with pytest.raises(DataError, match=r"^demo\.jsonl:1: .*<tool>"):
        load_data(run("policy.sft={demonstrations: {d: {file: demo.jsonl}}}"))


def test_ratings_are_not_since_a_reward_model_gets_rows_for_its_tokenizer():
    add_tokens("model", "<tool>")
    write("rated.jsonl", [{"prompt": f"p {i}", "response": "a <tool>", "safe": i} for i in range(12)])
    assert load_data(run())


def test_a_reward_model_does_not_score_a_token_without_embedding():
    from paretune.models.load import as_policy_model
    from paretune.reward.checkpoint import reward_model_from_lm
    from paretune.reward.model import RewardModel

    lm = as_policy_model(tiny_model("llama", SIZE), tiny_tokenizer())
    model = reward_model_from_lm(lm, ("a",), [1.0], [0.0])
    assert isinstance(model, RewardModel)
    scores = model.score_sequences([[3, 4], [3, SIZE + 1], [5]])
    assert scores[:, 0].isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("file", "entry", "expected"),
    [
        ("generation_config.json", {"eos_token_id": [1, 900]}, "eos_token_id 900 is outside"),
        ("config.json", {"eos_token_id": -1}, "config.json: eos_token_id -1 is outside the 101 rows"),
        ("config.json", {"pad_token_id": 101}, "config.json: pad_token_id 101 is outside the 101 rows"),
    ],
)  # fmt: skip
def test_stop_and_padding_ids_outside_the_embedding(file, entry, expected):
    edit(f"model/{file}", **entry)
    assert expected in issue()


def test_an_added_eos_token_needs_an_embedding_and_an_added_padding_token_does_not():
    tokenizer = AutoTokenizer.from_pretrained("model")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained("model")
    assert model_config_issues(run()) == []
    tokenizer.add_special_tokens({"eos_token": "[END]"})
    tokenizer.save_pretrained("model")
    assert "tokenizer: the id of eos_token 102 is outside the 101 rows" in issue()


def test_stored_sizes_are_compared_with_the_configuration():
    save_model(tiny_model("llama", SIZE), tiny_tokenizer(), Path("model"))
    assert model_config_issues(run()) == []
    edit("model/config.json", vocab_size=103)
    line = issue()
    assert "model.embed_tokens.weight is 101x32 in the file and 103x32 in config.json" in line
    assert line.endswith("fix: write vocab_size: 101 in config.json")
    edit("model/config.json", vocab_size=101, intermediate_size=48)
    assert "the same checkpoint" in issue()


def test_an_output_layer_and_a_position_table_of_another_size():
    save_model(tiny_model("llama", SIZE, tie_word_embeddings=False), tiny_tokenizer(), Path("model"))
    weights = load_file("model/model.safetensors")
    save_file(weights | {"lm_head.weight": torch.zeros(99, 32)}, "model/model.safetensors")
    assert "lm_head.weight is 99x32 in the file" in issue()
    save_model(tiny_model("gpt2", SIZE, context=64), tiny_tokenizer(), Path("other"))
    edit("other/config.json", n_positions=128)
    assert "transformer.wpe.weight is 64x32 in the file and 128x32" in issue("policy.path=other")


def test_damaged_and_pointer_files_are_named(tmp_path):
    Path("model/model.safetensors").write_bytes(b"torn")
    assert "model.safetensors is damaged: it has no safetensors header" in issue()
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 132\n"
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        describe_model()
        Path("model", name).write_text(pointer)
        with pytest.raises(ConfigError) as caught:
            model_config_issues(run())
        assert f"policy.path: model: {name}: a pointer file of Git LFS" in str(caught.value)
        assert "git lfs pull" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_pointer_file_instead_of_data_is_named():
    describe_model()
    for name in ("a.jsonl", "test.jsonl"):
        Path(name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 132\n")
    with pytest.raises(DataError) as caught:
        load_data(run())
    assert [line.partition(";")[0] for line in str(caught.value).splitlines()] == [
        "a.jsonl: a pointer file of Git LFS, not the file itself",
        "test.jsonl: a pointer file of Git LFS, not the file itself",
    ]


QUANTIZED = {
    "bitsandbytes": ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes"),
    "gptq": ({"bits": 4, "group_size": 128}, "optimum gptqmodel"),
    "awq": ({"bits": 4, "group_size": 128, "zero_point": True}, "gptqmodel"),
    "compressed-tensors": ({"format": "pack-quantized", "config_groups": {}}, "compressed-tensors"),
    "quanto": ({"weights": "int8"}, "optimum-quanto"),
}


@pytest.mark.parametrize("method", QUANTIZED)
def test_a_quantized_checkpoint_names_the_package_that_it_needs(method, monkeypatch):
    settings, package = QUANTIZED[method]
    for name in ("bitsandbytes", "optimum", "gptqmodel", "compressed_tensors", "optimum_quanto"):
        for module in ("bnb_4bit", "gptq", "awq", "compressed_tensors", "quanto"):
            check = f"transformers.quantizers.quantizer_{module}.is_{name}_available"
            monkeypatch.setattr(check, lambda *_: False, raising=False)
    if method == "compressed-tensors":
        monkeypatch.setitem(__import__("sys").modules, "compressed_tensors", None)
    describe_model("packed")
    edit("packed/config.json", quantization_config={"quant_method": method, **settings})
    for override in ("policy.path=packed", "reward.init_from=packed", "judge={path: packed}"):
        with pytest.raises(MissingDependencyError) as caught:
            model_config_issues(run(override, "policy.lora={}", "reward.lora={}"))
        assert caught.value.exit_code == 3
        assert f"packed: its weights are quantized ({method}), which needs the package" in str(caught.value)
        assert str(caught.value).endswith(f"; fix: pip install -U {package}")


def test_an_unknown_quantization_is_a_missing_resource():
    edit("model/config.json", quantization_config={"quant_method": "own"})
    with pytest.raises(ResourceError, match="quantized \\(own\\), which cannot be loaded on cpu"):
        model_config_issues(run("policy.lora={}", "reward.lora={}"))


def test_quantized_weights_are_not_trained(monkeypatch):
    edit("model/config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    monkeypatch.setattr("paretune.experiment.model_checks.require_quantization_backend", lambda *_: True)
    lora = ("policy.lora={}", "reward.lora={}")
    assert model_config_issues(run(*lora)) == []
    assert any("quantized (bitsandbytes) and stay frozen" in line for line in notes(*lora))
    lines = model_config_issues(run())
    assert [line.split(": ")[1] for line in lines] == ["reward", "policy"]
    assert all("are quantized (bitsandbytes) and cannot be trained; fix: " in line for line in lines)
    write("demo.jsonl", [{"prompt": "x", "response": "a"}])
    (line,) = model_config_issues(run(*lora, "policy.sft={demonstrations: {d: {file: demo.jsonl}}}"))
    assert ": policy.sft: " in line
    monkeypatch.setattr("paretune.experiment.model_checks.require_quantization_backend", lambda *_: False)
    assert "no gradients pass through weights" in issue(*lora)


@pytest.mark.parametrize(("content", "package"), [(b"\x0a\x05", "sentencepiece"), (b"YQ== 0\n", "tiktoken")])
def test_a_tokenizer_that_needs_a_package_names_it(content, package):
    pytest.importorskip("tokenizers")
    for module in ("sentencepiece", "tiktoken"):
        if __import__("importlib.util").util.find_spec(module):
            pytest.skip(f"{module} is installed")
    for file in Path("model").glob("*token*"):
        file.unlink()
    Path("model/tokenizer.model").write_bytes(content)
    with pytest.raises(MissingDependencyError, match=rf"policy\.path: model: needs the package {package}"):
        model_config_issues(run())


def test_a_sliding_window_is_told():
    Qwen2Config(
        vocab_size=SIZE, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=96, use_sliding_window=True, sliding_window=32,
        max_window_layers=3, eos_token_id=1, pad_token_id=0,
    ).save_pretrained("model")  # fmt: skip
    assert "policy: 1 of 4 layers read the last 32 tokens only (sliding window)" in notes()
    tiny_config("mistral", SIZE, context=96, sliding_window=16).save_pretrained("model")
    assert "policy: all layers read the last 16 tokens only (sliding window)" in notes()
    tiny_config("mistral", SIZE, context=96, sliding_window=None).save_pretrained("model")
    assert not any("sliding" in line for line in notes())


@pytest.mark.parametrize(
    ("file", "entry", "expected"),
    [
        ("config.json", {"num_hidden_layers": 1}, "it has 2 layers, and config.json 1"),
        ("config.json", {"num_hidden_layers": 3}, "no values for 9 weights, the first is model.layers.2."),
        ("config.json", {"max_position_embeddings": 0}, "max_position_embeddings is 0, which is no number"),
    ],
)
def test_a_configuration_of_another_model_is_reported(file, entry, expected):
    edit(f"model/{file}", **entry)
    assert expected in issue()


def test_an_adapter_and_packed_weights_are_reported_at_the_door():
    weights = load_file("model/model.safetensors")
    first = min(name for name in weights if name.endswith("weight"))
    packed = torch.zeros(weights[first].shape, dtype=torch.int8)
    save_file(weights | {first: packed}, "model/model.safetensors")
    assert f"{first} is stored as I8, and config.json has no quantization_config; fix: take the" in issue()
    Path("model/config.json").rename("model/adapter_config.json")
    with pytest.raises(ConfigError, match=r'policy.path: "model" is a LoRA adapter, .*; fix: merge it into'):
        run()


def test_a_model_without_any_stop_token_is_reported():
    tokenizer = AutoTokenizer.from_pretrained("model")
    tokenizer.eos_token, tokenizer.chat_template = None, None
    tokenizer.save_pretrained("model")
    Path("model/chat_template.jinja").unlink(missing_ok=True)
    edit("model/config.json", eos_token_id=None)
    assert "model: no EOS token is defined: responses would have no end; fix: set eos_token" in issue()
    edit("model/generation_config.json", eos_token_id=1)
    assert model_config_issues(run()) == []


def test_a_context_that_is_cut_and_a_head_that_is_not_used_are_told():
    weights = load_file("model/model.safetensors")
    save_file(weights | {"score.weight": torch.zeros(2, 32)}, "model/model.safetensors")
    assert "policy: the file has a head for another task, which is not used: score.weight" in notes()
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
    edit("model/config.json", rope_parameters=rope | {"original_max_position_embeddings": 48})
    assert any("policy: reads 48 of the 96 tokens in config.json" in line for line in notes())
