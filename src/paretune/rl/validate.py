"""Validation of an algorithm spec: combinations of parts that contradict each other, and a dry run.

The dry run sends a fake batch through all parts with tiny stand-in models, before a real model is loaded.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import nn

from paretune.core.errors import WiringError
from paretune.core.requirements import Requirements
from paretune.credit.base import CreditStep, flatten_steps
from paretune.credit.constraints import Lagrangian
from paretune.credit.importance_sampling import TruncatedImportanceSampling
from paretune.credit.normalization import (
    BatchNormalize,
    GroupNormalize,
    LeaveOneOut,
    RunningNormalize,
    Whiten,
)
from paretune.credit.scalarization import HypervolumeGuidedWeighting
from paretune.credit.selection import BestOfN, DropZeroVarianceGroups, ResampleByRank
from paretune.credit.shaping import KlPenalty
from paretune.loss.auxiliary import EntropyBonus
from paretune.loss.kl import KlToReference
from paretune.loss.listwise import PreferenceRanking
from paretune.loss.pairwise import PairLoss
from paretune.models.lora import AdapterDisabledModel
from paretune.models.model_passes import OldLogprobs
from paretune.rl.algorithm_spec import AlgorithmSpec
from paretune.rl.data_flow import PartWiringError, check_data_flow
from paretune.rl.dummy_models import STORED_RESPONSES_PER_PROMPT, fake_batch, uneven_batch
from paretune.rl.evolution.spec import EvolutionSpec
from paretune.rl.part_checks import DryRun
from paretune.rl.user_parts import apply_steps, call_with_user_parts, is_shipped, user_parts_of
from paretune.rollout.sampler import FrozenPolicy, StoredResponses

UNEVEN = "an unscored response and a prompt of equal rewards"
"""What the second fake batch has, for messages."""


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


def _loss_coefficients(spec: AlgorithmSpec, steps: Sequence[CreditStep]) -> Iterator[str]:
    """A loss of the user's own may be one to maximize, and entropy may be punished."""
    for term in spec.losses:
        name, coefficient = type(term.loss).__name__, term.coefficient
        if coefficient == 0:
            yield f"{name} has coefficient 0; fix: leave the term out"
        elif not math.isfinite(coefficient):
            yield f"{name} has coefficient {coefficient}; fix: a finite number"
        elif coefficient < 0 and is_shipped(term.loss) and not isinstance(term.loss, EntropyBonus):
            yield (
                f"{name} has coefficient {coefficient:g}, which makes the loss larger instead of smaller; "
                "fix: a positive coefficient"
            )


def _too_few_responses(spec: AlgorithmSpec, steps: Sequence[CreditStep]) -> Iterator[str]:
    """Losses on pairs and rankings, and baselines of the group, need two responses per prompt."""
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
    names += [
        type(step).__name__
        for step in steps
        if isinstance(step, LeaveOneOut) or (isinstance(step, GroupNormalize) and step.singleton == "zero")
    ]
    if names and spec.rollout.num_generations == 1:
        yield f"{names[0]} compares the responses to a prompt, and num_generations is 1; fix: 2 or more"


def _contains_step(steps: Sequence[CreditStep], step_type: type[CreditStep]) -> bool:
    return any(isinstance(step, step_type) for step in steps)


COMBINATION_RULES: tuple[Callable[[AlgorithmSpec, Sequence[CreditStep]], Iterator[str]], ...] = (
    _duplicate_kl_penalty,
    _ineffective_scaling,
    _whiten_before_lagrangian,
    _trivial_importance_ratio,
    _loss_coefficients,
    _too_few_responses,
)


def check_spec(spec: AlgorithmSpec | EvolutionSpec, objectives: Sequence[str]) -> Requirements:
    """The requirements of a spec, with the name of the algorithm in front of every error.

    Raises:
        WiringError: The parts do not fit together, one of the user's own fails, or there are no objectives.
        MissingDependencyError: A package that a part needs is not installed.
    """
    try:
        if not objectives:
            raise WiringError("there are no objectives; fix: name at least one")
        return call_with_user_parts(spec, lambda: spec.requirements(objectives))
    except WiringError as error:
        raise WiringError(f'algorithm "{spec.name}": {error}') from error


def dry_run(spec: AlgorithmSpec, objectives: tuple[str, ...]) -> Requirements:
    """Run a spec on a fake batch and see what its parts use.

    Parts of the user's own also get a batch with an unscored response and a prompt of equal rewards.

    Args:
        spec: The algorithm.
        objectives: All scored objectives, verbalized confidence included.

    Raises:
        WiringError: The parts do not fit together.
    """
    check_combinations(spec)
    batch = fake_batch(objectives, spec.rollout.num_generations or STORED_RESPONSES_PER_PROMPT)
    if isinstance(spec.rollout, FrozenPolicy | StoredResponses):
        batch = batch.replace(rollout_logprobs=None)
    if isinstance(spec.rollout, StoredResponses):
        batch = batch.replace(weight_version=None)
    run = DryRun(spec, batch)
    run.run()
    check_data_flow(run.parts)
    if user_parts_of(spec):
        try:
            DryRun(spec, uneven_batch(batch)).run()
        except WiringError as error:
            problem, _, fix = str(error).partition("; fix: ")
            fix = fix and f"; fix: {fix}"
            problem = f"{problem}, on a batch with {UNEVEN}{fix}"
            if isinstance(error, PartWiringError):
                raise PartWiringError(problem, error.part) from error
            raise WiringError(problem) from error
    needs = Requirements(
        demonstrations=spec.auxiliary_lm is not None,
        frozen_roles=tuple(sorted(run.frozen)),
        num_critic_heads=run.critic.num_heads if run.critic.was_called else 0,
        num_selected_rows=run.num_rows,
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
        after, state, _ = apply_steps(spec.reward_steps, shifted, state, torch.Generator().manual_seed(0))
        if after.rewards.shape[-1] != 1:
            raise WiringError(
                f"a candidate has {after.rewards.shape[-1]} rewards ({', '.join(objectives)}) and needs one; "
                "fix: add an aggregator (WeightedSum, ...) to `reward_steps`"
            )
        rewards.append(after.rewards)
    apply_steps(spec.reward_steps, uneven_batch(batch), state, torch.Generator().manual_seed(0))
    if torch.allclose(rewards[0], rewards[1]):
        names = ", ".join(type(step).__name__ for step in flatten_steps(spec.reward_steps))
        raise WiringError(
            f"{names} only compares the responses to a prompt, so that all candidates would have the same "
            "fitness; fix: take an aggregator with absolute rewards, such as weighted_sum"
        )
    # The incumbent's KL to the reference is measured in every generation, whether or not it is penalized.
    needs = Requirements(frozen_roles=("reference",), num_selected_rows=len(batch))
    return spec.rollout.requirements() | needs
