"""No answer about a token, and no hidden state, may know that token's successors; nor may padding."""

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
def test_changing_a_token_changes_nothing_before_it(kind, row, at, other):
    model = MODELS[kind]
    changed = [*row[:at], other, *row[at + 1 :]]
    tokens = torch.tensor([row, changed])
    everywhere = torch.ones_like(tokens).bool()
    logp = compute_logprobs(model, tokens, everywhere, everywhere)
    hidden = hidden_states(model, tokens, everywhere)
    assert torch.allclose(logp[0, :at], logp[1, :at], atol=1e-6)
    assert torch.allclose(hidden[0, :at], hidden[1, :at], atol=1e-6)
    if other != row[at]:
        assert not torch.allclose(hidden[0, at], hidden[1, at], atol=1e-6)
        assert at == LENGTH - 1 or bool((logp[0, at + 1 :] != logp[1, at + 1 :]).any())


def critic_of(kind):
    """A critic of two heads that are not 0."""
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
def test_the_value_of_a_state_does_not_know_the_token_chosen_in_it(kind, row, at, other):
    """The value at t is that of the state before token t: changing t moves no value at or before t."""
    changed = [*row[:at], other, *row[at + 1 :]]
    tokens = torch.tensor([row, changed])
    everywhere = torch.ones_like(tokens).bool()
    values = compute_values(CRITICS[kind], tokens, everywhere, everywhere)
    assert (values[:, 0] == 0).all()
    assert torch.allclose(values[0, : at + 1], values[1, : at + 1], atol=1e-6)
    if other != row[at] and at < LENGTH - 1:
        assert not torch.allclose(values[0, at + 1], values[1, at + 1], atol=1e-6)
