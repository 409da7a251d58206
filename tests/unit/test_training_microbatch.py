"""Micro-batches count computed tokens: shared prompts once if the model is packed, else padded rows."""

import pytest
import torch

from paretune.models.critic import critic_from_policy
from paretune.models.model_passes import response_logprobs
from paretune.training.microbatch import example_microbatch_indices, microbatch_indices
from support.tiny_models import tiny_model
from tinyrows import VOCAB, batch_of

MODEL = tiny_model("llama", VOCAB, initial=0.3)


def two_prompts():
    """Two prompts of 20 tokens with four responses of 3 tokens each."""
    rng = torch.Generator().manual_seed(0)
    prompts = torch.randint(2, VOCAB, (2, 1, 20), generator=rng).expand(-1, 4, -1).reshape(8, 20)
    tokens = torch.cat([prompts, torch.randint(2, VOCAB, (8, 3), generator=rng)], 1)
    respond = torch.zeros_like(tokens).bool()
    respond[:, 20:] = True
    return batch_of(tokens, torch.ones_like(tokens).bool(), respond)


@pytest.fixture
def padded(monkeypatch):
    monkeypatch.setattr("paretune.models.forward.attention.SUPPORTED_MODEL_TYPES", frozenset())


def test_prompt_counts_once_for_its_responses():
    batch = two_prompts()
    assert microbatch_indices(batch, 64, [MODEL], by_group=False) == [list(range(8))]
    assert microbatch_indices(batch, 63, [MODEL], by_group=False) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert microbatch_indices(batch, 26, [MODEL, critic_from_policy(MODEL, 1)], by_group=False) == [
        [0, 1],
        [2, 3],
        [4, 5],
        [6, 7],
    ]
    alternate = batch.replace(group=torch.arange(8) % 2)
    assert microbatch_indices(alternate, 26, [MODEL], by_group=True) == [[0, 2, 4, 6], [1, 3, 5, 7]]


@pytest.mark.usefixtures("padded")
def test_every_row_counts_with_padding():
    assert microbatch_indices(two_prompts(), 64, [MODEL], by_group=False) == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_examples_are_counted_without_padding():
    lengths = [[10, 2], [9], [1], [8]]
    assert example_microbatch_indices(lengths, 21, MODEL) == [[0, 1], [3, 2]]
    assert example_microbatch_indices(lengths, 5, MODEL) == [[0], [1], [3], [2]]


@pytest.mark.usefixtures("padded")
def test_examples_are_counted_with_padding():
    assert list(example_microbatch_indices([[10, 2], [9], [8]], 21, MODEL)) == [[0], [1, 2]]


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_no_grad_passes_of_any_size_give_the_same_logprobs(rows):
    batch, order = two_prompts(), torch.tensor([3, 6, 0, 5, 1, 2, 7, 4])
    whole = response_logprobs(MODEL, batch)
    assert torch.allclose(
        response_logprobs(MODEL, batch.select(order), rows_per_pass=rows), whole[order], atol=1e-5
    )
