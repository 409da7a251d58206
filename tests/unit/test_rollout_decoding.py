"""Decoding: a row's text does not depend on other rows, and its log-probabilities are exact."""

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
EOS, PAD = 1, 0


def random_prompts(*lengths):
    rng = np.random.default_rng(0)
    return [rng.integers(2, VOCAB, n).tolist() for n in lengths]


PROMPTS = random_prompts(1, 3, 5, 40, 41, 90)


def sample(
    model, prompts=PROMPTS, n=5, max_new_tokens=30, temperature=0.9, eos_ids=(EOS,), seed=0, **options
):
    uniform = np.random.default_rng(seed).random((len(prompts) * n, max_new_tokens))
    prompt_of_row = [i for i in range(len(prompts)) for _ in range(n)]
    return decode(
        model,
        prompts,
        prompt_of_row,
        uniform,
        eos_ids=eos_ids,
        temperature=temperature,
        pad_id=PAD,
        **options,
    ), prompt_of_row


def max_logprob_error(model, out, prompt_of_row, prompts=PROMPTS, temperature=0.9):
    """The largest difference from a forward pass over each row alone."""
    max_error = 0.0
    for ids, logprobs, prompt in zip(out.token_ids, out.logprobs, prompt_of_row, strict=True):
        input_ids = torch.tensor([prompts[prompt] + ids])
        response_mask = torch.arange(input_ids.shape[1])[None] >= len(prompts[prompt])
        with torch.no_grad():
            expected = compute_logprobs(
                model, input_ids, torch.ones_like(response_mask), response_mask, temperature=temperature
            )[response_mask]
        max_error = max(max_error, float((expected - torch.from_numpy(logprobs)).abs().max()))
    return max_error


def small_model(kind="llama", **options):
    return tiny_model(kind, VOCAB, initial=0.25, **options)


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
        eos_token_id=EOS,
        bos_token_id=None,
    )
    # The expected values need the eager attention of transformers: only that one supports the soft cap.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def phi():
    """A family without support for custom attention, which is decoded in static batches."""
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


@pytest.mark.parametrize("max_rows", [1, 3, 7, 1000])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_number_of_slots_does_not_change_the_texts(kind, max_rows):
    model = small_model(kind)
    expected, _ = sample(model)
    other, prompt_of_row = sample(model, max_rows=max_rows)
    assert other.token_ids == expected.token_ids
    assert other.truncated == expected.truncated
    assert len({len(ids) for ids in expected.token_ids}) > 5
    assert any(expected.truncated)
    assert max_logprob_error(model, other, prompt_of_row) < 1e-5


def test_rows_that_are_admitted_late_match_a_call_of_their_own():
    model = small_model()
    together, prompt_of_row = sample(model, max_rows=7)
    uniform = np.random.default_rng(0).random((30, 30))
    for i, prompt in enumerate(PROMPTS):
        rows = [row for row, p in enumerate(prompt_of_row) if p == i]
        alone = decode(
            model, [prompt], [0] * 5, uniform[rows], eos_ids=(EOS,), temperature=0.9, pad_id=PAD, max_rows=5
        )
        assert alone.token_ids == tuple(together.token_ids[row] for row in rows)


@pytest.mark.parametrize("kind", KINDS)
def test_logprobs_match_a_forward_pass_of_each_row_alone(kind):
    model = small_model(kind)
    out, prompt_of_row = sample(model, max_rows=8)
    assert max_logprob_error(model, out, prompt_of_row) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_short_prompts_are_copied_to_their_rows(kind):
    prompts = PROMPTS[:3] + random_prompts(32)
    model = small_model(kind)
    out, prompt_of_row = sample(model, prompts, max_rows=6, max_new_tokens=60)
    assert out.token_ids == sample(model, prompts, max_new_tokens=60)[0].token_ids
    assert max(len(ids) for ids in out.token_ids) == 60
    assert max_logprob_error(model, out, prompt_of_row, prompts) < 1e-5


