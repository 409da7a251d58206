"""Parts that are sound alone and mean nothing, or the same thing twice, together. Each refusal names both."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import nn

from paretune.credit.adaptive import HypervolumeGuided
from paretune.credit.advantage import BatchNormalise, GroupNormalise, LeaveOneOut, Spread
from paretune.credit.constraint import Lagrangian
from paretune.credit.gae import Gae, ReturnToGo
from paretune.credit.importance import TruncatedImportance
from paretune.credit.keep import KeepBest
from paretune.credit.penalty import Clip, EndReward, KlPenalty, OverlongPenalty
from paretune.credit.running import RunningScale
from paretune.credit.select import DropFlatGroups
from paretune.credit.step import Step, steps_of
from paretune.credit.whiten import Whiten
from paretune.errors import WiringError
from paretune.learn.recipe import Recipe
from paretune.loss.kl import KlToReference
from paretune.loss.preference import PairLoss
from paretune.loss.ranking import Ranking
from paretune.models.adapt import AdapterOff
from paretune.models.measure import Behaviour
from paretune.rollout.sample import Online

PER_TOKEN = (Gae, ReturnToGo)
"""Steps that read rewards on tokens."""


def refuse(recipe: Recipe) -> None:
    """Look at the parts of a recipe two by two.

    Raises:
        WiringError: Two of them contradict each other, or one makes the other inert.
    """
    steps = [*steps_of(recipe.worth), *steps_of(recipe.credit)]
    for rule in RULES:
        for wrong in rule(recipe, steps):
            raise WiringError(wrong)


def refuse_models(roles: Sequence[str], frozen: Mapping[str, nn.Module]) -> None:
    """Look at the models that parts ask for by their role.

    Raises:
        WiringError: A role other than the reference is played by the policy without its adapter.
    """
    for role in roles:
        if role != "reference" and isinstance(frozen.get(role), AdapterOff):
            raise WiringError(
                f'the frozen model "{role}" is the policy with its adapter off (AdapterOff), which is the '
                f'model that was adapted and no other; fix: load "{role}", or ask Reference("reference")'
            )


def _twice_charged(recipe: Recipe, steps: Sequence[Step]) -> Iterator[str]:
    reward = next((s for s in steps if isinstance(s, KlPenalty) and s.coefficient), None)
    loss = next((t for t in recipe.losses if isinstance(t.loss, KlToReference) and t.coefficient), None)
    if reward and loss:
        yield (
            f"the divergence from the reference is charged twice, by KlPenalty({reward.coefficient:g}) in "
            f"the reward and by KlToReference with the coefficient {loss.coefficient:g} in the loss; "
            "fix: leave out one of the two"
        )


def _unread_rewards(recipe: Recipe, steps: Sequence[Step]) -> Iterator[str]:
    writers = [s for s in steps if isinstance(s, EndReward) or _on_tokens(s)]
    if writers and not any(isinstance(s, PER_TOKEN) for s in steps):
        name = type(writers[-1]).__name__
        reader = "Spread gives every token the signal of its response"
        yield (
            f"{name} pays on tokens, and {reader if _has(steps, Spread) else 'nobody reads it'}; "
            'fix: Gae or ReturnToGo instead, or for a price of divergence KlPenalty(on="response")'
        )


def _on_tokens(step: Step) -> bool:
    return isinstance(step, KlPenalty) and step.on == "tokens"


def _overwritten(recipe: Recipe, steps: Sequence[Step]) -> Iterator[str]:
    """A group advantage after one by token leaves nothing of it."""
    first = next((i for i, s in enumerate(steps) if isinstance(s, PER_TOKEN)), len(steps))
    if _has(steps[first:], Spread):
        name = type(steps[first]).__name__
        yield f"Spread overwrites the advantages of tokens that {name} wrote; fix: leave out one of the two"


def _divided_out(recipe: Recipe, steps: Sequence[Step]) -> Iterator[str]:
    """A scale, and for a group also a shift, does not survive a division by the spread."""
    for i, step in enumerate(steps):
        scale = isinstance(step, RunningScale | HypervolumeGuided) or step == GroupNormalise("none")
        if not scale:
            continue
        for later in steps[i + 1 :]:
            if _divides(later, isinstance(step, HypervolumeGuided)):
                between = ", or put a Clip between" if isinstance(step, RunningScale) else ""
                yield (
                    f"{type(step).__name__} has no effect before {type(later).__name__}, which divides its "
                    f"scale out again; fix: leave out one of the two{between}"
                )
            if not isinstance(later, DropFlatGroups | TruncatedImportance):
                break


def _divides(step: Step, one_factor: bool) -> bool:
    if isinstance(step, GroupNormalise | LeaveOneOut):
        return step.divide == "std"
    return one_factor and isinstance(step, BatchNormalise | Whiten)


def _whitened_apart(recipe: Recipe, steps: Sequence[Step]) -> Iterator[str]:
    """Weights of objectives that all have the same spread are no longer those of the scores."""
    for i, step in enumerate(steps):
        later = [s for s in steps[i:] if isinstance(s, Lagrangian) and s.on == "advantages"]
        if isinstance(step, Whiten) and step.on == "advantages" and later:
            yield (
                'Whiten comes before Lagrangian(on="advantages"), whose multipliers are in the units of the '
                "scores; fix: put Whiten after it"
            )


def _own_ratio(recipe: Recipe, steps: Sequence[Step]) -> Iterator[str]:
    if _has(steps, TruncatedImportance) and Behaviour("sampler") in recipe.measure:
        yield (
            'TruncatedImportance compares the trainer with the sampler, and Behaviour(by="sampler") takes '
            "the sampler's word for the trainer's: every ratio is 1; fix: Behaviour(by=\"trainer\")"
        )


def _idle_terms(recipe: Recipe, steps: Sequence[Step]) -> Iterator[str]:
    for term in recipe.losses:
        if term.coefficient == 0:
            yield f"{type(term.loss).__name__} has the coefficient 0; fix: leave the term out"


def _nobody_to_compare(recipe: Recipe, steps: Sequence[Step]) -> Iterator[str]:
    """Losses on pairs and rankings need two responses to a prompt."""
    names = [type(term.loss).__name__ for term in recipe.losses if isinstance(term.loss, PairLoss | Ranking)]
    alone = next((step for step in steps if isinstance(step, KeepBest) and step.k == 1), None)
    if names and alone is not None:
        yield (
            f"KeepBest keeps one response to a prompt, and {names[0]} compares several; "
            f"fix: leave out KeepBest, or Likelihood instead of {names[0]}"
        )
    if names and isinstance(recipe.source, Online) and recipe.source.n == 1:
        yield f"{names[0]} compares responses to one prompt, and n is 1; fix: n of 2 or more"


def _cut_before(recipe: Recipe, steps: Sequence[Step]) -> Iterator[str]:
    """Prices that are charged after the last comparison are not compared with anybody's."""
    first = next((i for i, s in enumerate(steps) if isinstance(s, Spread)), len(steps))
    for step in steps[first:]:
        late = isinstance(step, OverlongPenalty) or (isinstance(step, Clip) and step.on == "signal")
        if late or (isinstance(step, KlPenalty) and step.on == "response"):
            name = type(step).__name__
            yield f"{name} changes the signal after Spread has read it; fix: put {name} before Spread"


def _has(steps: Sequence[Step], kind: type[Step]) -> bool:
    return any(isinstance(step, kind) for step in steps)


RULES: tuple[Callable[[Recipe, Sequence[Step]], Iterator[str]], ...] = (
    _twice_charged,
    _unread_rewards,
    _overwritten,
    _divided_out,
    _whitened_apart,
    _own_ratio,
    _idle_terms,
    _cut_before,
    _nobody_to_compare,
)
