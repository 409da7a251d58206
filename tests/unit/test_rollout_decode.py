"""A row's text is its own: whoever is decoded beside it or before it, however long the prompts are."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, PhiConfig

from paretune.models.forward.attention import AttentionParams, supports_custom_attention
from paretune.models.forward.logprobs import compute_logprobs
from paretune.models.lora import LoraSpec, add_lora
from paretune.models.quantize import int8_copy
from paretune.rollout import continuous_batching, kv_cache, token_sampling
from paretune.rollout.decoding import decode
from paretune.rollout.kv_cache import Cache, PromptGrid
from support.tiny_models import KINDS, random_model, tiny_model

VOCAB = 40
STOP, PAD = 1, 0


def prompts_of(*lengths):
    rng = np.random.default_rng(0)
    return [rng.integers(2, VOCAB, n).tolist() for n in lengths]


PROMPTS = prompts_of(1, 3, 5, 40, 41, 90)


def ask(model, prompts=PROMPTS, n=5, limit=30, temperature=0.9, stops=(STOP,), seed=0, **more):
    uniform = np.random.default_rng(seed).random((len(prompts) * n, limit))
    row_prompt = [i for i in range(len(prompts)) for _ in range(n)]
    return decode(
        model, prompts, row_prompt, uniform, eos_ids=stops, temperature=temperature, pad_id=PAD, **more
    ), row_prompt


def gap(model, out, row_prompt, prompts=PROMPTS, temperature=0.9):
    """The largest difference from a forward pass over each whole row alone."""
    worst = 0.0
    for ids, logp, p in zip(out.ids, out.logp, row_prompt, strict=True):
        tokens = torch.tensor([prompts[p] + ids])
        where = torch.arange(tokens.shape[1])[None] >= len(prompts[p])
        with torch.no_grad():
            real = compute_logprobs(model, tokens, torch.ones_like(where), where, temperature=temperature)[
                where
            ]
        worst = max(worst, float((real - torch.from_numpy(logp)).abs().max()))
    return worst


def model_of(kind="llama", **more):
    return tiny_model(kind, VOCAB, initial=0.25, **more)


def gemma2():
    config = Gemma2Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=11,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=5.0,
        initializer_range=0.25,
        pad_token_id=PAD,
        eos_token_id=STOP,
        bos_token_id=None,
    )
    # Only the eager attention of transformers knows the soft cap, and it is what we are compared with.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def phi():
    """A family that keeps its own attention, and so is decoded in waves."""
    config = PhiConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        initializer_range=0.25,
    )
    return random_model(config)


@pytest.mark.parametrize("rows", [1, 3, 7, 1000])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_any_number_of_places_gives_the_same_texts(kind, rows):
    model = model_of(kind)
    whole, _ = ask(model)
    part, row_prompt = ask(model, rows=rows)
    assert part.token_ids == whole.token_ids
    assert part.truncated == whole.truncated
    assert len({len(ids) for ids in whole.token_ids}) > 5
    assert any(whole.truncated)
    assert gap(model, part, row_prompt) < 1e-5


def test_rows_that_enter_late_are_as_those_of_a_call_of_their_own():
    model = model_of()
    together, row_prompt = ask(model, rows=7)
    uniform = np.random.default_rng(0).random((30, 30))
    for i, prompt in enumerate(PROMPTS):
        mine = [row for row, p in enumerate(row_prompt) if p == i]
        alone = decode(
            model, [prompt], [0] * 5, uniform[mine], eos_ids=(STOP,), temperature=0.9, pad_id=PAD, max_rows=5
        )
        assert alone.token_ids == tuple(together.token_ids[row] for row in mine)


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_are_those_of_each_row_alone(kind):
    model = model_of(kind)
    out, row_prompt = ask(model, rows=8)
    assert gap(model, out, row_prompt) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_short_prompts_are_given_to_their_rows(kind):
    prompts = PROMPTS[:3] + prompts_of(32)
    model = model_of(kind)
    out, row_prompt = ask(model, prompts, rows=6, limit=60)
    assert out.token_ids == ask(model, prompts, limit=60)[0].token_ids
    assert max(len(ids) for ids in out.token_ids) == 60
    assert gap(model, out, row_prompt, prompts) < 1e-5


@pytest.mark.parametrize("lengths", [(1, 3, 20), (1, 40)])
@pytest.mark.parametrize("window", [1, 2, 7, 33, 64])
def test_windows_end_in_the_prompt_and_in_the_response(window, lengths):
    model, prompts = model_of("mistral", sliding_window=window), prompts_of(*lengths)
    out, row_prompt = ask(model, prompts, rows=4)
    assert gap(model, out, row_prompt, prompts) < 1e-5


def test_soft_caps_windows_and_one_key_head_for_all():
    model = gemma2()
    assert supports_custom_attention(model)
    out, row_prompt = ask(model, rows=8)
    assert gap(model, out, row_prompt) < 1e-5


def test_tables_grow_and_sums_are_blocked(monkeypatch):
    """Prompts and responses longer than one block, and than the table that a response begins with."""
    monkeypatch.setattr(kv_cache, "BLOCK", 16)
    monkeypatch.setattr(kv_cache, "FIRST", 16)
    model = model_of()
    out, row_prompt = ask(model, rows=8, limit=120)
    assert max(len(ids) for ids in out.token_ids) > 64
    assert gap(model, out, row_prompt) < 2e-5


def test_one_response_a_prompt():
    model = model_of()
    out, row_prompt = ask(model, n=1, rows=2)
    assert out.token_ids == ask(model, n=1)[0].token_ids
    assert gap(model, out, row_prompt) < 1e-5


def test_rows_that_stop_at_once_and_rows_that_never_stop():
    model = model_of()
    first, _ = ask(model, stops=tuple(range(VOCAB)), rows=4)
    assert all(len(ids) == 1 for ids in first.token_ids)
    assert not any(first.truncated)
    never, _ = ask(model, stops=(VOCAB + 1,), rows=4, limit=9)
    assert all(len(ids) == 9 for ids in never.token_ids)
    assert all(never.truncated)
    single, _ = ask(model, limit=1, rows=4)
    assert [len(ids) for ids in single.token_ids] == [1] * 30


def test_adapters_and_eight_bits_are_sampled_as_they_are():
    adapted = add_lora(model_of("qwen2"), LoraSpec(r=4), seed=0)
    with torch.no_grad():
        for p in adapted.parameters():
            if p.requires_grad:
                p.add_(0.02)
    out, row_prompt = ask(adapted, rows=8)
    assert gap(adapted, out, row_prompt) < 1e-5
    assert out.token_ids != ask(model_of("qwen2"))[0].token_ids
    # Rounding to steps turns a last bit into a step, so that the rows differ from those read alone by more.
    twin = int8_copy(model_of())
    out, row_prompt = ask(twin, rows=8)
    assert gap(twin, out, row_prompt) < 0.3


def test_a_family_with_its_own_attention_is_decoded_in_waves():
    model = phi()
    assert not supports_custom_attention(model)
    whole, _ = ask(model)
    for rows in (1, 7):
        part, row_prompt = ask(model, rows=rows)
        assert part.token_ids == whole.token_ids
        assert gap(model, part, row_prompt) < 1e-5


def test_a_prompt_is_read_once_and_never_padded(monkeypatch):
    model = model_of()
    read = []
    own = continuous_batching.BatchScheduler._forward

    def counted(self, tokens, place, how):
        read.append(len(tokens))
        return own(self, tokens, place, how)

    monkeypatch.setattr(continuous_batching.BatchScheduler, "_body", counted)
    out, _ = ask(model, rows=4)
    # Every token is read once, but for the last ones of responses, which nothing follows.
    assert sum(read) == sum(map(len, PROMPTS)) + sum(len(ids) - 1 for ids in out.token_ids)
    read.clear()
    monkeypatch.setattr(continuous_batching, "PASS", 50)
    assert ask(model)[0].token_ids == out.token_ids
    assert 90 in read  # a prompt longer than a pass is a pass of its own


def test_the_models_attention_is_its_own_again_afterwards():
    model = model_of()
    own = model.config._attn_implementation
    tokens = torch.tensor([PROMPTS[3]])
    with torch.no_grad():
        before = model(input_ids=tokens).logits
        ask(model)
        assert model.config._attn_implementation == own
        assert torch.equal(model(input_ids=tokens).logits, before)


def test_empty_cells_and_the_way_back():
    """Prompts of 2 and 1 rows in a table of 2 x 2: the empty cell repeats row 0."""
    grid = PromptGrid.build([1, 0, 1], [5, 20], torch.device("cpu"))
    x = torch.arange(3.0)[:, None, None, None].expand(3, 2, 3, 4)
    cells = grid.to_cells(x)
    assert cells.shape == (2, 2, 6, 4)
    assert cells[:, 0, ::3, 0].tolist() == [[1, 0], [0, 2]]
    assert torch.equal(grid.to_rows(cells), x)
    assert (grid.min_prompt_length, grid.shape, grid.is_identity) == (5, (2, 32), False)
    assert PromptGrid.build([0, 0, 1, 1], [1, 1], torch.device("cpu")).is_identity


def test_attention_over_a_shared_prompt_by_hand():
    """One head, D = 1, scale 1: the prompt has key 0 and value 2, the row's own token key ln 3 and value 6.

    The weights are 1/4 and 3/4: 2/4 + 18/4 = 5.
    """
    own = Cache(num_layers=1, max_rows=2, max_prompts=1, max_prompt_length=1)
    assert not own.shares_prompts
    rule = AttentionParams(layer_idx=0, scale=1.0)
    one = torch.ones(1, 1, 1, 1)
    own.prefill_attention([(0, 1, 0)], one, 0 * one, 2 * one, rule)
    grid = PromptGrid.build([0, 0], [1], torch.device("cpu"))
    own.begin_step(grid, torch.zeros(2, dtype=torch.long), (0, 0))
    pair = torch.ones(1, 2, 1, 1)
    out = own.decode_attention(pair, float(np.log(3.0)) * pair, 6 * pair, rule)
    assert torch.allclose(out, 5 * pair)
    own.copy_prompts_to_rows([0, 1], [0, 0])
    own.begin_step(None, torch.ones(2, dtype=torch.long), (1, 1))
    out = own.decode_attention(pair, float(np.log(3.0)) * pair, 6 * pair, rule)
    assert torch.allclose(out, 5 * pair)


def test_the_draw_agrees_with_the_plain_cumulative_distribution():
    """Over several spans, and with tokens of no mass at their edges."""
    torch.manual_seed(0)
    logits = 3 * torch.randn(500, 3 * token_sampling.SPAN_SIZE + 7)
    logits[:, token_sampling.SPAN_SIZE - 1 : token_sampling.SPAN_SIZE + 1] = -torch.inf
    logits[:, -9:] = -torch.inf
    logp = logits.log_softmax(-1)
    uniform = torch.rand(500, dtype=torch.float64)
    uniform[:2] = torch.tensor([0.0, 1 - 2**-53])
    token = token_sampling.sample_tokens(logp, uniform)
    mass = logp.double().exp().cumsum(-1)
    plain = torch.searchsorted(mass, uniform[:, None] * mass[:, -1:], right=True)[:, 0]
    assert int((token[1:] == plain[1:]).sum()) >= 497
    assert torch.isfinite(logp.gather(-1, token[:, None])).all()
    assert token[1] == logp.shape[1] - 10
    # Weights that are no longer numbers are for the guards of training to speak of.
    nowhere = token_sampling.sample_tokens(
        torch.full((2, 70), torch.nan), torch.zeros(2, dtype=torch.float64)
    )
    assert ((nowhere >= 0) & (nowhere < 70)).all()


def test_few_rows_are_filled_up():
    assert [token_sampling.deterministic_row_count(n) for n in (0, 1, 4, 5, 9, 11, 12, 13)] == [
        0,
        4,
        4,
        8,
        12,
        12,
        12,
        13,
    ]
