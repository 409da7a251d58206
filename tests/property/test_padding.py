"""The side, amount and content of padding change nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.models.forward.logprobs import compute_logprobs, compute_outputs
from paretune.models.model_passes import response_logprobs
from support.tiny_models import KINDS, tiny_model
from tinyrows import VOCAB, batch_of, rows

MODELS = {kind: tiny_model(kind, VOCAB, initial=0.3) for kind in KINDS}


def pad_right(x, columns, fill):
    return torch.cat([x, torch.full((len(x), columns), fill, dtype=x.dtype)], 1)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(2, 9), min_size=1, max_size=4),
    columns=st.integers(0, 5),
    fill=st.integers(0, VOCAB - 1),
    seed=st.integers(0, 99),
)
@torch.no_grad()
def test_padding_on_the_right_changes_nothing(kind, lengths, columns, fill, seed):
    input_ids, attention_mask, response_mask = rows(lengths, [1] * len(lengths), seed)
    logp = compute_logprobs(MODELS[kind], input_ids, attention_mask, response_mask)
    padded = pad_right(input_ids.masked_fill(~attention_mask, fill), columns, fill)
    wide = compute_logprobs(
        MODELS[kind],
        padded,
        pad_right(attention_mask, columns, False),
        pad_right(response_mask, columns, False),
    )
    assert torch.allclose(wide[:, : input_ids.shape[1]], logp, atol=1e-5)
    assert (wide[:, input_ids.shape[1] :] == 0).all()
    for b, n in enumerate(lengths):
        alone = compute_logprobs(
            MODELS[kind],
            input_ids[b : b + 1, :n],
            attention_mask[b : b + 1, :n],
            response_mask[b : b + 1, :n],
        )
        assert torch.allclose(alone[0], logp[b, :n], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(2, 9), min_size=2, max_size=4), fill=st.integers(0, VOCAB - 1))
@torch.no_grad()
def test_padding_on_the_left_changes_nothing(kind, lengths, fill):
    input_ids, attention_mask, response_mask = rows(lengths, [1] * len(lengths))
    logp = compute_logprobs(MODELS[kind], input_ids, attention_mask, response_mask)
    width = input_ids.shape[1]
    shift = [(torch.arange(width) + n) % width for n in lengths]  # the padding of a row rolls to its front
    left = [
        torch.stack([x[b][s] for b, s in enumerate(shift)])
        for x in (input_ids, attention_mask, response_mask)
    ]
    out = compute_logprobs(MODELS[kind], left[0].masked_fill(~left[1], fill), left[1], left[2])
    for b, n in enumerate(lengths):
        assert torch.allclose(out[b, width - n :], logp[b, :n], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_no_gradient(kind):
    input_ids, attention_mask, response_mask = rows()

    def gradient(columns, fill):
        model = tiny_model(kind, VOCAB, initial=0.3).double()
        batch = batch_of(
            pad_right(input_ids.masked_fill(~attention_mask, fill), columns, fill),
            pad_right(attention_mask, columns, False),
            pad_right(response_mask, columns, False),
        )
        out = compute_outputs(model, batch, frozenset({"entropy"}))
        assert out.entropy is not None
        (out.logprobs.sum() + 0.1 * out.entropy.sum()).backward()
        return [p.grad for p in model.parameters()]

    # Compares fill 0 with fill 1: the embedding of the padding token gets no gradient either.
    for a, b in zip(gradient(0, 0), gradient(4, 1), strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-12)


def test_row_order_does_not_matter():
    input_ids, attention_mask, response_mask = rows((3, 9, 6, 2), (1, 4, 2, 1))
    batch, order = batch_of(input_ids, attention_mask, response_mask), torch.tensor([2, 0, 3, 1])
    model = MODELS["llama"]
    assert torch.allclose(
        response_logprobs(model, batch.select(order)), response_logprobs(model, batch)[order], atol=1e-6
    )
