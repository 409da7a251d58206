"""Parts that are sound alone and mean nothing, or the same thing twice, together. Each refusal names both."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import nn

from paretune.credit.adaptive import HypervolumeGuidedWeighting
from paretune.credit.advantage import BatchNormalize, BroadcastToTokens, GroupNormalize, LeaveOneOut
from paretune.credit.constraint import Lagrangian
from paretune.credit.gae import Gae, ReturnToGo
from paretune.credit.importance import TruncatedImportanceSampling
from paretune.credit.keep import BestOfN
from paretune.credit.penalty import ClipReward, KlPenalty, OverlongPenalty, TerminalReward
from paretune.credit.running import RunningNormalize
from paretune.credit.select import DropZeroVarianceGroups
from paretune.credit.step import CreditStep, flatten_steps
from paretune.credit.whiten import Whiten
from paretune.errors import WiringError
from paretune.learn.recipe import AlgorithmSpec
from paretune.loss.kl import KlToReference
from paretune.loss.preference import PairLoss
from paretune.loss.ranking import PreferenceRanking
from paretune.models.adapt import AdapterDisabledModel
from paretune.models.measure import OldLogprobs
from paretune.rollout.sample import OnPolicy

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
