"""Validation of an algorithm spec: combinations of parts that contradict each other, and a dry run.

The dry run sends a fake batch through all parts with tiny stand-in models, before a real model is loaded.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from paretune.core.batch import Batch
from paretune.core.errors import WiringError
from paretune.core.requirements import Requirements
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
from paretune.reward.function_calls import Attempt
from paretune.rl.algorithm_spec import AlgorithmSpec
from paretune.rl.evolution.spec import EvolutionSpec
from paretune.rl.user_parts import user_part_error

PER_TOKEN_STEPS = (Gae, ReturnToGo)
"""Steps that read rewards on tokens."""


def check_combinations(spec: AlgorithmSpec) -> None:
    """Check the parts of a spec pairwise.

    Raises:
        WiringError: Two parts contradict each other, or one makes the other ineffective.
    """
    steps = [*flatten_steps(spec.reward_steps), *flatten_steps(spec.credit)]
    for rule in COMBINATION_RULES:
        for issue in rule(spec, steps):
            raise WiringError(issue)


def check_frozen_models(roles: Sequence[str], frozen: Mapping[str, nn.Module]) -> None:
    """Check the frozen models that parts use by role.

    Raises:
        WiringError: A role other than "reference" has the policy with its adapter disabled.
    """
    for role in roles:
        if role != "reference" and isinstance(frozen.get(role), AdapterDisabledModel):
            raise WiringError(
                f'the frozen model "{role}" is the policy with its adapter disabled (AdapterDisabledModel), '
                f'which is the reference; fix: load "{role}", or use RefLogprobs("reference")'
            )


def _duplicate_kl_penalty(spec: AlgorithmSpec, steps: Sequence[CreditStep]) -> Iterator[str]:
    reward = next((s for s in steps if isinstance(s, KlPenalty) and s.kl_coef), None)
    loss = next((t for t in spec.losses if isinstance(t.loss, KlToReference) and t.coefficient), None)
    if reward and loss:
        yield (
            f"the KL penalty to the reference is applied twice, by KlPenalty({reward.kl_coef:g}) in the "
            f"reward and by KlToReference with coefficient {loss.coefficient:g} in the loss; "
            "fix: leave out one of the two"
        )


def _unused_token_rewards(spec: AlgorithmSpec, steps: Sequence[CreditStep]) -> Iterator[str]:
    writers = [s for s in steps if isinstance(s, TerminalReward) or _is_token_kl_penalty(s)]
    if writers and not any(isinstance(s, PER_TOKEN_STEPS) for s in steps):
        name = type(writers[-1]).__name__
        broadcast = "BroadcastToTokens gives every token the reward of its response"
        reader = broadcast if _contains_step(steps, BroadcastToTokens) else "no step reads them"
        yield (
            f"{name} writes token rewards, and {reader}; fix: Gae or ReturnToGo instead, or for a KL penalty "
            'KlPenalty(level="sequence")'
        )


def _is_token_kl_penalty(step: CreditStep) -> bool:
    return isinstance(step, KlPenalty) and step.level == "token"


def _overwritten_advantages(spec: AlgorithmSpec, steps: Sequence[CreditStep]) -> Iterator[str]:
    """A group advantage replaces per-token advantages that were computed before it."""
    first = next((i for i, s in enumerate(steps) if isinstance(s, PER_TOKEN_STEPS)), len(steps))
    if _contains_step(steps[first:], BroadcastToTokens):
        name = type(steps[first]).__name__
        yield f"BroadcastToTokens overwrites the token advantages of {name}; fix: leave out one of them"


def _ineffective_scaling(spec: AlgorithmSpec, steps: Sequence[CreditStep]) -> Iterator[str]:
    """A scale, and within a group also a shift, has no effect before division by the standard deviation."""
    for i, step in enumerate(steps):
        scale = isinstance(step, RunningNormalize | HypervolumeGuidedWeighting) or step == GroupNormalize(
            "none"
        )
        if not scale:
            continue
        for later in steps[i + 1 :]:
            if _divides_by_std(later, isinstance(step, HypervolumeGuidedWeighting)):
                # A clip in between makes the scale matter: it decides what is clipped.
                between = ", or put a ClipReward between" if isinstance(step, RunningNormalize) else ""
                yield (
                    f"{type(step).__name__} has no effect before {type(later).__name__}, which divides by "
                    f"the standard deviation; fix: leave out one of the two{between}"
                )
            if not isinstance(later, DropZeroVarianceGroups | TruncatedImportanceSampling):
                break


def _divides_by_std(step: CreditStep, is_global_scale: bool) -> bool:
    if isinstance(step, GroupNormalize | LeaveOneOut):
        return step.scale_rewards != "none"
    return is_global_scale and isinstance(step, BatchNormalize | Whiten)


def _whiten_before_lagrangian(spec: AlgorithmSpec, steps: Sequence[CreditStep]) -> Iterator[str]:
    """Multipliers apply to the units of the scores, and whitened objectives have lost them."""
    for i, step in enumerate(steps):
        later = [s for s in steps[i:] if isinstance(s, Lagrangian) and s.apply_to == "advantages"]
        if isinstance(step, Whiten) and step.apply_to == "advantages" and later:
            yield (
                'Whiten comes before Lagrangian(apply_to="advantages"), whose multipliers are in the units '
                "of the scores; fix: put Whiten after it"
            )


def _trivial_importance_ratio(spec: AlgorithmSpec, steps: Sequence[CreditStep]) -> Iterator[str]:
    if _contains_step(steps, TruncatedImportanceSampling) and OldLogprobs("rollout") in spec.model_passes:
        yield (
            'TruncatedImportanceSampling compares trainer and sampler, and OldLogprobs(source="rollout") '
            "takes the log-probabilities of the sampler for both: every ratio is 1; "
            'fix: OldLogprobs(source="policy")'
        )


def _zero_coefficient_losses(spec: AlgorithmSpec, steps: Sequence[CreditStep]) -> Iterator[str]:
    for term in spec.losses:
        if term.coefficient == 0:
            yield f"{type(term.loss).__name__} has coefficient 0; fix: leave the term out"


def _too_few_responses(spec: AlgorithmSpec, steps: Sequence[CreditStep]) -> Iterator[str]:
    """Losses on pairs and rankings need two responses per prompt."""
    names = [
        type(term.loss).__name__
        for term in spec.losses
        if isinstance(term.loss, PairLoss | PreferenceRanking)
    ]
    if names and any(isinstance(step, BestOfN) and step.k == 1 for step in steps):
        yield (
            f"BestOfN keeps one response per prompt, and {names[0]} compares several; "
            f"fix: leave out BestOfN, or SftLoss instead of {names[0]}"
        )
    if names and spec.rollout.num_generations == 1:
        yield f"{names[0]} compares the responses to a prompt, and num_generations is 1; fix: 2 or more"


def _penalty_after_broadcast(spec: AlgorithmSpec, steps: Sequence[CreditStep]) -> Iterator[str]:
    """Penalties after the advantages were computed do not reach them."""
    first = next((i for i, s in enumerate(steps) if isinstance(s, BroadcastToTokens)), len(steps))
    for step in steps[first:]:
        late = isinstance(step, OverlongPenalty) or (
            isinstance(step, ClipReward) and step.apply_to == "rewards"
        )
        if late or (isinstance(step, KlPenalty) and step.level == "sequence"):
            name = type(step).__name__
            yield (
                f"{name} changes the rewards after BroadcastToTokens has read them; "
                f"fix: put {name} before BroadcastToTokens"
            )


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


def check_spec(spec: AlgorithmSpec | EvolutionSpec, objectives: Sequence[str]) -> Requirements:
    """The requirements of a spec, with the name of the algorithm in front of every error.

    Raises:
        WiringError: The parts do not fit together, one of the user's own fails, or there are no objectives.
        MissingDependencyError: A package that a part needs is not installed.
    """
    try:
        if not objectives:
            raise WiringError("there are no objectives; fix: name at least one")
        with Attempt() as attempt:  # parts of the user's own can raise anything
            attempt.value = spec.requirements(objectives)
        if attempt.error is not None:
            raise user_part_error(spec, attempt.error)
    except WiringError as error:
        raise WiringError(f'algorithm "{spec.name}": {error}') from error
    needs: Requirements = attempt.value
    return needs


def dry_run(spec: AlgorithmSpec, objectives: tuple[str, ...]) -> Requirements:
    """Run a spec once on a fake batch and see what its parts use.

    Args:
        spec: The algorithm.
        objectives: All scored objectives, verbalized confidence included.

    Raises:
        WiringError: The parts do not fit together.
    """
    check_combinations(spec)
    rng = torch.Generator().manual_seed(0)
    batch = fake_batch(objectives, spec.rollout.num_generations or STORED_RESPONSES_PER_PROMPT)
    batch, _, _ = spec.reward_steps.apply_stateful(batch, spec.reward_steps.init_state(), rng)
    frozen, critic = DummyModels(), DummyCritic(batch.rewards.shape[-1])
    models = Models(policy=DummyModel(1), critic=critic, frozen=frozen)
    temperature, num_rows = spec.temperature, len(batch)
    for model_pass in spec.model_passes:
        batch = model_pass(batch, models, temperature, num_rows)
    batch, _, _ = spec.credit.apply_stateful(batch, spec.credit.init_state(), rng)
    batch = batch.replace(loss_weights=spec.loss_aggregation(batch.response_mask))
    out = compute_outputs(
        models.policy, batch, spec.requires(), temperature=temperature, references=frozen, critic=critic
    )
    loss, _ = total_loss(spec.losses, out, batch)
    if not loss.requires_grad:
        raise WiringError("no loss depends on the policy, so nothing would be trained")
    needs = Requirements(
        demonstrations=spec.auxiliary_lm is not None,
        frozen_roles=tuple(sorted(frozen)),
        num_critic_heads=critic.num_heads if critic.was_called else 0,
        num_selected_rows=num_rows,
    )
    return spec.rollout.requirements() | needs


def dry_run_evolution(spec: EvolutionSpec, objectives: tuple[str, ...]) -> Requirements:
    """As `dry_run`: each candidate must get one reward, and a larger one for better scores.

    Raises:
        WiringError: The parts do not fit together.
        MissingDependencyError: The package of the search strategy is not installed.
    """
    spec.strategy.init_state(2, 1.0)  # imports the package, so that a missing one is found before the run
    dry_run(spec.adapter_phase.spec, objectives)
    for step in flatten_steps(spec.reward_steps):
        if isinstance(step, BestOfN | ResampleByRank | DropZeroVarianceGroups):
            raise WiringError(
                f"{type(step).__name__} drops responses, and a candidate is scored on all of its own; "
                "fix: leave it out"
            )
    rewards, state = [], spec.reward_steps.init_state()
    for shift in (0.0, -1.0):
        batch = fake_batch(objectives, spec.rollout.num_generations)
        shifted = batch.replace(scores=batch.scores + shift, rewards=batch.rewards + shift)
        after, state, _ = spec.reward_steps.apply_stateful(shifted, state, torch.Generator().manual_seed(0))
        if after.rewards.shape[-1] != 1:
            raise WiringError(
                f"a candidate has {after.rewards.shape[-1]} rewards ({', '.join(objectives)}) and needs one; "
                "fix: add an aggregator (WeightedSum, ...) to `reward_steps`"
            )
        rewards.append(after.rewards)
    if torch.allclose(rewards[0], rewards[1]):
        names = ", ".join(type(step).__name__ for step in flatten_steps(spec.reward_steps))
        raise WiringError(
            f"{names} only compares the responses to a prompt, so that all candidates would have the same "
            "fitness; fix: take an aggregator with absolute rewards, such as weighted_sum"
        )
    # The incumbent's KL to the reference is measured in every generation, whether or not it is penalized.
    needs = Requirements(frozen_roles=("reference",), num_selected_rows=len(batch))
    return spec.rollout.requirements() | needs


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
        category=torch.zeros(rows, dtype=torch.long),
        categories=("",),
        preference_weights=torch.ones_like(scores),
    )
