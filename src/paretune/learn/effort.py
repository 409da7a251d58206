"""What the phases of a step had to compute, told to its clock. Counted from numbers on the host alone."""

from collections.abc import Sequence

from torch import nn

from paretune.batch import Batch
from paretune.learn.aside import Stream
from paretune.learn.clock import Clock
from paretune.learn.fit import Imitation
from paretune.learn.recipe import Recipe
from paretune.models.flops import apart, asked, forward_flops, gradient_flops, written
from paretune.models.measure import Behaviour, ImplicitReward, Measure, Models, Reference, Undecided, Values
from paretune.objectives.reward_model import RewardModelScorer
from paretune.objectives.score import Scorer
from paretune.rollout.sample import LocalSampler, Sampler

NOBODY = float("nan")
"""Operations that nobody can count."""


def drawn(clock: Clock, sampler: Sampler, models: Models, batch: Batch) -> None:
    """Responses were drawn: by the sampler's own model, or by one like the policy."""
    model = sampler.language.model if isinstance(sampler, LocalSampler) else models.policy
    tokens = int(batch.respond.sum())
    clock.did("sample", tokens=tokens, flops=forward_flops(model, written(batch)))


def scorings(scorers: Sequence[Scorer]) -> float:
    """Operations of all that reward models scored so far; other scorers are taken to ask no network."""
    return sum((scorer.done for scorer in scorers if isinstance(scorer, RewardModelScorer)), 0.0)


def measured(clock: Clock, measures: Sequence[Measure], models: Models, batch: Batch) -> None:
    """Models were asked about the rows of a batch."""
    passes = [asked_by(measure, models) for measure in measures]
    if all(found == () for found in passes):
        return
    rows = asked(batch)
    for found in passes:
        flops = NOBODY if found is None else sum((forward_flops(model, rows) for model in found), 0.0)
        clock.did("measure", flops=flops)


def asked_by(measure: Measure, models: Models) -> tuple[nn.Module, ...] | None:
    """The models that a measurement asks, one pass each; None of a part that is not the package's."""
    match measure:
        case Behaviour():
            return () if measure.by == "sampler" else (models.policy,)
        case Reference():
            return (models.role(measure.role),)
        case ImplicitReward():
            return models.role(measure.tuned), models.role(measure.against)
        case Values():
            return () if models.critic is None else (models.critic,)
        case Undecided():
            return (models.policy,)
        case _:
            return None


def learnt(clock: Clock, recipe: Recipe, models: Models, part: Batch, step: int) -> None:
    """An optimiser step was made on these rows.

    While the critic learns alone the policy is only asked. A divergence over the whole vocabulary asks the
    reference in the same pass.
    """
    rows, wants = asked(part), recipe.wants()
    flops = (forward_flops if step < recipe.critic.alone else gradient_flops)(models.policy, rows)
    if "values" in wants and models.critic is not None:
        flops += gradient_flops(models.critic, rows)
    if "kl_reference_policy" in wants:
        flops += forward_flops(models.role("reference"), rows)
    clock.did("learn", tokens=int(part.attend.sum()), flops=flops)


def remembered(clock: Clock, aside: Stream, units: Sequence[int]) -> None:
    """Demonstrations were learnt beside them."""
    flops, task = NOBODY, aside.task
    if isinstance(task, Imitation):
        lengths = [len(task.rows[unit]) for unit in units]
        responses = sum(lengths) - sum(task.starts[unit] for unit in units)
        flops = gradient_flops(task.model, apart(lengths, responses))
    clock.did("learn", tokens=aside.tokens(units), flops=flops)
