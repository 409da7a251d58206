"""Causality: no output at a token depends on later tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.models.critic import critic_from_policy
from paretune.models.forward.logprobs import compute_logprobs, compute_values, hidden_states
from support.tiny_models import KINDS, tiny_model
from tinyrows import VOCAB

MODELS = {kind: tiny_model(kind, VOCAB, initial=0.3) for kind in KINDS}
LENGTH = 9


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    row=st.lists(st.integers(2, VOCAB - 1), min_size=LENGTH, max_size=LENGTH),
    at=st.integers(0, LENGTH - 1),
    other=st.integers(2, VOCAB - 1),
)
@torch.no_grad()
def test_changing_a_token_changes_no_output_before_it(kind, row, at, other):
    model = MODELS[kind]
    changed = [*row[:at], other, *row[at + 1 :]]
    input_ids = torch.tensor([row, changed])
    all_true = torch.ones_like(input_ids).bool()
    logprobs = compute_logprobs(model, input_ids, all_true, all_true)
    hidden = hidden_states(model, input_ids, all_true)
    assert torch.allclose(logprobs[0, :at], logprobs[1, :at], atol=1e-6)
    assert torch.allclose(hidden[0, :at], hidden[1, :at], atol=1e-6)
    if other != row[at]:
        assert not torch.allclose(hidden[0, at], hidden[1, at], atol=1e-6)
        assert at == LENGTH - 1 or bool((logprobs[0, at + 1 :] != logprobs[1, at + 1 :]).any())


def critic_of(kind):
    """A critic with two nonzero heads."""
    critic = critic_from_policy(MODELS[kind], 2)
    weight = critic.network.score.weight
    weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    return critic


CRITICS = {kind: critic_of(kind) for kind in ("llama", "gpt2")}


@pytest.mark.parametrize("kind", CRITICS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    row=st.lists(st.integers(2, VOCAB - 1), min_size=LENGTH, max_size=LENGTH),
    at=st.integers(0, LENGTH - 1),
    other=st.integers(2, VOCAB - 1),
)
@torch.no_grad()
def test_the_value_of_a_state_does_not_depend_on_the_token_sampled_in_it(kind, row, at, other):
    """The value at t is that of the state before token t: changing t changes no value at or before t."""
    changed = [*row[:at], other, *row[at + 1 :]]
    input_ids = torch.tensor([row, changed])
    all_true = torch.ones_like(input_ids).bool()
    values = compute_values(CRITICS[kind], input_ids, all_true, all_true)
    assert (values[:, 0] == 0).all()
    assert torch.allclose(values[0, : at + 1], values[1, : at + 1], atol=1e-6)
    if other != row[at] and at < LENGTH - 1:
        assert not torch.allclose(values[0, at + 1], values[1, at + 1], atol=1e-6)
