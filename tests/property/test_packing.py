"""Packed rows with shared beginnings give what padded rows give: every answer, and every gradient."""

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
from paretune.models.forward.prefix_sharing import find_prefix_groups, plan_passes
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
ALL = frozenset({"entropy", "kl_reference_policy", "values"})


def ragged(prompts, responses, alone, side="right"):
    """Rows of tokens: each prompt with responses of these lengths, and rows that share nothing."""
    rng = torch.Generator().manual_seed(sum(prompts) + len(alone))

    def draw(n):
        return torch.randint(2, VOCAB, (n,), generator=rng)

    rows = []
    for length in prompts:
        prompt = draw(length)
        rows += [(torch.cat([prompt, draw(n)]), length) for n in responses]
    rows += [(draw(n), max(n // 2, 1)) for n in alone]
    width = max(len(row) for row, _ in rows) + 2
    tokens, attend = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width).bool()
    respond = attend.clone()
    for i, (row, start) in enumerate(rows):
        first = 0 if side == "right" else width - len(row)
        tokens[i, first : first + len(row)] = row
        attend[i, first : first + len(row)] = True
        respond[i, first + start : first + len(row)] = True
    respond[1, respond[1].nonzero().flatten()[1:2]] = False  # a turn that is not the policy's
    return tokens, attend, respond


def answers(model, critic, reference, rows, monkeypatch, *, packed):
    """All outputs, and all gradients of a sum that weighs every answer differently."""
    with monkeypatch.context() as patch:
        if not packed:
            patch.setattr(forward, "can_pack", lambda model: False)
        for network in (model, critic):
            network.zero_grad()
        batch = batch_of(*rows)
        out = compute_outputs(
            model, batch, ALL, temperature=0.8, references={"reference": reference}, critic=critic
        )
        found = [out.logprobs, out.entropy, out.ref_policy_kl, out.values]
        rng = torch.Generator().manual_seed(7)
        sum((x * torch.randn(x.shape, generator=rng, dtype=x.dtype)).sum() for x in found).backward()
    named = [*model.named_parameters(), *critic.named_parameters()]
    return [x.detach() for x in found], {name: p.grad for name, p in named if p.grad is not None}


def assert_equal(ours, plain):
    for a, b in zip(ours[0], plain[0], strict=True):
        assert float((a - b).norm()) <= 1e-5 * float(b.norm())
    assert ours[1].keys() == plain[1].keys()
    # A gradient that is 0 but for rounding is held against the largest one.
    largest = max(float(g.norm()) for g in plain[1].values())
    for name, gradient in plain[1].items():
        gap = float((ours[1][name] - gradient).norm())
        assert gap <= 1e-5 * max(float(gradient.norm()), 0.1 * largest), name


def critic_for(model):
    critic = critic_from_policy(model, 2)
    weight = critic.network.score.weight
    weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    return critic.requires_grad_(True)


@pytest.mark.parametrize("crowd", [1, 512], ids=["many calls", "few calls"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_is_answered_as_in_padded_rows(name, crowd, monkeypatch):
    monkeypatch.setattr(packing, "CROWD", crowd)
    model, reference = (random_model(CONFIGS[name], seed=s) for s in (0, 1))
    assert supports_packing(model)
    critic = critic_from_policy(tiny_model("llama", VOCAB, initial=0.3), 2)
    critic = critic if name in {"gpt_neox", "granite", "olmo2", "phi3, window 4"} else critic_for(model)
    rows = ragged((5, 17, 9, 3), (0, 3, 6, 11), (1, 2, 7, 20))
    ours, plain = (
        answers(model, critic, reference, rows, monkeypatch, packed=packed) for packed in (True, False)
    )
    assert_equal(ours, plain)
    assert model.config._attn_implementation != "paretune", "outside a call the model keeps its own attention"


@pytest.mark.parametrize("name", ["llama", "mistral, window 4", "gemma2, window 4", "gpt2"])
def test_what_fills_a_long_row_up_is_never_seen(name, monkeypatch):
    model, reference = (random_model(CONFIGS[name], seed=s) for s in (0, 1))
    rows = ragged((5, 17, 9, 3), (0, 3, 6, 11), (1, 2, 7, 20))
    asked = []
    monkeypatch.setattr(forward, "rounded_rows", lambda n, like: asked.append(n) or n + 37)
    ours, plain = (
        answers(model, critic_for(model), reference, rows, monkeypatch, packed=packed)
        for packed in (True, False)
    )
    assert asked
    assert_equal(ours, plain)


MODEL, REFERENCE = (random_model(CONFIGS["mistral, window 4"], seed=s) for s in (0, 1))
CRITIC = critic_for(MODEL)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    prompts=st.lists(st.integers(1, 24), min_size=1, max_size=4),
    responses=st.lists(st.integers(0, 12), min_size=2, max_size=5),
    alone=st.lists(st.integers(1, 30), max_size=3),
    side=st.sampled_from(["left", "right"]),
    crowd=st.sampled_from([1, 20, 512]),
)
def test_any_layout_is_answered_as_in_padded_rows(prompts, responses, alone, side, crowd):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "CROWD", crowd)
        rows = ragged(prompts, [*responses, 2], alone, side)
        both = [answers(MODEL, CRITIC, REFERENCE, rows, patch, packed=packed) for packed in (True, False)]
        assert_equal(*both)


def test_an_adapter_is_trained_as_in_padded_rows(monkeypatch):
    model = add_lora(tiny_model("qwen3", VOCAB, initial=0.3), LoraSpec(r=4, alpha=8), 0)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(2)) * 0.1
    critic = critic_for(tiny_model("qwen3", VOCAB, initial=0.3))
    rows = ragged((8, 3), (4, 9, 1), (5,))
    ours, plain = (
        answers(model, critic, AdapterDisabledModel(model), rows, monkeypatch, packed=packed)
        for packed in (True, False)
    )
    assert_equal(ours, plain)
    assert float(ours[0][2].abs().max()) > 1e-3, "the reference is the base without its adapter"


def test_a_prompt_stands_once_in_the_long_row():
    tokens, attend, _ = ragged((5, 17), (1, 3, 6), (7,))
    assert [(s.rows, s.prefix_length) for s in find_prefix_groups(tokens, attend)] == [
        ((0, 1, 2), 5),
        ((3, 4, 5), 17),
        ((6,), 7),
    ]
    packed = pack_rows(tokens, attend)
    assert packed.input_ids.shape == (1, 5 + 17 + 2 * 10 + 7)
    assert (packed.input_ids[0, packed.index[attend]] == tokens[attend]).all()
    expected = forward.position_ids_of(attend)[attend]
    assert (packed.position_ids[0, packed.index[attend]] == expected).all()


def test_only_equal_tokens_are_shared_and_only_where_it_pays():
    same = torch.arange(2, 22).expand(3, -1).clone()
    everywhere = torch.ones_like(same).bool()
    assert [s.rows for s in find_prefix_groups(same, everywhere)] == [(0, 1, 2)]
    same[1, 0] = 99
    assert [s.rows for s in find_prefix_groups(same, everywhere)] == [(0, 2), (1,)]
    begin = torch.arange(40).reshape(2, 20)
    begin[:, 0] = 7  # one common token of twenty
    assert [s.rows for s in find_prefix_groups(begin, torch.ones_like(begin).bool())] == [(0,), (1,)]
    # A beginning that all share gives way to longer ones of fewer rows.
    nested = torch.cat([torch.zeros(4, 4), torch.tensor([1.0, 1, 2, 2])[:, None].expand(4, 9)], 1)
    nested = torch.cat([nested, torch.arange(3, 7)[:, None]], 1).long()
    assert [s.rows for s in find_prefix_groups(nested, torch.ones_like(nested).bool())] == [(0, 1), (2, 3)]


def test_a_long_beginning_is_computed_once_unless_the_budget_is_strict():
    tokens, attend, _ = ragged((30,), (5,) * 6, ())
    lengths, shared = attend.sum(1).tolist(), find_prefix_groups(tokens, attend)
    assert plan_passes(lengths, 32, shared) == [[0], [1], [2], [3], [4], [5]], "each row reads the 30 again"
    assert plan_passes(lengths, 32, shared, strict_token_limit=False) == [[0, 1, 2, 3, 4, 5]], (
        "60 tokens, for 90 that are allowed"
    )
    tokens, attend, _ = ragged((30,), (25,) * 6, ())
    lengths, shared = attend.sum(1).tolist(), find_prefix_groups(tokens, attend)
    assert plan_passes(lengths, 32, shared, strict_token_limit=False) == [[0, 1], [2, 3], [4, 5]]
    assert plan_passes(lengths, 200, shared, strict_token_limit=False) == plan_passes(lengths, 200, shared)


quick = settings(max_examples=60, deadline=None, derandomize=True)


@quick
@given(
    prompts=st.lists(st.integers(1, 24), min_size=1, max_size=4),
    responses=st.lists(st.integers(0, 12), min_size=1, max_size=5),
    budget=st.integers(1, 120),
    grouped=st.booleans(),
    data=st.data(),
)
def test_a_plan_holds_every_row_once_within_the_budget_and_groups_whole(
    prompts, responses, budget, grouped, data
):
    tokens, attend, _ = ragged(prompts, [*responses, 1, 2], (1, 9))
    lengths, shared = attend.sum(1).tolist(), find_prefix_groups(tokens, attend)
    group = [data.draw(st.integers(0, 4)) for _ in lengths] if grouped else None
    parts = plan_passes(lengths, budget, shared, group)
    assert sorted(row for part in parts for row in part) == list(range(len(lengths)))
    for part in parts:
        together = {row if group is None else group[row] for row in part}
        size = pack_rows(tokens[part], attend[part]).input_ids.shape[1]
        assert size <= budget or len(together) == 1
        if group is not None:
            assert all(row in part for row in range(len(lengths)) if group[row] in together)
    if budget >= sum(lengths):
        assert len(parts) == 1
