"""The battery over model families: what `model_support` promises holds for tiny random models of each.

Some representatives run by default; `make test-models` runs all families and prints a table.
"""

import copy
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from paretune.core.errors import WiringError
from paretune.models.critic import critic_from_policy
from paretune.models.families import ModelSupport, model_support
from paretune.models.forward.checkpointing import use_gradient_checkpointing
from paretune.models.forward.lm_head import lm_head_of
from paretune.models.forward.logprobs import (
    check_lm_head,
    compute_logprobs,
    compute_values,
    flat_hidden_states,
    hidden_states,
)
from paretune.models.load import PolicyModel, as_policy_model
from paretune.models.lora import LoraSpec, add_lora
from paretune.models.save import silence_transformers
from paretune.rollout import static_batching
from paretune.rollout.decoding import decode
from paretune.rollout.probe import probe_sampler
from shared import ROOT
from support.families import EOS, FAMILIES, PAD, VOCAB, Family
from support.families import random_rows as rows
from support.tiny_models import tiny_tokenizer

TOLERANCE = 1e-5
# Recurrent layers multiply many decays; float32 itself is this exact for them.
RECURRENT_TOLERANCE = 5e-5

SHORT = ("Llama 3", "Gemma 2", "Qwen3-MoE", "DeepSeek-V3", "Qwen3.5", "LFM2", "Mamba", "RWKV")
"""One family per way of decoding and kind of layer; the others run by `make test-models`."""

PROMPTS = [[5], [9, 30, 31], [7, 8, 9, 40, 41, 42, 300], list(range(100, 137)), list(range(200, 237))]


def tolerance(support: ModelSupport) -> float:
    return RECURRENT_TOLERANCE if support.decoding in ("equal_length", "full_pass") else TOLERANCE


def plain_logprobs(model, row, start, temperature=1.0):
    """Log-probabilities of a row's tokens from `start` on, from the model's own logits without a cache."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row]), use_cache=False).logits[0, start - 1 : -1]
    logprobs = (logits.double() / temperature).log_softmax(-1)
    return logprobs.gather(1, torch.tensor(row[start:])[:, None])[:, 0]


def sample(model, prompts, uniform, max_rows=256):
    n = len(uniform) // len(prompts)
    prompt_of_row = [i for i in range(len(prompts)) for _ in range(n)]
    out = decode(
        model, prompts, prompt_of_row, uniform, eos_ids=(EOS,), temperature=0.9, pad_id=PAD, max_rows=max_rows
    )
    return out, prompt_of_row


def sampler(model, support, folder):
    """Sampled log-probabilities equal those of a plain forward pass of each row."""
    out, prompt_of_row = sample(model, PROMPTS, np.random.default_rng(0).random((10, 12)))
    for ids, logprobs, i in zip(out.token_ids, out.logprobs, prompt_of_row, strict=True):
        expected = plain_logprobs(model, PROMPTS[i] + ids, len(PROMPTS[i]), 0.9)
        assert float((expected - torch.from_numpy(logprobs)).abs().max()) < tolerance(support)


def batch_invariance(model, support, folder):
    """A row's response is the same alone, with few slots and among others."""
    uniform = np.random.default_rng(1).random((len(PROMPTS), 8))
    together, _ = sample(model, PROMPTS, uniform)
    few, _ = sample(model, PROMPTS, uniform, max_rows=2)
    assert few.token_ids == together.token_ids
    for i, prompt in enumerate(PROMPTS):
        alone, _ = sample(model, [prompt], uniform[i : i + 1])
        assert alone.token_ids[0] == together.token_ids[i]


def training_pass(model, support, folder):
    """The training pass, packed where supported, and the padded pass equal a pass of each row alone."""
    check_lm_head(model)
    input_ids, attention_mask, response_mask = rows()
    ours = compute_logprobs(model, input_ids, attention_mask, response_mask)
    padded, packed = (f(model, input_ids, attention_mask) for f in (hidden_states, flat_hidden_states))
    gap = (packed.flat[packed.index] - padded)[attention_mask].abs().max()
    assert float(gap.detach()) < 10 * tolerance(support)  # hidden states are larger than log-probabilities
    for b in range(len(input_ids)):
        row = input_ids[b][attention_mask[b]].tolist()
        start = len(row) - int(response_mask[b].sum())
        gap = (plain_logprobs(model, row, start) - ours[b][response_mask[b]]).abs().max()
        assert float(gap.detach()) < tolerance(support)


def causality(model, support, folder):
    """A token's log-probability does not depend on the tokens after it."""
    input_ids, attention_mask, _ = rows()
    changed = input_ids.clone()
    changed[:, 6:] = (changed[:, 6:] + 100) % VOCAB
    first = attention_mask & (torch.arange(input_ids.shape[1]) < 6)
    before, after = (compute_logprobs(model, ids, attention_mask, first) for ids in (input_ids, changed))
    assert float((before - after).abs().max()) < tolerance(support)


