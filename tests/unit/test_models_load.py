"""Loading and saving: folders are interchangeable with plain transformers, and bad folders are errors."""

import json
import os
import stat
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from paretune.core.errors import DataError, ResourceError
from paretune.models.forward.logprobs import compute_logprobs
from paretune.models.load import (
    ModelSpec,
    as_policy_model,
    context_length,
    eos_ids_of,
    is_local_folder,
    load_policy,
    load_tokenizer,
    parameter_hash,
    resolve_device,
    save_model,
)
from paretune.models.lora import LoraSpec, add_lora
from shared import shared
from support.tiny_models import KINDS, tiny_model, tiny_tokenizer
from tinyrows import rows

SIZE = 101


@pytest.fixture
def folder(tmp_path):
    save_model(tiny_model("llama", SIZE, initial=0.3), tiny_tokenizer(), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("kind", KINDS)
def test_saved_models_load_in_plain_transformers_and_here(kind, tmp_path):
    model = tiny_model(kind, SIZE, initial=0.3)
    save_model(model, tiny_tokenizer(), tmp_path / "m")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    ours = load_policy(ModelSpec(path=str(tmp_path / "m")))
    assert parameter_hash(plain) == parameter_hash(ours.model) == parameter_hash(model)
    assert AutoTokenizer.from_pretrained(tmp_path / "m").get_vocab() == ours.tokenizer.get_vocab()
    assert not ours.model.training
    assert (ours.eos_ids, ours.pad_id) == ((1,), 0)
    assert context_length(ours.model) == 256
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


def test_a_model_with_an_adapter_is_saved_merged_and_as_adapter(tmp_path):
    from peft import PeftModel

    adapted = add_lora(tiny_model("qwen2", SIZE, initial=0.3), LoraSpec(r=4), seed=0)
    with torch.no_grad():
        for p in adapted.parameters():
            if p.requires_grad:
                p.add_(0.05)
    before = parameter_hash(adapted)
    input_ids, attention_mask, response_mask = rows()
    expected = compute_logprobs(adapted, input_ids, attention_mask, response_mask).detach()
    save_model(adapted, tiny_tokenizer(), tmp_path / "m")
    assert parameter_hash(adapted) == before
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert torch.allclose(
        compute_logprobs(plain, input_ids, attention_mask, response_mask).detach(), expected, atol=1e-5
    )
    with_adapter = PeftModel.from_pretrained(
        tiny_model("qwen2", SIZE, initial=0.3), tmp_path / "m" / "adapter"
    )
    assert torch.equal(
        compute_logprobs(with_adapter, input_ids, attention_mask, response_mask).detach(), expected
    )


def test_lora_on_bfloat16_merges_in_float32(tmp_path):
    adapted = add_lora(tiny_model("llama", SIZE).to(torch.bfloat16), LoraSpec(r=2, alpha=2), seed=0)
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.fill_(1e-6)
    save_model(adapted, tiny_tokenizer(), tmp_path / "m")
    plain = load_policy(ModelSpec(path=str(tmp_path / "m"))).model
    base = adapted.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight
    merged = plain.model.layers[0].self_attn.q_proj.weight
    assert merged.dtype == torch.float32
    # The update is below the resolution of bfloat16 at the size of these weights.
    assert 0 < float((merged - base.float()).abs().max().detach()) < 1e-5


def test_precision_and_adapter_are_as_specified(folder):
    policy = load_policy(ModelSpec(path=str(folder), dtype="bfloat16", lora=LoraSpec(r=2)), seed=1)
    types = {(p.requires_grad, p.dtype) for p in policy.model.parameters()}
    assert types == {(True, torch.float32), (False, torch.bfloat16)}


def load_error_of(path):
    with pytest.raises(DataError) as caught:
        load_policy(ModelSpec(path=str(path)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_folder_is_an_error_without_network_access(tmp_path):
    assert "no such folder" in load_error_of(tmp_path / "absent")
    assert "no such folder" in load_error_of("../models/absent")
    assert not is_local_folder("owner/name")
    assert is_local_folder(str(tmp_path))


def test_pickles_are_never_loaded(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "only pytorch_model.bin, a pickle" in load_error_of(folder)


def test_damaged_and_incomplete_folders_are_errors(folder):
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({k: v for k, v in weights.items() if k != name}, folder / "model.safetensors")
    assert f"no values for 1 weights, the first is {name}" in load_error_of(folder)
    save_file(weights | {name: torch.zeros(2, 2)}, folder / "model.safetensors")
    assert "cannot load the model" in load_error_of(folder)
    (folder / "model.safetensors").write_bytes(b"torn")
    assert "model.safetensors is damaged" in load_error_of(folder)
    (folder / "config.json").write_text("{")
    load_error_of(folder)
    (folder / "tokenizer.json").unlink()
    load_error_of(folder)


def test_remote_code_is_never_run(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "code.Own", "AutoConfig": "code.C"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('ran')")
    load_error_of(folder)


def test_the_eos_token_of_the_chat_template_comes_first():
    model, tokenizer = tiny_model("llama", SIZE), tiny_tokenizer()
    model.generation_config.eos_token_id = [0, 5, 1]
    assert eos_ids_of(model, tokenizer) == (1, 0, 5)
    tokenizer.chat_template = None
    assert eos_ids_of(model, tokenizer) == (0, 5, 1)
    model.generation_config.eos_token_id = None
    assert eos_ids_of(model, tokenizer) == (1,)
    model.config.eos_token_id = tokenizer.eos_token = None
    with pytest.raises(DataError, match="no EOS token is defined"):
        eos_ids_of(model, tokenizer)


def test_a_tokenizer_without_padding_token_pads_with_eos():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    policy = as_policy_model(tiny_model("gpt2", SIZE), tokenizer)
    assert policy.pad_id == policy.eos_ids[0] == 1


def test_the_parameter_hash_covers_every_byte():
    model = tiny_model("llama", SIZE)
    before = parameter_hash(model)
    with torch.no_grad():
        next(iter(model.parameters()))[3, 3] += 1e-7
    assert parameter_hash(model) != before


def test_a_real_model_loads():
    policy = load_policy(ModelSpec(path=str(shared("models", "dialogue-7m"))))
    assert policy.eos_ids == (2, 0)
    assert policy.pad_id == 0
    assert context_length(policy.model) == 1024
    assert sum(p.numel() for p in policy.model.parameters()) == 6_951_168
    stories = load_policy(ModelSpec(path=str(shared("models", "stories260K"))))
    assert stories.eos_ids == (1, 2)


def test_a_folder_with_a_tokenizer_only_loads():
    assert len(load_tokenizer(str(shared("models", "gpt2-tokenizer")))) == 50_257


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_base_model_with_a_loaded_adapter_is_the_trained_policy(dtype, tmp_path):
    save_model(tiny_model("llama", SIZE, initial=0.3), tiny_tokenizer(), tmp_path / "base")
    adapted = load_policy(ModelSpec(path=str(tmp_path / "base"), dtype=dtype, lora=LoraSpec(r=4))).model
    with torch.no_grad():
        for p in adapted.parameters():
            if p.requires_grad:
                p.add_(0.1)
    save_model(adapted, tiny_tokenizer(), tmp_path / "m")
    adapter = str(tmp_path / "m" / "adapter")
    loaded = load_policy(ModelSpec(path=str(tmp_path / "base"), dtype=dtype, adapter_path=adapter)).model
    input_ids = torch.arange(20)[None] % SIZE
    mask = torch.ones_like(input_ids, dtype=torch.bool)
    with torch.no_grad():
        one, two = (compute_logprobs(model, input_ids, mask, mask) for model in (adapted, loaded))
    assert torch.equal(one, two)
    assert not any(p.requires_grad for p in loaded.parameters())


def test_adapters_load_without_warnings(folder, tmp_path):
    adapted = load_policy(ModelSpec(path=str(folder), lora=LoraSpec(r=2))).model
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_model(adapted, tiny_tokenizer(), tmp_path / "m")
        load_policy(ModelSpec(path=str(folder), lora=LoraSpec(r=2)))
        load_policy(ModelSpec(path=str(folder), adapter_path=str(tmp_path / "m" / "adapter")))


@pytest.mark.parametrize("mask", [0o022, 0o007, 0o077])
def test_saved_files_have_the_default_mode_of_new_files(mask, tmp_path):
    before = os.umask(mask)
    try:
        save_model(
            add_lora(tiny_model("llama", SIZE), LoraSpec(r=2), seed=0), tiny_tokenizer(), tmp_path / "m"
        )
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "m").rglob("*") if path.is_file()]
    assert {path.name for path in files} > {"model.safetensors", "adapter_model.safetensors", "config.json"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~mask}


def test_a_missing_adapter_is_an_error(folder):
    with pytest.raises(DataError, match="no adapter_model"):
        load_policy(ModelSpec(path=str(folder), adapter_path=str(folder)))


def test_all_files_are_synced_before_the_folder_is_renamed(tmp_path, monkeypatch):
    synced, real = [], os.fsync

    def fsync(handle):
        synced.append(Path(f"/proc/self/fd/{handle}").readlink())
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    draft = tmp_path / "m.tmp"
    for _ in range(2):
        synced.clear()
        save_model(
            add_lora(tiny_model("llama", SIZE), LoraSpec(r=2), seed=0), tiny_tokenizer(), tmp_path / "m"
        )
        names = [path.relative_to(tmp_path / "m") for path in (tmp_path / "m").rglob("*")]
        assert len(names) > 5
        assert {draft / name for name in names} <= set(synced)
        assert synced[-2:] == [draft, tmp_path]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_device_names_are_resolved(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ResourceError, match=r"run\.device: cuda"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cuda")


def test_a_policy_is_moved_to_its_device(folder):
    assert load_policy(ModelSpec(path=str(folder), device="meta")).model.device.type == "meta"
