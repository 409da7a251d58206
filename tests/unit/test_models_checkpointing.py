"""Gradient checkpointing: recomputed or offloaded activations give the same gradients with less memory."""

from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from transformers import CohereConfig, Gemma2Config, GPTNeoXConfig

import paretune.models.forward.checkpointing as checkpointing
from paretune.core.errors import WiringError
from paretune.models.critic import critic_from_policy
from paretune.models.forward.checkpointing import checkpointable_layers, use_gradient_checkpointing
from paretune.models.forward.logprobs import compute_logprobs, compute_values, hidden_states, supports_packing
from paretune.models.lora import AdapterDisabledModel, LoraSpec, add_lora
from support.tiny_models import random_model, tiny_config, tiny_model
from tinyrows import SMALL as TWO_LAYERS
from tinyrows import VOCAB

SMALL = TWO_LAYERS | {"num_key_value_heads": 2}
GEMMA = Gemma2Config(**SMALL, head_dim=8, sliding_window=4, attn_logit_softcapping=2.0)


def tiny(kind):
    return tiny_model(kind, VOCAB, initial=0.3)


def with_adapter():
    """Everything but the adapter is frozen, also the embeddings: the first layer's input has no gradient."""
    model = add_lora(tiny("llama"), LoraSpec(r=4), 0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    return model


def with_dropout():
    """A model whose configuration has dropout, which stays off here."""
    return random_model(
        tiny_config("gpt2", VOCAB, initial=0.3, resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5)
    )


MODELS = {
    "llama": partial(tiny, "llama"),
    "gpt2": partial(tiny, "gpt2"),
    "gpt2, dropout": with_dropout,
    "gemma2, windows and caps": partial(random_model, GEMMA),
    "gpt_neox": lambda: random_model(GPTNeoXConfig(**{k: v for k, v in SMALL.items() if "key" not in k})),
    "cohere, padded": lambda: random_model(CohereConfig(**SMALL)),
    "lora": with_adapter,
    "critic": lambda: critic_from_policy(tiny("llama"), 2),
}


def rows_of_prompts(prompts=(7, 5), responses=(6, 4, 3), seed=0):
    """Two prompts with three responses each, right-padded: input_ids, attention_mask, response_mask."""
    rng = torch.Generator().manual_seed(seed)
    width = max(prompts) + max(responses)
    input_ids = torch.zeros(len(prompts) * len(responses), width, dtype=torch.long)
    attention_mask = torch.zeros(input_ids.shape).bool()
    response_mask = attention_mask.clone()
    row = 0
    for length in prompts:
        prompt = torch.randint(2, VOCAB, (length,), generator=rng)
        for response_length in responses:
            end = length + response_length
            input_ids[row, :length] = prompt
            input_ids[row, length:end] = torch.randint(2, VOCAB, (response_length,), generator=rng)
            attention_mask[row, :end] = True
            response_mask[row, length:end] = True
            row += 1
    return input_ids, attention_mask, response_mask


def loss_of(model):
    """A loss that depends on every output."""
    rows = rows_of_prompts()
    if hasattr(model, "num_heads"):
        model.network.score.weight.data.normal_(generator=torch.Generator().manual_seed(1))
        return (compute_values(model, *rows) ** 2).sum()
    logprobs = compute_logprobs(model, *rows)
    return (logprobs * torch.linspace(-1, 2, logprobs.numel()).reshape(logprobs.shape)).sum()


def loss_and_gradients(model, mode):
    for parameter in model.parameters():
        parameter.grad = None
    with use_gradient_checkpointing(mode):
        loss = loss_of(model)
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    return float(loss.detach()), grads


@pytest.mark.parametrize("mode", ["recompute", "offload"])
@pytest.mark.parametrize("name", MODELS)
def test_checkpointing_changes_neither_loss_nor_gradients(name, mode):
    model = MODELS[name]()
    assert supports_packing(model) == ("padded" not in name)
    expected_loss, expected = loss_and_gradients(model, "none")
    loss, grads = loss_and_gradients(model, mode)
    assert loss == expected_loss
    assert grads.keys() == expected.keys()
    assert len(grads) == sum(p.requires_grad for p in model.parameters())
    for name, grad in grads.items():
        assert float((grad - expected[name]).norm()) <= 1e-6 * float(expected[name].norm()), name
    assert sum(float(grad.norm()) for grad in expected.values()) > 0.1


@contextmanager
def record_saved_bytes(model, sizes):
    """Fill `sizes` with the bytes of each storage that autograd saves, except weights."""
    weight_storages = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in weight_storages:
            sizes[storage.data_ptr()] = storage.nbytes()
        return x.detach()

    with saved_tensors_hooks(pack, lambda x: x):
        yield


@pytest.mark.parametrize("name", ["llama", "gpt2", "lora", "critic"])
def test_recompute_saves_less_than_half_of_the_activations(name):
    model, saved_bytes = MODELS[name](), {}
    for mode in ("none", "recompute"):
        sizes: dict[int, int] = {}
        with record_saved_bytes(model, sizes), use_gradient_checkpointing(mode):
            loss = loss_of(model)
        saved_bytes[mode] = sum(sizes.values())
        loss.backward()
    assert saved_bytes["recompute"] < saved_bytes["none"] / 2


def test_layers_are_restored_after_an_error():
    model = tiny("llama")
    rows = rows_of_prompts()
    before = [vars(layer).copy() for layer in checkpointable_layers(model)]
    model.model.layers[1].mlp.register_forward_hook(lambda *_: 1 / 0)
    with use_gradient_checkpointing("recompute"):
        with pytest.raises(ZeroDivisionError):
            compute_logprobs(model, *rows)
        assert [vars(layer) for layer in checkpointable_layers(model)] == before
        with torch.no_grad():
            assert not any("forward" in vars(layer) for layer in checkpointable_layers(model))
    assert model.config._attn_implementation != "paretune"


def test_a_patched_forward_of_a_layer_is_called_and_kept():
    model, calls = tiny("llama"), []
    layer = checkpointable_layers(model)[0]
    class_forward = layer.forward
    layer.forward = lambda *args, **kwargs: calls.append(1) or class_forward(*args, **kwargs)
    patched = layer.forward
    _, grads = loss_and_gradients(model, "recompute")
    assert len(calls) == 2, "once in the forward pass, once in the backward pass"
    assert layer.forward is patched
    assert grads.keys() == loss_and_gradients(tiny("llama"), "none")[1].keys()


def test_nothing_is_recomputed_without_gradients():
    model, calls = tiny("llama"), []
    checkpointable_layers(model)[0].register_forward_pre_hook(lambda *_: calls.append(1))
    with use_gradient_checkpointing("recompute"), torch.no_grad():
        loss_of(model)
    assert calls == [1]


def test_a_disabled_adapter_stays_disabled_in_the_backward_pass():
    model = with_adapter()
    model.requires_grad_(True)
    base = tiny("llama")
    input_ids, attention_mask, _ = rows_of_prompts()
    with use_gradient_checkpointing("recompute"):
        (hidden_states(AdapterDisabledModel(model), input_ids, attention_mask) ** 2).sum().backward()
    (hidden_states(base, input_ids, attention_mask) ** 2).sum().backward()
    ours = model.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight.grad
    torch.testing.assert_close(ours, base.model.layers[0].mlp.up_proj.weight.grad)


def test_offload_moves_activations_but_no_weights(monkeypatch):
    model, moved = tiny("llama"), []
    weight_storages = {p.untyped_storage().data_ptr() for p in model.parameters()}

    class RecordingSaveOnCpu(save_on_cpu):
        def __init__(self, pin_memory=False):
            super().__init__(pin_memory)
            original = self.pack_hook
            self.pack_hook = lambda x: moved.append(x.untyped_storage().data_ptr()) or original(x)

    monkeypatch.setattr(checkpointing, "save_on_cpu", RecordingSaveOnCpu)
    with use_gradient_checkpointing("offload"):
        loss_of(model).backward()
    assert len(moved) > 20
    assert not weight_storages.intersection(moved)


def test_recompute_needs_checkpointable_layers():
    model = torch.nn.Linear(2, 2)
    model.config = tiny_config("llama", VOCAB)
    with pytest.raises(WiringError, match=r"recompute finds no layers in a llama model; fix: set it to none"):
        checkpointable_layers(model)
