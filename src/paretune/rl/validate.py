"""Parts that are sound alone and mean nothing, or the same thing twice, together. Each refusal names both.

Run a recipe once on a small fake batch with tiny stand-in models, before any real model is loaded.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from paretune.core.batch import Batch
from paretune.core.errors import WiringError
from paretune.credit.base import CreditStep, flatten_steps
from paretune.credit.constraints import Lagrangian
from paretune.credit.importance_sampling import TruncatedImportanceSampling
from paretune.credit.normalization import (
    BatchNormalize,
    BroadcastToTokens,
    GroupNormalize,
    LeaveOneOut,
    RunningNormalize,
    Whiten,
)
from paretune.credit.returns import Gae, ReturnToGo
from paretune.credit.scalarization import HypervolumeGuidedWeighting
from paretune.credit.selection import BestOfN, DropZeroVarianceGroups, ResampleByRank
from paretune.credit.shaping import ClipReward, KlPenalty, OverlongPenalty, TerminalReward
from paretune.loss.base import total_loss
from paretune.loss.kl import KlToReference
from paretune.loss.listwise import PreferenceRanking
from paretune.loss.pairwise import PairLoss
from paretune.models.forward.logprobs import compute_outputs
from paretune.models.lora import AdapterDisabledModel
from paretune.models.model_passes import Models, OldLogprobs
from paretune.rl.algorithm_spec import AlgorithmSpec
from paretune.rl.evolution.spec import EvolutionSpec
from paretune.rollout.sampler import OnPolicy

PER_TOKEN_STEPS = (Gae, ReturnToGo)
"""Steps that read rewards on tokens."""


def check_combinations(spec: AlgorithmSpec) -> None:
    """Look at the parts of a recipe two by two.

    Raises:
        WiringError: Two of them contradict each other, or one makes the other inert.
    """
    steps = [*flatten_steps(spec.reward_steps), *flatten_steps(spec.credit)]
    for rule in COMBINATION_RULES:
        for wrong in rule(spec, steps):
            raise WiringError(wrong)


def check_frozen_models(roles: Sequence[str], frozen: Mapping[str, nn.Module]) -> None:
    """Look at the models that parts ask for by their role.

    Raises:
        WiringError: A role other than the reference is played by the policy without its adapter.
    """
    for role in roles:
        if role != "reference" and isinstance(frozen.get(role), AdapterDisabledModel):
            raise WiringError(
                f'the frozen model "{role}" is the policy with its adapter off (AdapterOff), which is the '
                f'model that was adapted and no other; fix: load "{role}", or ask Reference("reference")'
            )


def _duplicate_kl_penalty(spec: AlgorithmSpec, steps: Sequence[CreditStep]) -> Iterator[str]:
    reward = next((s for s in steps if isinstance(s, KlPenalty) and s.kl_coef), None)
    loss = next((t for t in spec.losses if isinstance(t.loss, KlToReference) and t.coefficient), None)
    if reward and loss:
        yield (
            f"the divergence from the reference is charged twice, by KlPenalty({reward.kl_coef:g}) in "
            f"the reward and by KlToReference with the coefficient {loss.coefficient:g} in the loss; "
            "fix: leave out one of the two"
        )


def _unused_token_rewards(spec: AlgorithmSpec, steps: Sequence[CreditStep]) -> Iterator[str]:
    writers = [s for s in steps if isinstance(s, TerminalReward) or _is_token_kl_penalty(s)]
    if writers and not any(isinstance(s, PER_TOKEN_STEPS) for s in steps):
        name = type(writers[-1]).__name__
        reader = "Spread gives every token the signal of its response"
        yield (
            f"{name} pays on tokens, and {reader if _contains_step(steps, BroadcastToTokens) else 'nobody reads it'}; "
            'fix: Gae or ReturnToGo instead, or for a price of divergence KlPenalty(on="response")'
        )


def _is_token_kl_penalty(step: CreditStep) -> bool:
    return isinstance(step, KlPenalty) and step.level == "tokens"


def _overwritten_advantages(spec: AlgorithmSpec, steps: Sequence[CreditStep]) -> Iterator[str]:
    """A group advantage after one by token leaves nothing of it."""
    first = next((i for i, s in enumerate(steps) if isinstance(s, PER_TOKEN_STEPS)), len(steps))
    if _contains_step(steps[first:], BroadcastToTokens):
        name = type(steps[first]).__name__
        yield f"Spread overwrites the advantages of tokens that {name} wrote; fix: leave out one of the two"


def _ineffective_scaling(spec: AlgorithmSpec, steps: Sequence[CreditStep]) -> Iterator[str]:
    """A scale, and for a group also a shift, does not survive a division by the spread."""
    for i, step in enumerate(steps):
        scale = isinstance(step, RunningNormalize | HypervolumeGuidedWeighting) or step == GroupNormalize(
            "none"
        )
        if not scale:
            continue
        for later in steps[i + 1 :]:
            if _divides_by_std(later, isinstance(step, HypervolumeGuidedWeighting)):
                between = ", or put a Clip between" if isinstance(step, RunningNormalize) else ""
                yield (
                    f"{type(step).__name__} has no effect before {type(later).__name__}, which divides its "
                    f"scale out again; fix: leave out one of the two{between}"
                )
            if not isinstance(later, DropZeroVarianceGroups | TruncatedImportanceSampling):
                break


def _divides_by_std(step: CreditStep, is_global_scale: bool) -> bool:
    if isinstance(step, GroupNormalize | LeaveOneOut):
        return step.scale_rewards == "std"
    return is_global_scale and isinstance(step, BatchNormalize | Whiten)


def _whiten_before_lagrangian(spec: AlgorithmSpec, steps: Sequence[CreditStep]) -> Iterator[str]:
    """Weights of objectives that all have the same spread are no longer those of the scores."""
    for i, step in enumerate(steps):
        later = [s for s in steps[i:] if isinstance(s, Lagrangian) and s.apply_to == "advantages"]
        if isinstance(step, Whiten) and step.apply_to == "advantages" and later:
            yield (
                'Whiten comes before Lagrangian(on="advantages"), whose multipliers are in the units of the '
                "scores; fix: put Whiten after it"
            )


def _trivial_importance_ratio(spec: AlgorithmSpec, steps: Sequence[CreditStep]) -> Iterator[str]:
    if _contains_step(steps, TruncatedImportanceSampling) and OldLogprobs("sampler") in spec.model_passes:
        yield (
            'TruncatedImportance compares the trainer with the sampler, and Behaviour(by="sampler") takes '
            "the sampler's word for the trainer's: every ratio is 1; fix: Behaviour(by=\"trainer\")"
        )


def _zero_coefficient_losses(spec: AlgorithmSpec, steps: Sequence[CreditStep]) -> Iterator[str]:
    for term in spec.losses:
        if term.coefficient == 0:
            yield f"{type(term.loss).__name__} has the coefficient 0; fix: leave the term out"


def _too_few_responses(spec: AlgorithmSpec, steps: Sequence[CreditStep]) -> Iterator[str]:
    """Losses on pairs and rankings need two responses to a prompt."""
    names = [
        type(term.loss).__name__
        for term in spec.losses
        if isinstance(term.loss, PairLoss | PreferenceRanking)
    ]
    alone = next((step for step in steps if isinstance(step, BestOfN) and step.k == 1), None)
    if names and alone is not None:
        yield (
            f"KeepBest keeps one response to a prompt, and {names[0]} compares several; "
            f"fix: leave out KeepBest, or Likelihood instead of {names[0]}"
        )
    if names and isinstance(spec.rollout, OnPolicy) and spec.rollout.num_generations == 1:
        yield f"{names[0]} compares responses to one prompt, and n is 1; fix: n of 2 or more"


def _penalty_after_broadcast(spec: AlgorithmSpec, steps: Sequence[CreditStep]) -> Iterator[str]:
    """Prices that are charged after the last comparison are not compared with anybody's."""
    first = next((i for i, s in enumerate(steps) if isinstance(s, BroadcastToTokens)), len(steps))
    for step in steps[first:]:
        late = isinstance(step, OverlongPenalty) or (
            isinstance(step, ClipReward) and step.apply_to == "signal"
        )
        if late or (isinstance(step, KlPenalty) and step.level == "response"):
            name = type(step).__name__
            yield f"{name} changes the signal after Spread has read it; fix: put {name} before Spread"


def _contains_step(steps: Sequence[CreditStep], step_type: type[CreditStep]) -> bool:
    return any(isinstance(step, step_type) for step in steps)


COMBINATION_RULES: tuple[Callable[[AlgorithmSpec, Sequence[CreditStep]], Iterator[str]], ...] = (
    _duplicate_kl_penalty,
    _unused_token_rewards,
    _overwritten_advantages,
    _ineffective_scaling,
    _whiten_before_lagrangian,
    _trivial_importance_ratio,
    _zero_coefficient_losses,
    _penalty_after_broadcast,
    _too_few_responses,
)


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
