"""Run a recipe once on a small fake batch with tiny stand-in models, before any real model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from paretune.batch import Batch
from paretune.credit.keep import KeepBest
from paretune.credit.resample import ResampleByRank
from paretune.credit.select import DropFlatGroups
from paretune.credit.step import steps_of
from paretune.errors import WiringError
from paretune.learn.evolution import Evolution
from paretune.learn.recipe import Recipe
from paretune.learn.refuse import refuse
from paretune.loss.term import total
from paretune.models.forward import run
from paretune.models.measure import Models
from paretune.rollout.sample import Online

PROMPTS, PROMPT, RESPONSE, WORDS = 2, 3, 3, 8
"""Prompts, tokens of a prompt, tokens of a response and vocabulary of the fake batch."""


@dataclass(frozen=True)
class Plan:
    """What the recipe turned out to need."""

    frozen_roles: tuple[str, ...]
    """Frozen models its parts asked for, by role."""
    critic_heads: int
    """Heads its critic must have; 0: it needs none."""
    rows_kept: int
    """Rows of the fake batch that were left after selection."""


class StandInModel(nn.Module):
    """A causal model of one layer, which answers what `models.forward` asks of one of transformers.

    Its hidden state at a token is the mean of what it has read up to there.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        drawn = torch.randn(WORDS, 8, generator=torch.Generator().manual_seed(seed))
        self.words = nn.Embedding.from_pretrained(drawn, freeze=False)
        self.head = nn.Linear(8, WORDS, bias=False, device="meta")  # moves nobody else's chance
        self.head.weight = self.words.weight
        self.config: Any = SimpleNamespace(model_type="stand-in", get_text_config=lambda: self.config)

    def get_input_embeddings(self) -> nn.Module:
        """From tokens to hidden states."""
        return self.words

    def get_output_embeddings(self) -> nn.Module:
        """From hidden states to logits."""
        return self.head

    def base_model(
        self, input_ids: Int[Tensor, "B T"], attention_mask: Int[Tensor, "B T"], **_: Any
    ) -> SimpleNamespace:
        """The hidden states, [B, T, 8]."""
        real = attention_mask[..., None]
        read = (self.words(input_ids) * real).cumsum(1) / real.cumsum(1).clamp(min=1)
        return SimpleNamespace(last_hidden_state=read)


class StandInCritic(nn.Module):
    """A critic of the right shape, and whether it was asked."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads, self.asked = heads, False
        self.values = nn.Parameter(torch.zeros(heads))

    def forward(self, tokens: Int[Tensor, "B T"], attend: Bool[Tensor, "B T"]) -> Float[Tensor, "B T H"]:
        """The same values for every state."""
        self.asked = True
        return self.values.expand(*tokens.shape, -1)


class StandIns(dict[str, nn.Module]):
    """Frozen models of every role; those that were asked for are the keys."""

    def __contains__(self, role: object) -> bool:
        return True

    def __missing__(self, role: str) -> nn.Module:
        return self.setdefault(role, StandInModel(2))


def check(recipe: Recipe | Evolution, objectives: Sequence[str]) -> Plan:
    """The dry run: everything that can be wired wrongly is tried here, in a few milliseconds.

    Raises:
        WiringError: The parts do not fit together; the message names the recipe and the part.
        MissingExtra: A package that a part works by is not installed.
    """
    try:
        scored = recipe.scored(objectives) if objectives else ()
        return _dry_search(recipe, scored) if isinstance(recipe, Evolution) else _dry_run(recipe, scored)
    except WiringError as error:
        raise WiringError(f'recipe "{recipe.name}": {error}') from error


def _dry_run(recipe: Recipe, objectives: tuple[str, ...]) -> Plan:
    if not objectives:
        raise WiringError("there are no objectives; name at least one")
    refuse(recipe)
    rng = torch.Generator().manual_seed(0)
    batch = fake_batch(objectives, recipe.source.n if isinstance(recipe.source, Online) else 2)
    batch, _, _ = recipe.worth.advance(batch, recipe.worth.start(), rng)
    asked, critic = StandIns(), StandInCritic(batch.signal.shape[-1])
    models = Models(policy=StandInModel(1), critic=critic, frozen=asked)
    temperature, rows_kept = recipe.temperature(), len(batch)
    for measure in recipe.measure:
        batch = measure(batch, models, temperature, rows_kept)
    batch, _, _ = recipe.credit.advance(batch, recipe.credit.start(), rng)
    batch = batch.set(weight=recipe.weigh(batch.respond))
    out = run(models.policy, batch, recipe.wants(), temperature=temperature, references=asked, critic=critic)
    loss, _ = total(recipe.losses, out, batch)
    if not loss.requires_grad:
        raise WiringError("no loss of the recipe depends on the policy, so nothing would be learnt")
    return Plan(tuple(sorted(asked)), critic.heads if critic.asked else 0, rows_kept)


def _dry_search(evolution: Evolution, objectives: tuple[str, ...]) -> Plan:
    """Candidates have one number each, and it is the larger the better they score."""
    evolution.search.begin(2, 1.0)
    _dry_run(evolution.fitted.recipe, objectives)
    for step in steps_of(evolution.worth):
        if isinstance(step, KeepBest | ResampleByRank | DropFlatGroups):
            raise WiringError(
                f"{type(step).__name__} leaves out responses; a candidate is worth all of its own"
            )
    levels, state = [], evolution.worth.start()
    for lift in (0.0, -1.0):
        batch = fake_batch(objectives, evolution.source.n)
        raised = batch.set(scores=batch.scores + lift, signal=batch.signal + lift)
        after, state, _ = evolution.worth.advance(raised, state, torch.Generator().manual_seed(0))
        if after.signal.shape[-1] != 1:
            raise WiringError(
                f"a candidate has {after.signal.shape[-1]} signals ({', '.join(objectives)}) and needs one; "
                "fix: add an aggregator (WeightedSum, ...) to `worth`"
            )
        levels.append(after.signal)
    if torch.allclose(levels[0], levels[1]):
        names = ", ".join(type(step).__name__ for step in steps_of(evolution.worth))
        raise WiringError(
            f"{names} only compare the responses to one prompt, and candidates would all be worth the same; "
            "fix: take an aggregator that gives every response a worth of its own, such as weighted"
        )
    return Plan(("reference",), 0, len(batch))


def fake_batch(objectives: tuple[str, ...], n: int) -> Batch:
    """`n` responses to each of two prompts, all scored, all differently."""
    rows, width = PROMPTS * n, PROMPT + RESPONSE
    respond = torch.zeros(rows, width, dtype=torch.bool)
    respond[:, PROMPT:] = True
    scores = torch.linspace(0, 1, rows * len(objectives)).reshape(rows, -1)
    return Batch(
        tokens=torch.arange(rows * width).reshape(rows, width) % WORDS,
        attend=torch.ones_like(respond),
        respond=respond,
        group=torch.arange(PROMPTS).repeat_interleave(n),
        truncated=torch.zeros(rows, dtype=torch.bool),
        objectives=objectives,
        scores=scores,
        signal=scores,
        readable=torch.ones(rows, dtype=torch.bool),
        sampler_logp=torch.where(respond, -1.0, 0.0),
        kind=torch.zeros(rows, dtype=torch.long),
        kinds=("",),
        preference=torch.ones_like(scores),
    )