@pytest.mark.parametrize("lengths", [(1, 3, 20), (1, 40)])
@pytest.mark.parametrize("window", [1, 2, 7, 33, 64])
def test_sliding_windows_that_start_in_prompt_or_response(window, lengths):
    model, prompts = small_model("mistral", sliding_window=window), random_prompts(*lengths)
    out, prompt_of_row = sample(model, prompts, max_rows=4)
    assert max_logprob_error(model, out, prompt_of_row, prompts) < 1e-5


def test_soft_cap_sliding_window_and_a_single_key_head():
    model = gemma2()
    assert supports_custom_attention(model)
    out, prompt_of_row = sample(model, max_rows=8)
    assert max_logprob_error(model, out, prompt_of_row) < 1e-5


def test_tables_grow_and_sums_are_blocked(monkeypatch):
    """Prompts and responses longer than a block and than the initial width of the rows' tables."""
    monkeypatch.setattr(kv_cache, "SUM_BLOCK_SIZE", 16)
    monkeypatch.setattr(kv_cache, "INITIAL_ROW_WIDTH", 16)
    model = small_model()
    out, prompt_of_row = sample(model, max_rows=8, max_new_tokens=120)
    assert max(len(ids) for ids in out.token_ids) > 64
    assert max_logprob_error(model, out, prompt_of_row) < 2e-5


def test_one_response_per_prompt():
    model = small_model()
    out, prompt_of_row = sample(model, n=1, max_rows=2)
    assert out.token_ids == sample(model, n=1)[0].token_ids
    assert max_logprob_error(model, out, prompt_of_row) < 1e-5


def test_rows_that_end_at_the_first_token_or_never():
    model = small_model()
    first, _ = sample(model, eos_ids=tuple(range(VOCAB)), max_rows=4)
    assert all(len(ids) == 1 for ids in first.token_ids)
    assert not any(first.truncated)
    never, _ = sample(model, eos_ids=(VOCAB + 1,), max_rows=4, max_new_tokens=9)
    assert all(len(ids) == 9 for ids in never.token_ids)
    assert all(never.truncated)
    single, _ = sample(model, max_new_tokens=1, max_rows=4)
    assert [len(ids) for ids in single.token_ids] == [1] * 30


def test_models_with_adapters_and_int8_models_are_sampled():
    adapted = add_lora(small_model("qwen2"), LoraSpec(r=4), seed=0)
    with torch.no_grad():
        for p in adapted.parameters():
            if p.requires_grad:
                p.add_(0.02)
    out, prompt_of_row = sample(adapted, max_rows=8)
    assert max_logprob_error(adapted, out, prompt_of_row) < 1e-5
    assert out.token_ids != sample(small_model("qwen2"))[0].token_ids
    # Quantization amplifies differences in the last bit to a quantization step, hence the larger tolerance.
    twin = int8_copy(small_model())
    out, prompt_of_row = sample(twin, max_rows=8)
    assert max_logprob_error(twin, out, prompt_of_row) < 0.3


def test_unsupported_families_are_decoded_in_static_batches():
    model = phi()
    assert not supports_custom_attention(model)
    expected, _ = sample(model)
    for max_rows in (1, 7):
        other, prompt_of_row = sample(model, max_rows=max_rows)
        assert other.token_ids == expected.token_ids
        assert max_logprob_error(model, other, prompt_of_row) < 1e-5


def test_prompts_are_prefilled_once_and_without_padding(monkeypatch):
    model = small_model()
    num_tokens = []
    forward = continuous_batching.BatchScheduler._forward

    def counting_forward(self, input_ids, position_ids, attention_fn):
        num_tokens.append(len(input_ids))
        return forward(self, input_ids, position_ids, attention_fn)

    monkeypatch.setattr(continuous_batching.BatchScheduler, "_forward", counting_forward)
    out, _ = sample(model, max_rows=4)
    # Every token is read once, except the last tokens of responses, which predict nothing.
    assert sum(num_tokens) == sum(map(len, PROMPTS)) + sum(len(ids) - 1 for ids in out.token_ids)
    num_tokens.clear()
    monkeypatch.setattr(continuous_batching, "MAX_PREFILL_TOKENS", 50)
    assert sample(model)[0].token_ids == out.token_ids
    assert 90 in num_tokens  # a prompt that exceeds the limit is a pass of its own


