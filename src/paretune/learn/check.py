"""Run a recipe once on a small fake batch with tiny stand-in models, before any real model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from paretune.batch import Batch
from paretune.credit.keep import BestOfN
from paretune.credit.resample import ResampleByRank
from paretune.credit.select import DropZeroVarianceGroups
from paretune.credit.step import flatten_steps
from paretune.errors import WiringError
from paretune.learn.evolution import EvolutionSpec
from paretune.learn.recipe import AlgorithmSpec
from paretune.learn.refuse import check_combinations
from paretune.loss.term import total_loss
from paretune.models.forward import compute_outputs
from paretune.models.measure import Models
from paretune.rollout.sample import OnPolicy

NUM_PROMPTS, PROMPT_LENGTH, RESPONSE_LENGTH, VOCAB_SIZE = 2, 3, 3, 8
"""Prompts, tokens of a prompt, tokens of a response and vocabulary of the fake batch."""


@dataclass(frozen=True)
class SpecRequirements:
    """What the recipe turned out to need."""

    frozen_roles: tuple[str, ...]
    """Frozen models its parts asked for, by role."""
    num_critic_heads: int
    """Heads its critic must have; 0: it needs none."""
    num_selected_rows: int
    """Rows of the fake batch that were left after selection."""


class DummyModel(nn.Module):
    """A causal model of one layer, which answers what `models.forward` asks of one of transformers.

    Its hidden state at a token is the mean of what it has read up to there.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        drawn = torch.randn(VOCAB_SIZE, 8, generator=torch.Generator().manual_seed(seed))
        self.embedding = nn.Embedding.from_pretrained(drawn, freeze=False)
        self.lm_head = nn.Linear(8, VOCAB_SIZE, bias=False, device="meta")  # moves nobody else's chance
        self.lm_head.weight = self.embedding.weight
        self.config: Any = SimpleNamespace(model_type="stand-in", get_text_config=lambda: self.config)

    def get_input_embeddings(self) -> nn.Module:
        """From tokens to hidden states."""
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        """From hidden states to logits."""
        return self.lm_head

    def base_model(
        self, input_ids: Int[Tensor, "B T"], attention_mask: Int[Tensor, "B T"], **_: Any
    ) -> SimpleNamespace:
        """The hidden states, [B, T, 8]."""
        real = attention_mask[..., None]
        read = (self.embedding(input_ids) * real).cumsum(1) / real.cumsum(1).clamp(min=1)
        return SimpleNamespace(last_hidden_state=read)


class DummyCritic(nn.Module):
    """A critic of the right shape, and whether it was asked."""

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
    """Frozen models of every role; those that were asked for are the keys."""

    def __contains__(self, role: object) -> bool:
        return True

    def __missing__(self, role: str) -> nn.Module:
        return self.setdefault(role, DummyModel(2))


def check_spec(spec: AlgorithmSpec | EvolutionSpec, objectives: Sequence[str]) -> SpecRequirements:
    """The dry run: everything that can be wired wrongly is tried here, in a few milliseconds.

    Raises:
        WiringError: The parts do not fit together; the message names the recipe and the part.
        MissingExtra: A package that a part works by is not installed.
    """
    try:
        scored = spec.scored_objectives(objectives) if objectives else ()
        return _dry_run_evolution(spec, scored) if isinstance(spec, EvolutionSpec) else _dry_run(spec, scored)
    except WiringError as error:
        raise WiringError(f'recipe "{spec.name}": {error}') from error


def _dry_run(spec: AlgorithmSpec, objectives: tuple[str, ...]) -> SpecRequirements:
    if not objectives:
        raise WiringError("there are no objectives; name at least one")
    check_combinations(spec)
    rng = torch.Generator().manual_seed(0)
    batch = fake_batch(objectives, spec.rollout.num_generations if isinstance(spec.rollout, OnPolicy) else 2)
    batch, _, _ = spec.reward_steps.apply_stateful(batch, spec.reward_steps.init_state(), rng)
    asked, critic = DummyModels(), DummyCritic(batch.rewards.shape[-1])
    models = Models(policy=DummyModel(1), critic=critic, frozen=asked)
    temperature, rows_kept = spec.temperature(), len(batch)
    for measure in spec.model_passes:
        batch = measure(batch, models, temperature, rows_kept)
    batch, _, _ = spec.credit.apply_stateful(batch, spec.credit.init_state(), rng)
    batch = batch.replace(loss_weights=spec.loss_aggregation(batch.response_mask))
    out = compute_outputs(
        models.policy, batch, spec.requires(), temperature=temperature, references=asked, critic=critic
    )
    loss, _ = total_loss(spec.losses, out, batch)
    if not loss.requires_grad:
        raise WiringError("no loss of the recipe depends on the policy, so nothing would be learnt")
    return SpecRequirements(tuple(sorted(asked)), critic.num_heads if critic.was_called else 0, rows_kept)


def _dry_run_evolution(spec: EvolutionSpec, objectives: tuple[str, ...]) -> SpecRequirements:
    """Candidates have one number each, and it is the larger the better they score."""
    spec.strategy.init_state(2, 1.0)
    _dry_run(spec.adapter_phase.spec, objectives)
    for step in flatten_steps(spec.reward_steps):
        if isinstance(step, BestOfN | ResampleByRank | DropZeroVarianceGroups):
            raise WiringError(
                f"{type(step).__name__} leaves out responses; a candidate is worth all of its own"
            )
    levels, state = [], spec.reward_steps.init_state()
    for lift in (0.0, -1.0):
        batch = fake_batch(objectives, spec.rollout.num_generations)
        raised = batch.replace(scores=batch.scores + lift, rewards=batch.rewards + lift)
        after, state, _ = spec.reward_steps.apply_stateful(raised, state, torch.Generator().manual_seed(0))
        if after.rewards.shape[-1] != 1:
            raise WiringError(
                f"a candidate has {after.rewards.shape[-1]} signals ({', '.join(objectives)}) and needs one; "
                "fix: add an aggregator (WeightedSum, ...) to `worth`"
            )
        levels.append(after.rewards)
    if torch.allclose(levels[0], levels[1]):
        names = ", ".join(type(step).__name__ for step in flatten_steps(spec.reward_steps))
        raise WiringError(
            f"{names} only compare the responses to one prompt, and candidates would all be worth the same; "
            "fix: take an aggregator that gives every response a worth of its own, such as weighted"
        )
    return SpecRequirements(("reference",), 0, len(batch))


def fake_batch(objectives: tuple[str, ...], num_generations: int) -> Batch:
    """`num_generations` responses to each of two prompts, all scored, all differently."""
    rows, width = NUM_PROMPTS * num_generations, PROMPT_LENGTH + RESPONSE_LENGTH
    respond = torch.zeros(rows, width, dtype=torch.bool)
    respond[:, PROMPT_LENGTH:] = True
    scores = torch.linspace(0, 1, rows * len(objectives)).reshape(rows, -1)
    return Batch(
        input_ids=torch.arange(rows * width).reshape(rows, width) % VOCAB_SIZE,
        attention_mask=torch.ones_like(respond),
        response_mask=respond,
        group=torch.arange(NUM_PROMPTS).repeat_interleave(num_generations),
        truncated=torch.zeros(rows, dtype=torch.bool),
        objectives=objectives,
        scores=scores,
        rewards=scores,
        format_valid=torch.ones(rows, dtype=torch.bool),
        rollout_logprobs=torch.where(respond, -1.0, 0.0),
        category=torch.zeros(rows, dtype=torch.long),
        categories=("",),
        preference_weights=torch.ones_like(scores),
    )
