"""Averages of weights: by hand, to the bit where nothing is to be averaged, and of adapters by products."""

import copy
import math

import pytest
import torch

from paretune.core.errors import WiringError
from paretune.models.forward.logprobs import compute_logprobs
from paretune.models.load import parameter_hash
from paretune.models.lora import LoraSpec, add_lora
from paretune.models.merge import (
    logprob_drop,
    merge_loras,
    merge_models,
    merge_state_dicts,
    truncate_rank,
    weighted_average,
)
from support.tiny_models import tiny_model
from tinyrows import VOCAB, batch_of, rows


def adapter(b, a):
    return {"layer.lora_A.weight": torch.tensor(a), "layer.lora_B.weight": torch.tensor(b)}


def product(found):
    return found.tensors["layer.lora_B.weight"] @ found.tensors["layer.lora_A.weight"]


def random_adapter(seed, rank, m=9, n=7):
    gen = torch.Generator().manual_seed(seed)
    b, a = torch.randn(m, rank, generator=gen), torch.randn(rank, n, generator=gen)
    return {"layer.lora_A.weight": a, "layer.lora_B.weight": b}


@pytest.mark.parametrize(("share", "want"), [(0.5, [2.0, 1.0]), (0.25, [2.5, 0.0]), (1.0, [1.0, 3.0])])
def test_two_models_by_hand(share, want):
    pair = [{"w": torch.tensor([1.0, 3.0])}, {"w": torch.tensor([3.0, -1.0])}]
    assert merge_state_dicts(pair, (share, 1 - share))["w"].tolist() == want


def test_logits_are_averaged_and_not_probabilities():
    """The policy starts beside the average, so its divergence is not 0 at the first step."""
    blend = weighted_average(
        [torch.tensor([2.0, 0.0]).double(), torch.tensor([-0.5, 0.0]).double()], (0.5, 0.5)
    )

    def divergence(p, q):
        return sum(a * math.log(a / b) for a, b in ((p, q), (1 - p, 1 - q)))

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    mixed, first, policy = float(blend.softmax(0)[0]), sigmoid(2.0), sigmoid(1.5)
    assert (mixed, first, policy) == pytest.approx((0.679179, 0.880797, 0.817574), abs=1e-6)
    assert divergence(policy, first) == pytest.approx(0.0167275, abs=1e-6)
    assert divergence(policy, mixed) == pytest.approx(0.0486386, abs=1e-6)
    assert divergence(first, mixed) == pytest.approx(0.1109393, abs=1e-6)


@pytest.mark.parametrize("weights", [(0.3, 0.7), (1 / 3, 2 / 3), (0.1, 0.9)])
def test_a_model_with_itself_is_itself_to_the_bit(weights):
    model = tiny_model("llama", VOCAB, initial=0.3)
    found = merge_models((model, model), weights)
    assert parameter_hash(found) == parameter_hash(model)
    assert found is not model


def test_the_end_points_are_the_members_to_the_bit():
    pair = tiny_model("gpt2", VOCAB, seed=1), tiny_model("gpt2", VOCAB, seed=2)
    before = [parameter_hash(model) for model in pair]
    assert [parameter_hash(merge_models(pair, w)) for w in ((1.0, 0.0), (0.0, 1.0))] == before
    half = merge_models(pair, (0.5, 0.5))
    assert parameter_hash(half) not in before
    assert [parameter_hash(model) for model in pair] == before
    mean = (pair[0].transformer.wte.weight + pair[1].transformer.wte.weight) / 2
    torch.testing.assert_close(half.transformer.wte.weight, mean)
    assert half.lm_head.weight is half.transformer.wte.weight


def disturbed(seed):
    model = add_lora(tiny_model("llama", VOCAB, initial=0.3), LoraSpec(r=2, alpha=8), seed=seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)), alpha=0.2)
    return model


def test_adapted_models_are_averaged_by_what_their_adapters_add():
    pair = disturbed(1), disturbed(2)
    logp = [compute_logprobs(model, *rows()).detach() for model in pair]
    half = merge_models(pair, (0.5, 0.5))
    assert not any("lora_" in name for name, _ in half.named_parameters())
    merged = [model.merge_and_unload() for model in pair]
    mean = sum(m.model.layers[0].mlp.up_proj.weight for m in merged) / 2
    torch.testing.assert_close(half.model.layers[0].mlp.up_proj.weight, mean)
    assert torch.allclose(
        compute_logprobs(merge_models(pair, (1.0, 0.0)), *rows()).detach(), logp[0], atol=1e-4
    )


@pytest.mark.parametrize(
    ("first", "second", "want"),
    [(([[1.0]], [[2.0]]), ([[3.0]], [[4.0]]), 7.0), (([[2.0]], [[1.0]]), ([[0.0]], [[3.0]]), 1.0)],
)
def test_products_are_averaged_and_not_factors(first, second, want):
    found = merge_loras((adapter(*first), adapter(*second)), (0.5, 0.5), (1.0, 1.0))
    assert product(found).item() == want
    assert (found.rank, found.truncation_error) == (2, 0.0)
    assert product(
        merge_loras((adapter(*first), adapter(*second)), (0.5, 0.5), (1.0, 1.0), rank=1)
    ).item() == (pytest.approx(want))