def test_the_models_own_attention_is_restored_after_decoding():
    model = small_model()
    original = model.config._attn_implementation
    input_ids = torch.tensor([PROMPTS[3]])
    with torch.no_grad():
        before = model(input_ids=input_ids).logits
        sample(model)
        assert model.config._attn_implementation == original
        assert torch.equal(model(input_ids=input_ids).logits, before)


def test_grid_cells_repeat_row_zero_if_empty_and_map_back_to_rows():
    """Prompts with 1 and 2 rows in a grid of 2 x 2 cells."""
    grid = PromptGrid.build([1, 0, 1], [5, 20], torch.device("cpu"))
    x = torch.arange(3.0)[:, None, None, None].expand(3, 2, 3, 4)
    cells = grid.to_cells(x)
    assert cells.shape == (2, 2, 6, 4)
    assert cells[:, 0, ::3, 0].tolist() == [[1, 0], [0, 2]]
    assert torch.equal(grid.to_rows(cells), x)
    assert (grid.min_prompt_length, grid.shape, grid.is_identity) == (5, (2, 32), False)
    assert PromptGrid.build([0, 0, 1, 1], [1, 1], torch.device("cpu")).is_identity


def test_attention_over_a_shared_prompt_by_hand():
    """One head, D = 1, scale 1: the prompt has key 0 and value 2, the row's token key ln 3 and value 6.

    The weights are 1/4 and 3/4: 2/4 + 18/4 = 5.
    """
    cache = Cache(num_layers=1, max_rows=2, max_prompts=1, max_prompt_length=1)
    assert not cache.shares_prompts
    params = AttentionParams(layer_idx=0, scale=1.0)
    one = torch.ones(1, 1, 1, 1)
    cache.prefill_attention([(0, 1, 0)], one, 0 * one, 2 * one, params)
    grid = PromptGrid.build([0, 0], [1], torch.device("cpu"))
    cache.begin_step(grid, torch.zeros(2, dtype=torch.long), (0, 0))
    pair = torch.ones(1, 2, 1, 1)
    out = cache.decode_attention(pair, float(np.log(3.0)) * pair, 6 * pair, params)
    assert torch.allclose(out, 5 * pair)
    cache.copy_prompts_to_rows([0, 1], [0, 0])
    cache.begin_step(None, torch.ones(2, dtype=torch.long), (1, 1))
    out = cache.decode_attention(pair, float(np.log(3.0)) * pair, 6 * pair, params)
    assert torch.allclose(out, 5 * pair)


def test_sampled_tokens_match_the_plain_cumulative_distribution():
    """Over several spans, with tokens of probability 0 at their edges."""
    torch.manual_seed(0)
    logits = 3 * torch.randn(500, 3 * token_sampling.SPAN_SIZE + 7)
    logits[:, token_sampling.SPAN_SIZE - 1 : token_sampling.SPAN_SIZE + 1] = -torch.inf
    logits[:, -9:] = -torch.inf
    logprobs = logits.log_softmax(-1)
    uniform = torch.rand(500, dtype=torch.float64)
    uniform[:2] = torch.tensor([0.0, 1 - 2**-53])
    token = token_sampling.sample_tokens(logprobs, uniform)
    cumulative = logprobs.double().exp().cumsum(-1)
    expected = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)[:, 0]
    assert int((token[1:] == expected[1:]).sum()) >= 497
    assert torch.isfinite(logprobs.gather(-1, token[:, None])).all()
    assert token[1] == logprobs.shape[1] - 10
    # NaN must not raise here: the guards of training report it.
    from_nan = token_sampling.sample_tokens(
        torch.full((2, 70), torch.nan), torch.zeros(2, dtype=torch.float64)
    )
    assert ((from_nan >= 0) & (from_nan < 70)).all()


def test_small_batches_are_filled_up():
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
