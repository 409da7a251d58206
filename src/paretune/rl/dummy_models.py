"""A small fake batch and tiny models, for the dry run of an algorithm before a real model is loaded."""

from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from paretune.core.batch import Batch

NUM_PROMPTS, PROMPT_LENGTH, RESPONSE_LENGTH, VOCAB_SIZE = 2, 3, 3, 8
"""Prompts, tokens per prompt, tokens per response and vocabulary of the fake batch."""
STORED_RESPONSES_PER_PROMPT = 2
"""Responses per prompt of the fake batch if they are stored: the fewest that can be compared."""


class DummyModel(nn.Module):
    """A causal language model of one layer, with the interface that `models.forward` uses of transformers.

    The hidden state of a token is the mean of the embeddings up to it.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        weight = torch.randn(VOCAB_SIZE, 8, generator=torch.Generator().manual_seed(seed))
        self.embedding = nn.Embedding.from_pretrained(weight, freeze=False)
        # On "meta" its initialization draws nothing from the global generator, which belongs to the run.
        self.lm_head = nn.Linear(8, VOCAB_SIZE, bias=False, device="meta")
        self.lm_head.weight = self.embedding.weight
        self.config: Any = SimpleNamespace(model_type="stand-in", get_text_config=lambda: self.config)

    def get_input_embeddings(self) -> nn.Module:
        """The embedding layer."""
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        """The LM head."""
        return self.lm_head

    def base_model(
        self, input_ids: Int[Tensor, "B T"], attention_mask: Int[Tensor, "B T"], **_: Any
    ) -> SimpleNamespace:
        """The hidden states, [B, T, 8]."""
        mask = attention_mask[..., None]
        means = (self.embedding(input_ids) * mask).cumsum(1) / mask.cumsum(1).clamp(min=1)
        return SimpleNamespace(last_hidden_state=means)


class DummyCritic(nn.Module):
    """A critic with constant values; `was_called` tells if a part used it."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.was_called = num_heads, False
        self.values = nn.Parameter(torch.zeros(num_heads))

    def forward(
        self, input_ids: Int[Tensor, "B T"], attention_mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T H"]:
        """The same values for every state."""
        self.was_called = True
        return self.values.expand(*input_ids.shape, -1)


class DummyModels(dict[str, nn.Module]):
    """Frozen models of every role; the keys are the roles that parts used."""

    def __contains__(self, role: object) -> bool:
        return True

    def __missing__(self, role: str) -> nn.Module:
        return self.setdefault(role, DummyModel(2))


def fake_batch(objectives: tuple[str, ...], num_generations: int) -> Batch:
    """`num_generations` responses to each of two prompts, with distinct scores.

    Distinct, because a group whose rewards are all equal has zero advantages and would hide mistakes.
    """
    rows, width = NUM_PROMPTS * num_generations, PROMPT_LENGTH + RESPONSE_LENGTH
    response_mask = torch.zeros(rows, width, dtype=torch.bool)
    response_mask[:, PROMPT_LENGTH:] = True
    scores = torch.linspace(0, 1, rows * len(objectives)).reshape(rows, -1)
    return Batch(
        input_ids=torch.arange(rows * width).reshape(rows, width) % VOCAB_SIZE,
        attention_mask=torch.ones_like(response_mask),
        response_mask=response_mask,
        group=torch.arange(NUM_PROMPTS).repeat_interleave(num_generations),
        truncated=torch.zeros(rows, dtype=torch.bool),
        objectives=objectives,
        scores=scores,
        rewards=scores,
        format_valid=torch.ones(rows, dtype=torch.bool),
        rollout_logprobs=torch.where(response_mask, -1.0, 0.0),
        weight_version=torch.zeros(rows, dtype=torch.long),
        category=torch.zeros(rows, dtype=torch.long),
        categories=("",),
        preference_weights=torch.ones_like(scores),
    )


def uneven_batch(batch: Batch) -> Batch:
    """A fake batch with what real ones have: equal rewards for a prompt, and a response without a score.

    All responses to the first prompt have the same scores; the last response is not scored and truncated.
    """
    scores = torch.where((batch.group == 0)[:, None], batch.scores[:1], batch.scores)
    scores[-1] = torch.nan
    truncated = batch.truncated.clone()
    truncated[-1] = True
    return batch.replace(scores=scores, rewards=scores, truncated=truncated)