def left_padding(model, support, folder):
    """Padding before a row's tokens changes nothing."""
    input_ids, attention_mask, response_mask = rows()
    ours = compute_logprobs(model, input_ids, attention_mask, response_mask)
    flipped = [torch.zeros_like(x) for x in (input_ids, attention_mask, response_mask)]
    for b, n in enumerate(attention_mask.sum(1).tolist()):
        for target, x in zip(flipped, (input_ids, attention_mask, response_mask), strict=True):
            target[b, -n:] = x[b, :n]
    moved = compute_logprobs(model, *flipped)[flipped[2]]
    assert float((moved - ours[response_mask]).abs().max()) < tolerance(support)


def gradients(model):
    model.zero_grad()
    compute_logprobs(model, *rows()).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def gradient_checkpointing(model, support, folder):
    """Recomputed layers give the same gradients; a family whose layers cannot be recomputed is refused."""
    expected = gradients(model)
    try:
        with use_gradient_checkpointing("recompute"):
            recomputed = gradients(model)
    except WiringError:
        pytest.skip("refused")
    finally:
        model.zero_grad(set_to_none=True)
    assert recomputed.keys() == expected.keys()
    for name, grad in expected.items():
        scale = float(grad.abs().max()) + 1e-6
        assert float((recomputed[name] - grad).abs().max()) < 1e-4 * scale, name


def reward_head_and_critic(model, support, folder):
    """A sequence classifier with the body exists, is saved and loaded, and its values do not see padding."""
    if not support.reward_head:
        with pytest.raises(WiringError, match="sequence classifier"):
            critic_from_policy(model, 2)
        pytest.skip("refused")
    critic = critic_from_policy(model, 2)
    critic.network.score.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    input_ids, attention_mask, response_mask = rows()
    with torch.no_grad():
        values = compute_values(critic, input_ids, attention_mask, response_mask)
        for b in range(len(input_ids)):
            n = int(attention_mask[b].sum())
            alone = compute_values(
                critic, *(x[b : b + 1, :n] for x in (input_ids, attention_mask, response_mask))
            )
            assert float((alone[0] - values[b, :n]).abs().max()) < 20 * tolerance(support)


def save_and_load(model, support, folder):
    """The saved model, loaded by the plain Auto class, samples greedily what transformers generates."""
    with silence_transformers():
        model.save_pretrained(folder)
        loaded = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    expected = model.state_dict()
    assert all(torch.equal(x, expected[name]) for name, x in loaded.state_dict().items())
    for prompt in PROMPTS[2:4]:
        ids = torch.tensor([prompt])
        with torch.no_grad():
            generated = loaded.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=6,
                eos_token_id=EOS,
                pad_token_id=PAD,
                use_cache=support.decoding != "full_pass",
            )
        # Near temperature 0 sampling is greedy.
        greedy = decode(
            model, [prompt], [0], np.full((1, 6), 0.5), eos_ids=(EOS,), temperature=1e-4, pad_id=PAD
        )
        assert greedy.token_ids[0] == generated[0, len(prompt) :].tolist()


def lora(model, support, folder):
    """A LoRA adapter of all linear layers trains, and is sampled with."""
    adapted = add_lora(copy.deepcopy(model), LoraSpec(r=2), seed=0)
    for name, p in adapted.named_parameters():
        if "lora_B" in name:
            p.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(0))
    grads = gradients(adapted)
    assert grads
    assert all("lora_" in name for name in grads)
    assert any(bool(grad.any()) for grad in grads.values())
    out, prompt_of_row = sample(adapted, PROMPTS[2:4], np.random.default_rng(0).random((2, 6)))
    for ids, logprobs, i in zip(out.token_ids, out.logprobs, prompt_of_row, strict=True):
        expected = plain_logprobs(adapted, PROMPTS[2 + i] + ids, len(PROMPTS[2 + i]), 0.9)
        assert float((expected - torch.from_numpy(logprobs)).abs().max()) < tolerance(support)


CHECKS = (
    sampler,
    batch_invariance,
    training_pass,
    causality,
    left_padding,
    gradient_checkpointing,
    reward_head_and_critic,
    save_and_load,
    lora,
)


def run_battery(family: Family, folder: Path) -> dict[str, str]:
    """The result of each check: seconds, `refused`, or the first line of the failure."""
    model = family.model()
    support = model_support(model.config)
    results = {"decoding": support.decoding, "packing": str(support.packing)}
    for check in CHECKS:
        start = time.perf_counter()
        try:
            check(model, support, folder)
            results[check.__name__] = f"{time.perf_counter() - start:.2f}"
        except pytest.skip.Exception as skipped:
            results[check.__name__] = str(skipped)
        except Exception as error:  # every failure is a cell of the table
            lines = str(error).splitlines() or [""]
            results[check.__name__] = f"FAILED {type(error).__name__}: {lines[0][:150]}"
    return results


