"""Packed rows with shared prefixes give the same outputs and gradients as padded rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Gemma2Config, Gemma3TextConfig, GPTNeoXConfig, GraniteConfig, Olmo2Config, Phi3Config

import paretune.models.forward.logprobs as forward
import paretune.models.forward.packing as packing
from paretune.models.critic import critic_from_policy
from paretune.models.forward.logprobs import compute_outputs, supports_packing
from paretune.models.forward.packing import pack_rows
from paretune.models.forward.prefix_sharing import (
    SHARE_IF_SAVES_ONE_IN,
    _num_tokens,
    find_prefix_groups,
    plan_passes,
)
from paretune.models.lora import AdapterDisabledModel, LoraSpec, add_lora
from support.tiny_models import KINDS, random_model, tiny_config, tiny_model
from tinyrows import SMALL, VOCAB, batch_of

GROUPED = SMALL | {"num_key_value_heads": 2}
GEMMA = GROUPED | {"head_dim": 8}
CONFIGS = {kind: tiny_config(kind, VOCAB, initial=0.3) for kind in KINDS} | {
    "mistral, window 4": tiny_config("mistral", VOCAB, initial=0.3, sliding_window=4),
    "qwen2, window 4": tiny_config(
        "qwen2", VOCAB, initial=0.3, use_sliding_window=True, sliding_window=4, max_window_layers=1
    ),
    "phi3, window 4": Phi3Config(**GROUPED, sliding_window=4),
    "gemma2, window 4": Gemma2Config(**GEMMA, sliding_window=4, attn_logit_softcapping=2.0),
    "gemma3, window 4": Gemma3TextConfig(**GEMMA, sliding_window=4),
    "granite": GraniteConfig(**GROUPED, logits_scaling=4.0, attention_multiplier=0.2),
    "olmo2": Olmo2Config(**GROUPED),
    "gpt_neox": GPTNeoXConfig(**SMALL),
}
ALL = frozenset({"entropy", "ref_policy_kl", "values"})


def ragged_rows(prompts, responses, alone, side="right"):
    """Rows of random tokens: each prompt with responses of these lengths, and rows without shared prefix."""
    rng = torch.Generator().manual_seed(sum(prompts) + len(alone))

    def draw(n):
        return torch.randint(2, VOCAB, (n,), generator=rng)

    rows = []
    for length in prompts:
        prompt = draw(length)
        rows += [(torch.cat([prompt, draw(n)]), length) for n in responses]
    rows += [(draw(n), max(n // 2, 1)) for n in alone]
    width = max(len(row) for row, _ in rows) + 2
    input_ids, attention_mask = (
        torch.zeros(len(rows), width, dtype=torch.long),
        torch.zeros(len(rows), width).bool(),
    )
    response_mask = attention_mask.clone()
    for i, (row, start) in enumerate(rows):
        first = 0 if side == "right" else width - len(row)
        input_ids[i, first : first + len(row)] = row
        attention_mask[i, first : first + len(row)] = True
        response_mask[i, first + start : first + len(row)] = True
    response_mask[1, response_mask[1].nonzero().flatten()[1:2]] = False  # a token that is not the policy's
    return input_ids, attention_mask, response_mask


def outputs_and_gradients(model, critic, reference, rows, monkeypatch, *, packed):
    """All outputs, and all gradients of a sum that weights every output differently."""
    with monkeypatch.context() as patch:
        if not packed:
            patch.setattr(forward, "supports_packing", lambda model: False)
        for network in (model, critic):
            network.zero_grad()
        batch = batch_of(*rows)
        out = compute_outputs(
            model, batch, ALL, temperature=0.8, references={"reference": reference}, critic=critic
        )
        outputs = [out.logprobs, out.entropy, out.ref_policy_kl, out.values]
        rng = torch.Generator().manual_seed(7)
        sum((x * torch.randn(x.shape, generator=rng, dtype=x.dtype)).sum() for x in outputs).backward()
    named = [*model.named_parameters(), *critic.named_parameters()]
    return [x.detach() for x in outputs], {name: p.grad for name, p in named if p.grad is not None}


def assert_equal(ours, padded):
    for a, b in zip(ours[0], padded[0], strict=True):
        assert float((a - b).norm()) <= 1e-5 * float(b.norm())
    assert ours[1].keys() == padded[1].keys()
    # Gradients that are 0 except for rounding are compared with the largest one.
    largest = max(float(g.norm()) for g in padded[1].values())
    for name, gradient in padded[1].items():
        gap = float((ours[1][name] - gradient).norm())
        assert gap <= 1e-5 * max(float(gradient.norm()), 0.1 * largest), name


def critic_for(model):
    critic = critic_from_policy(model, 2)
    weight = critic.network.score.weight
    weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    return critic.requires_grad_(True)


@pytest.mark.parametrize("min_tokens", [1, 512], ids=["many calls", "few calls"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_gives_the_outputs_of_padded_rows(name, min_tokens, monkeypatch):
    monkeypatch.setattr(packing, "MIN_TOKENS_PER_CALL", min_tokens)
    model, reference = (random_model(CONFIGS[name], seed=s) for s in (0, 1))
    assert supports_packing(model)
    critic = critic_from_policy(tiny_model("llama", VOCAB, initial=0.3), 2)
    critic = critic if name in {"gpt_neox", "granite", "olmo2", "phi3, window 4"} else critic_for(model)
    rows = ragged_rows((5, 17, 9, 3), (0, 3, 6, 11), (1, 2, 7, 20))
    ours, padded = (
        outputs_and_gradients(model, critic, reference, rows, monkeypatch, packed=packed)
        for packed in (True, False)
    )
    assert_equal(ours, padded)
    assert model.config._attn_implementation != "paretune", (
        "outside a forward pass the model has its own attention"
    )


@pytest.mark.parametrize("name", ["llama", "mistral, window 4", "gemma2, window 4", "gpt2"])
def test_filler_tokens_change_nothing(name, monkeypatch):
    model, reference = (random_model(CONFIGS[name], seed=s) for s in (0, 1))
    rows = ragged_rows((5, 17, 9, 3), (0, 3, 6, 11), (1, 2, 7, 20))
    requests = []
    monkeypatch.setattr(forward, "round_up_packed", lambda n, like: requests.append(n) or n + 37)
    ours, padded = (
        outputs_and_gradients(model, critic_for(model), reference, rows, monkeypatch, packed=packed)
        for packed in (True, False)
    )
    assert requests
    assert_equal(ours, padded)


MODEL, REFERENCE = (random_model(CONFIGS["mistral, window 4"], seed=s) for s in (0, 1))
CRITIC = critic_for(MODEL)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    prompts=st.lists(st.integers(1, 24), min_size=1, max_size=4),
    responses=st.lists(st.integers(0, 12), min_size=2, max_size=5),
    alone=st.lists(st.integers(1, 30), max_size=3),
    side=st.sampled_from(["left", "right"]),
    min_tokens=st.sampled_from([1, 20, 512]),
)
def test_any_layout_gives_the_outputs_of_padded_rows(prompts, responses, alone, side, min_tokens):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "MIN_TOKENS_PER_CALL", min_tokens)
        rows = ragged_rows(prompts, [*responses, 2], alone, side)
        both = [
            outputs_and_gradients(MODEL, CRITIC, REFERENCE, rows, patch, packed=packed)
            for packed in (True, False)
        ]
        assert_equal(*both)


def test_adapters_get_the_gradients_of_padded_rows(monkeypatch):
    model = add_lora(tiny_model("qwen3", VOCAB, initial=0.3), LoraSpec(r=4, alpha=8), 0)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(2)) * 0.1
    critic = critic_for(tiny_model("qwen3", VOCAB, initial=0.3))
    rows = ragged_rows((8, 3), (4, 9, 1), (5,))
    ours, padded = (
        outputs_and_gradients(model, critic, AdapterDisabledModel(model), rows, monkeypatch, packed=packed)
        for packed in (True, False)
    )
    assert_equal(ours, padded)
    assert float(ours[0][2].abs().max()) > 1e-3, "the reference is the base model without its adapter"


def test_a_shared_prompt_occurs_once_in_the_packed_row():
    input_ids, attention_mask, _ = ragged_rows((5, 17), (1, 3, 6), (7,))
    assert [(s.rows, s.prefix_length) for s in find_prefix_groups(input_ids, attention_mask)] == [
        ((0, 1, 2), 5),
        ((3, 4, 5), 17),
        ((6,), 7),
    ]
    packed = pack_rows(input_ids, attention_mask)
    assert packed.input_ids.shape == (1, 5 + 17 + 2 * 10 + 7)
    assert (packed.input_ids[0, packed.index[attention_mask]] == input_ids[attention_mask]).all()
    expected = forward.position_ids_of(attention_mask)[attention_mask]
    assert (packed.position_ids[0, packed.index[attention_mask]] == expected).all()


def test_only_equal_prefixes_that_save_enough_are_shared():
    same = torch.arange(2, 22).expand(3, -1).clone()
    all_true = torch.ones_like(same).bool()
    assert [s.rows for s in find_prefix_groups(same, all_true)] == [(0, 1, 2)]
    same[1, 0] = 99
    assert [s.rows for s in find_prefix_groups(same, all_true)] == [(0, 2), (1,)]
    unequal = torch.arange(40).reshape(2, 20)
    unequal[:, 0] = 7  # one shared token of twenty
    assert [s.rows for s in find_prefix_groups(unequal, torch.ones_like(unequal).bool())] == [(0,), (1,)]
    # A prefix that all share is given up for longer ones of fewer rows.
    nested = torch.cat([torch.zeros(4, 4), torch.tensor([1.0, 1, 2, 2])[:, None].expand(4, 9)], 1)
    nested = torch.cat([nested, torch.arange(3, 7)[:, None]], 1).long()
    assert [s.rows for s in find_prefix_groups(nested, torch.ones_like(nested).bool())] == [(0, 1), (2, 3)]


def test_a_long_prefix_is_computed_once_unless_the_token_limit_is_strict():
    input_ids, attention_mask, _ = ragged_rows((30,), (5,) * 6, ())
    lengths, shared = attention_mask.sum(1).tolist(), find_prefix_groups(input_ids, attention_mask)
    assert plan_passes(lengths, 32, shared) == [[0], [1], [2], [3], [4], [5]], (
        "each row recomputes the prefix of 30"
    )
    assert plan_passes(lengths, 32, shared, strict_token_limit=False) == [[0, 1, 2, 3, 4, 5]], (
        "60 input_ids, and 90 are allowed"
    )
    input_ids, attention_mask, _ = ragged_rows((30,), (25,) * 6, ())
    lengths, shared = attention_mask.sum(1).tolist(), find_prefix_groups(input_ids, attention_mask)
    assert plan_passes(lengths, 32, shared, strict_token_limit=False) == [[0, 1], [2, 3], [4, 5]]
    assert plan_passes(lengths, 200, shared, strict_token_limit=False) == plan_passes(lengths, 200, shared)


quick = settings(max_examples=60, deadline=None, derandomize=True)


@quick
@given(
    prompts=st.lists(st.integers(1, 24), min_size=1, max_size=4),
    responses=st.lists(st.integers(0, 12), min_size=1, max_size=5),
    max_tokens=st.integers(1, 120),
    grouped=st.booleans(),
    data=st.data(),
)
def test_passes_cover_rows_once_within_the_limit_with_whole_groups(
    prompts, responses, max_tokens, grouped, data
):
    input_ids, attention_mask, _ = ragged_rows(prompts, [*responses, 1, 2], (1, 9))
    lengths, shared = attention_mask.sum(1).tolist(), find_prefix_groups(input_ids, attention_mask)
    group = [data.draw(st.integers(0, 4)) for _ in lengths] if grouped else None
    passes = plan_passes(lengths, max_tokens, shared, group)
    assert sorted(row for one_pass in passes for row in one_pass) == list(range(len(lengths)))
    for one_pass in passes:
        together = {row if group is None else group[row] for row in one_pass}
        planned = _num_tokens(one_pass, lengths, {row: group for group in shared for row in group.rows})
        assert planned <= max_tokens or len(together) == 1
        # With few rows of a prefix group in a pass, sharing may save less than one token in 8: left out.
        size = pack_rows(input_ids[one_pass], attention_mask[one_pass]).input_ids.shape[1]
        not_shared = sum(lengths[row] for row in one_pass) / SHARE_IF_SAVES_ONE_IN
        assert size <= max_tokens + not_shared or len(together) == 1
        if group is not None:
            assert all(row in one_pass for row in range(len(lengths)) if group[row] in together)
    if max_tokens >= sum(lengths):
        assert len(passes) == 1
