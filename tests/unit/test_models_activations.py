"""Activations that are worked out again, or moved away: the same gradients from less that is kept."""

from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from transformers import CohereConfig, Gemma2Config, GPTNeoXConfig

import paretune.models.forward.checkpointing as activations
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
    """All but the adapter is frozen, the embeddings too: what enters the first layer has no gradient."""
    model = add_lora(tiny("llama"), LoraSpec(r=4), 0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    return model


def with_dropout():
    """Trained with dropout once; here it stays off."""
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


def shared(prompts=(7, 5), responses=(6, 4, 3), seed=0):
    """Rows of two prompts with three responses each, right-padded, and which tokens respond."""
    rng = torch.Generator().manual_seed(seed)
    width = max(prompts) + max(responses)
    tokens = torch.zeros(len(prompts) * len(responses), width, dtype=torch.long)
    attend, respond = torch.zeros(tokens.shape).bool(), torch.zeros(tokens.shape).bool()
    row = 0
    for length in prompts:
        prompt = torch.randint(2, VOCAB, (length,), generator=rng)
        for more in responses:
            tokens[row, :length] = prompt
            tokens[row, length : length + more] = torch.randint(2, VOCAB, (more,), generator=rng)
            attend[row, : length + more] = True
            respond[row, length : length + more] = True
            row += 1
    return tokens, attend, respond


def asked(model):
    """A number that depends on every answer."""
    rows = shared()
    if hasattr(model, "heads"):
        model.network.score.weight.data.normal_(generator=torch.Generator().manual_seed(1))
        return (compute_values(model, *rows) ** 2).sum()
    logp = compute_logprobs(model, *rows)
    return (logp * torch.linspace(-1, 2, logp.numel()).reshape(logp.shape)).sum()


def gradient(model, how):
    for parameter in model.parameters():
        parameter.grad = None
    with use_gradient_checkpointing(how):
        loss = asked(model)
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    return float(loss.detach()), grads


@pytest.mark.parametrize("how", ["recompute", "offload"])
@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_is_that_of_activations_that_are_kept(name, how):
    model = MODELS[name]()
    assert supports_packing(model) == ("padded" not in name)
    kept, wanted = gradient(model, "keep")
    loss, found = gradient(model, how)
    assert loss == kept
    assert found.keys() == wanted.keys()
    assert len(found) == sum(p.requires_grad for p in model.parameters())
    for key, grad in found.items():
        assert float((grad - wanted[key]).norm()) <= 1e-6 * float(wanted[key].norm()), key
    assert sum(float(grad.norm()) for grad in wanted.values()) > 0.1


@contextmanager
def counted(model, sizes):
    """Into `sizes`: bytes of what autograd keeps beside the weights, by where they lie."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return x.detach()

    with saved_tensors_hooks(pack, lambda x: x):
        yield


@pytest.mark.parametrize("name", ["llama", "gpt2", "lora", "critic"])
def test_fewer_bytes_wait_for_the_gradient(name):
    model, found = MODELS[name](), {}
    for how in ("keep", "recompute"):
        sizes: dict[int, int] = {}
        with counted(model, sizes), use_gradient_checkpointing(how):
            loss = asked(model)
        found[how] = sum(sizes.values())
        loss.backward()
    assert found["recompute"] < found["keep"] / 2


def test_a_model_is_left_as_it_was_after_an_error_too():
    model = tiny("llama")
    rows = shared()
    before = [vars(layer).copy() for layer in checkpointable_layers(model)]
    model.model.layers[1].mlp.register_forward_hook(lambda *_: 1 / 0)
    with use_gradient_checkpointing("recompute"):
        with pytest.raises(ZeroDivisionError):
            compute_logprobs(model, *rows)
        assert [vars(layer) for layer in checkpointable_layers(model)] == before
        with torch.no_grad():
            assert not any("forward" in vars(layer) for layer in checkpointable_layers(model))
    assert model.config._attn_implementation != "paretune"


def test_a_layers_own_forward_is_kept_and_asked():
    model, heard = tiny("llama"), []
    first = checkpointable_layers(model)[0]
    theirs = first.forward
    first.forward = lambda *args, **kwargs: heard.append(1) or theirs(*args, **kwargs)
    own = first.forward
    _, grads = gradient(model, "recompute")
    assert len(heard) == 2, "once on the way there, once on the way back"
    assert first.forward is own
    assert grads.keys() == gradient(tiny("llama"), "keep")[1].keys()


def test_nothing_is_worked_out_again_without_a_gradient():
    model, heard = tiny("llama"), []
    checkpointable_layers(model)[0].register_forward_pre_hook(lambda *_: heard.append(1))
    with use_gradient_checkpointing("recompute"), torch.no_grad():
        asked(model)
    assert heard == [1]


def test_an_adapter_is_off_on_the_way_back_where_it_was_off():
    model = with_adapter()
    model.requires_grad_(True)
    base = tiny("llama")
    tokens, attend, _ = shared()
    with use_gradient_checkpointing("recompute"):
        (hidden_states(AdapterDisabledModel(model), tokens, attend) ** 2).sum().backward()
    (hidden_states(base, tokens, attend) ** 2).sum().backward()
    ours = model.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight.grad
    torch.testing.assert_close(ours, base.model.layers[0].mlp.up_proj.weight.grad)


def test_what_is_moved_away_is_no_weight(monkeypatch):
    model, moved = tiny("llama"), []
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    class Heard(save_on_cpu):
        def __init__(self, pin_memory=False):
            super().__init__(pin_memory)
            theirs = self.pack_hook
            self.pack_hook = lambda x: moved.append(x.untyped_storage().data_ptr()) or theirs(x)

    monkeypatch.setattr(activations, "save_on_cpu", Heard)
    with use_gradient_checkpointing("offload"):
        asked(model).backward()
    assert len(moved) > 20
    assert not own.intersection(moved)


def test_a_model_without_layers_is_refused():
    model = torch.nn.Linear(2, 2)
    model.config = tiny_config("llama", VOCAB)
    with pytest.raises(WiringError, match=r"recompute finds no layers in a llama model; fix: write keep"):
        checkpointable_layers(model)