ALL_FAMILIES = "PARETUNE_ALL_FAMILIES" in os.environ
CHOSEN = [family for family in FAMILIES if ALL_FAMILIES or family.name in SHORT]


@pytest.mark.parametrize("family", CHOSEN, ids=[family.name for family in CHOSEN])
def test_family_passes_the_battery(family, tmp_path):
    results = run_battery(family, tmp_path)
    if ALL_FAMILIES:
        if family is CHOSEN[0]:
            print("\n" + " | ".join(["family", *results]))
        print(" | ".join([family.name, *results.values()]))
    assert [f"{name}: {x}" for name, x in results.items() if x.startswith("FAILED")] == []


def test_the_table_of_families_in_the_docs_is_up_to_date():
    path = ROOT / "docs" / "models.md"
    table = [
        "| family | `model_type` | sampling | packing | reward model, critic |",
        "| --- | --- | --- | --- | --- |",
    ]
    for family in FAMILIES:
        support = model_support(family.config())
        packing, head = ("yes" if x else "no" for x in (support.packing, support.reward_head))
        table.append(f"| {family.name} | `{family.model_type}` | {support.decoding} | {packing} | {head} |")
    text = path.read_text(encoding="utf-8")
    start, end = text.index("| family |"), text.index("\n\n", text.index("| family |"))
    if "PARETUNE_UPDATE_SNAPSHOTS" in os.environ:
        path.write_text(text[:start] + "\n".join(table) + text[end:], encoding="utf-8")
    else:
        assert text[start:end].splitlines() == table


def test_rwkv_models_that_change_their_own_weights_are_refused():
    rwkv = next(family for family in FAMILIES if family.name == "RWKV")
    assert not model_support(rwkv.config(num_hidden_layers=7)).is_supported
    assert model_support(rwkv.config(num_hidden_layers=7, rescale_every=0)).is_supported
    assert model_support(rwkv.config(num_hidden_layers=6)).is_supported


def test_encoder_decoder_models_are_refused():
    support = model_support(AutoConfig.for_model("t5"))
    assert not support.is_supported
    assert "; fix: " in support.reason


def policy_of(name):
    model = next(family for family in FAMILIES if family.name == name).model()
    return PolicyModel(model=model, tokenizer=tiny_tokenizer(), eos_ids=(EOS,), pad_id=PAD)


def test_the_probe_accepts_a_family_and_draws_nothing():
    state = torch.get_rng_state()
    probe_sampler(policy_of("Qwen3.5"))
    probe_sampler(policy_of("Llama 3"))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("name", "decoding"), [("RWKV", "static"), ("Mamba", "equal_length")])
def test_the_probe_refuses_a_cache_that_is_not_read(monkeypatch, name, decoding):
    """RWKV ignores the argument, and its tokens were drawn without the prompt."""
    support = ModelSupport(decoding, False, False, "", "past_key_values")
    monkeypatch.setattr(static_batching, "model_support", lambda config: support)
    with pytest.raises(WiringError, match="the sampler and the model's own forward pass disagree by up to"):
        probe_sampler(policy_of(name))


def test_ids_beyond_the_tokenizer_are_neither_sampled_nor_counted():
    model = next(family for family in FAMILIES if family.name == "Llama 3").model()
    tokenizer = tiny_tokenizer()
    as_policy_model(model, tokenizer)
    out, _ = sample(model, [[5, 6, 7]], np.random.default_rng(0).random((20, 20)))
    assert max(max(ids) for ids in out.token_ids) < len(tokenizer) < VOCAB
    row = [5, 6, 7, *out.token_ids[0]]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row])).logits[0, 2:-1, : len(tokenizer)].double()
    expected = (logits / 0.9).log_softmax(-1).gather(1, torch.tensor(row[3:])[:, None])[:, 0]
    mask = torch.ones(1, len(row), dtype=torch.bool)
    trained = compute_logprobs(model, torch.tensor([row]), mask, mask, temperature=0.9)[0, 3:]
    for logprobs in (torch.from_numpy(out.logprobs[0]), trained):
        assert torch.allclose(logprobs.double(), expected, atol=1e-5)
    copied = copy.deepcopy(model)  # as a frozen reference policy is made
    assert lm_head_of(copied).weight.shape[0] == len(tokenizer)


def test_a_vocabulary_of_the_same_size_has_no_limit():
    model = next(family for family in FAMILIES if family.name == "Llama 3").model(vocab_size=101)
    as_policy_model(model, tiny_tokenizer())
    assert lm_head_of(model).weight is model.lm_head.weight
