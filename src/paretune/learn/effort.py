"""What the phases of a step had to compute, told to its clock. Counted from numbers on the host alone."""

from collections.abc import Sequence

from torch import nn

from paretune.batch import Batch
from paretune.learn.aside import AuxiliaryData
from paretune.learn.clock import PhaseTimer
from paretune.learn.fit import SftTask
from paretune.learn.recipe import AlgorithmSpec
from paretune.models.flops import (
    forward_backward_flops,
    forward_flops,
    generation_shape,
    independent_rows_shape,
    response_shape,
)
from paretune.models.measure import (
    CriticValues,
    ImplicitReward,
    ModelPass,
    Models,
    OldLogprobs,
    PolicyEntropy,
    RefLogprobs,
)
from paretune.objectives.reward_model import RewardModelScorer
from paretune.objectives.score import Scorer
from paretune.rollout.sample import LocalSampler, Sampler

UNKNOWN_FLOPS = float("nan")
"""Operations that nobody can count."""


def record_rollout_flops(timer: PhaseTimer, sampler: Sampler, models: Models, batch: Batch) -> None:
    """Responses were drawn: by the sampler's own model, or by one like the policy."""
    model = sampler.policy.model if isinstance(sampler, LocalSampler) else models.policy
    tokens = int(batch.response_mask.sum())
    timer.record_work("sample", tokens=tokens, flops=forward_flops(model, generation_shape(batch)))


def scoring_flops(scorers: Sequence[Scorer]) -> float:
    """Operations of all that reward models scored so far; other scorers are taken to ask no network."""
    return sum((scorer.total_flops for scorer in scorers if isinstance(scorer, RewardModelScorer)), 0.0)


def record_model_pass_flops(
    timer: PhaseTimer, model_passes: Sequence[ModelPass], models: Models, batch: Batch
) -> None:
    """Models were asked about the rows of a batch."""
    passes = [models_in_pass(measure, models) for measure in model_passes]
    if all(found == () for found in passes):
        return
    rows = response_shape(batch)
    for found in passes:
        flops = UNKNOWN_FLOPS if found is None else sum((forward_flops(model, rows) for model in found), 0.0)
        timer.record_work("measure", flops=flops)


def models_in_pass(model_pass: ModelPass, models: Models) -> tuple[nn.Module, ...] | None:
    """The models that a measurement asks, one pass each; None of a part that is not the package's."""
    match model_pass:
        case OldLogprobs():
            return () if model_pass.source == "sampler" else (models.policy,)
        case RefLogprobs():
            return (models.frozen_model(model_pass.role),)
        case ImplicitReward():
            return models.frozen_model(model_pass.tuned_role), models.frozen_model(model_pass.reference_role)
        case CriticValues():
            return () if models.critic is None else (models.critic,)
        case PolicyEntropy():
            return (models.policy,)
        case _:
            return None


def record_update_flops(
    timer: PhaseTimer, spec: AlgorithmSpec, models: Models, minibatch: Batch, step: int
) -> None:
    """An optimiser step was made on these rows.

    While the critic learns alone the policy is only asked. A divergence over the whole vocabulary asks the
    reference in the same pass.
    """
    rows, wants = response_shape(minibatch), spec.requires()
    flops = (forward_flops if step < spec.critic.warmup_steps else forward_backward_flops)(
        models.policy, rows
    )
    if "values" in wants and models.critic is not None:
        flops += forward_backward_flops(models.critic, rows)
    if "kl_reference_policy" in wants:
        flops += forward_flops(models.frozen_model("reference"), rows)
    timer.record_work("learn", tokens=int(minibatch.attention_mask.sum()), flops=flops)


def record_auxiliary_flops(timer: PhaseTimer, data: AuxiliaryData, indices: Sequence[int]) -> None:
    """Demonstrations were learnt beside them."""
    flops, task = UNKNOWN_FLOPS, data.task
    if isinstance(task, SftTask):
        lengths = [len(task.token_rows[unit]) for unit in indices]
        responses = sum(lengths) - sum(task.prompt_lengths[unit] for unit in indices)
        flops = forward_backward_flops(task.model, independent_rows_shape(lengths, responses))
    timer.record_work("learn", tokens=data.num_tokens(indices), flops=flops)