def test_ranks_and_scalings_may_differ_and_the_average_is_exact():
    one, two = random_adapter(1, 2), random_adapter(2, 3)
    found = merge_loras((one, two), (0.3, 0.7), (4.0, 0.5))
    want = 0.3 * 4.0 * one["layer.lora_B.weight"] @ one["layer.lora_A.weight"]
    want = want + 0.7 * 0.5 * two["layer.lora_B.weight"] @ two["layer.lora_A.weight"]
    torch.testing.assert_close(product(found), want)
    assert found.rank == 5
    assert found.tensors["layer.lora_A.weight"].shape == (5, 7)


@pytest.mark.parametrize("rank", [1, 3, 5, 6, 8])
def test_a_cut_is_the_nearest_of_its_rank_and_says_what_it_lost(rank):
    one, two = random_adapter(1, 2), random_adapter(2, 3)
    whole = product(merge_loras((one, two), (0.5, 0.5), (1.0, 1.0)))
    found = merge_loras((one, two), (0.5, 0.5), (1.0, 1.0), rank=rank)
    assert found.tensors["layer.lora_B.weight"].shape == (9, rank)
    s = torch.linalg.svdvals(whole)
    gap = torch.linalg.svdvals(product(found) - whole)[0]
    assert float(gap) == pytest.approx(float(s[rank]) if rank < 7 else 0.0, abs=1e-4)
    assert found.truncation_error == pytest.approx(float(s[rank:].norm() / s.norm()), abs=1e-5)


def test_an_average_that_cancels_loses_nothing():
    b, a, lost = truncate_rank(torch.zeros(4, 2), torch.randn(2, 3), 1)
    assert lost == 0
    assert (b @ a == 0).all()


def test_what_stands_beside_an_adapter_is_averaged_as_it_is():
    pair = [random_adapter(i, 2) | {"score.weight": torch.full((2,), float(i))} for i in (1, 3)]
    assert merge_loras(pair, (0.5, 0.5), (1.0, 1.0)).tensors["score.weight"].tolist() == [2.0, 2.0]


def test_low_precision_is_averaged_in_high():
    x = torch.tensor([1.0, 256.0]).bfloat16()
    out = weighted_average([x, x + 2], (0.25, 0.75))
    assert out.dtype == torch.bfloat16
    assert out.tolist() == [2.5, 258.0]


def test_members_that_do_not_fit_are_refused():
    one = {"w": torch.zeros(2)}
    with pytest.raises(WiringError, match=r"sum to 1\.5; fix: make the sum 1"):
        merge_state_dicts((one, one), (1.0, 0.5))
    with pytest.raises(WiringError, match="2 members came with 1 weights"):
        merge_state_dicts((one, one), (1.0,))
    with pytest.raises(WiringError, match='member 2 of the soup is of another kind: "v"'):
        merge_state_dicts((one, {"v": torch.zeros(2)}), (0.5, 0.5))
    with pytest.raises(WiringError, match=r'of another size: "w" is \(3,\), in the first \(2,\)'):
        merge_state_dicts((one, {"w": torch.zeros(3)}), (0.5, 0.5))
    with pytest.raises(WiringError, match="has no fractions and differs"):
        merge_state_dicts(({"n": torch.tensor(1)}, {"n": torch.tensor(2)}), (0.5, 0.5))
    with pytest.raises(WiringError, match="use lora_soup"):
        merge_state_dicts((random_adapter(1, 2), random_adapter(2, 2)), (0.5, 0.5))
    with pytest.raises(WiringError, match="no LoRA adapter: use soup_states"):
        merge_loras((one, one), (0.5, 0.5), (1.0, 1.0))
    with pytest.raises(WiringError, match="2 adapters came with 1 scalings"):
        merge_loras((random_adapter(1, 2), random_adapter(2, 2)), (0.5, 0.5), (1.0,))
    with pytest.raises(WiringError, match="of another size"):
        merge_loras((random_adapter(1, 2), random_adapter(2, 2, m=8)), (0.5, 0.5), (1.0, 1.0))
    with pytest.raises(WiringError, match="at least 1"):
        merge_loras((random_adapter(1, 2), random_adapter(2, 2)), (0.5, 0.5), (1.0, 1.0), rank=0)


def test_models_that_answer_alike_and_share_no_weights_have_an_average_that_is_no_model():
    model = tiny_model("llama", VOCAB, initial=0.5)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for layer in twin.model.layers:  # the same function, its hidden units in another order
            for weight in (layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight):
                weight.copy_(weight.flip(0))
            layer.mlp.down_proj.weight.copy_(layer.mlp.down_proj.weight.flip(1))
    batch = batch_of(*rows([6, 9, 4]))
    with torch.no_grad():  # its own likeliest tokens, which the average of strangers finds unlikely
        best = model(batch.input_ids).logits[:, :-1].argmax(-1)
        batch = batch.replace(
            input_ids=torch.cat([batch.input_ids[:, :1], best], 1), response_mask=batch.attention_mask.clone()
        )
    assert logprob_drop(twin, model, batch) == pytest.approx(0, abs=1e-4)
    assert logprob_drop(merge_models((model, model), (0.5, 0.5)), model, batch) == 0
    assert logprob_drop(merge_models((model, twin), (0.5, 0.5)), model, batch) > 0.1
