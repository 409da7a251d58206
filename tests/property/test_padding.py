"""Left-over padding, its side, its amount and what stands in it change nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.models.forward.logprobs import compute_logprobs, compute_outputs
from paretune.models.model_passes import response_logprobs
from support.tiny_models import KINDS, tiny_model
from tinyrows import VOCAB, batch_of, rows

MODELS = {kind: tiny_model(kind, VOCAB, initial=0.3) for kind in KINDS}


def widened(x, more, fill):
    return torch.cat([x, torch.full((len(x), more), fill, dtype=x.dtype)], 1)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(2, 9), min_size=1, max_size=4),
    more=st.integers(0, 5),
    fill=st.integers(0, VOCAB - 1),
    seed=st.integers(0, 99),
)
@torch.no_grad()
def test_padding_on_the_right(kind, lengths, more, fill, seed):
    tokens, attend, respond = rows(lengths, [1] * len(lengths), seed)
    logp = compute_logprobs(MODELS[kind], tokens, attend, respond)
    padded = widened(tokens.masked_fill(~attend, fill), more, fill)
    wide = compute_logprobs(MODELS[kind], padded, widened(attend, more, False), widened(respond, more, False))
    assert torch.allclose(wide[:, : tokens.shape[1]], logp, atol=1e-5)
    assert (wide[:, tokens.shape[1] :] == 0).all()
    for b, n in enumerate(lengths):
        alone = compute_logprobs(
            MODELS[kind], tokens[b : b + 1, :n], attend[b : b + 1, :n], respond[b : b + 1, :n]
        )
        assert torch.allclose(alone[0], logp[b, :n], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(2, 9), min_size=2, max_size=4), fill=st.integers(0, VOCAB - 1))
@torch.no_grad()
def test_padding_on_the_left(kind, lengths, fill):
    tokens, attend, respond = rows(lengths, [1] * len(lengths))
    logp = compute_logprobs(MODELS[kind], tokens, attend, respond)
    width = tokens.shape[1]
    shift = [(torch.arange(width) + n) % width for n in lengths]  # the padding of a row rolls to its front
    left = [torch.stack([x[b][s] for b, s in enumerate(shift)]) for x in (tokens, attend, respond)]
    out = compute_logprobs(MODELS[kind], left[0].masked_fill(~left[1], fill), left[1], left[2])
    for b, n in enumerate(lengths):
        assert torch.allclose(out[b, width - n :], logp[b, :n], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_no_gradient(kind):
    tokens, attend, respond = rows()

    def gradient(more, fill):
        model = tiny_model(kind, VOCAB, initial=0.3).double()
        batch = batch_of(
            widened(tokens.masked_fill(~attend, fill), more, fill),
            widened(attend, more, False),
            widened(respond, more, False),
        )
        out = compute_outputs(model, batch, frozenset({"entropy"}))
        assert out.entropy is not None
        (out.logprobs.sum() + 0.1 * out.entropy.sum()).backward()
        return [p.grad for p in model.parameters()]

    # The embedding of the padding token gets no gradient either: it is fill 1 that is compared to fill 0.
    for a, b in zip(gradient(0, 0), gradient(4, 1), strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-12)


def test_rows_in_any_order():
    tokens, attend, respond = rows((3, 9, 6, 2), (1, 4, 2, 1))
    batch, order = batch_of(tokens, attend, respond), torch.tensor([2, 0, 3, 1])
    model = MODELS["llama"]
    assert torch.allclose(
        response_logprobs(model, batch.select(order)), response_logprobs(model, batch)[order], atol=1e-6
    )
