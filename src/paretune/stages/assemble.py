"""The heavy things that an alignment runs on: models in their roles, writers of responses, what is stored."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from paretune.data.stored import CandidateStream
from paretune.elsewhere import PeftModel
from paretune.learn.aside import Stream
from paretune.learn.check import check
from paretune.learn.descend import World
from paretune.learn.evolution import Evolution
from paretune.learn.fit import Imitation
from paretune.learn.optim import AdamW
from paretune.learn.recipe import Recipe
from paretune.models.adapt import AdapterOff
from paretune.models.critic import Critic, critic_like, new_critic
from paretune.models.load import Language, load_policy
from paretune.models.measure import Models
from paretune.objectives.reward_model import RewardModel, RewardModelScorer
from paretune.objectives.trace import with_traces
from paretune.rollout.sample import FromStart, LocalSampler, Offline, Online
from paretune.rollout.stored import StoredResponses
from paretune.stages.material import stream_of
from paretune.stages.reward import reward_of
from paretune.stages.work import Work, lora, micro_tokens


def assembled(
    work: Work,
    recipe: Recipe | Evolution,
    language: Language,
    frozen: Mapping[str, nn.Module] | None = None,
) -> World:
    """What the recipe runs on, with this policy.

    Args:
        work: The experiment.
        recipe: Decides what is needed; nothing else is loaded.
        language: The policy that learns.
        frozen: Further frozen models, by role.
    """
    e, learn = work.experiment, work.experiment.learn
    objectives, online = tuple(e.objectives), isinstance(recipe.source, Online)
    roles = check(recipe, objectives)
    start = _start(work, language)
    reward = reward_of(work, "reward") if online else None
    return World(
        models=Models(
            policy=language.model,
            critic=_critic(work, recipe, roles.critic_heads, reward) if isinstance(recipe, Recipe) else None,
            frozen={"reference": start.model, **(frozen or {})},
        ),
        sampler=sampler(work, language),
        scorers=() if reward is None else with_traces(e.traces, RewardModelScorer(reward)),
        objectives=objectives,
        prompts=stream_of(e, work.material.pools),
        optim=AdamW(
            lr=learn.lr,
            warmup=learn.warmup,
            schedule=learn.schedule,
            weight_decay=learn.weight_decay,
            clip=learn.clip,
            moments=learn.moments,
        ),
        micro_tokens=micro_tokens(learn.micro_tokens, e.run.device),
        strict=learn.micro_tokens is not None,
        activations=learn.activations,
        start=sampler(work, start) if isinstance(recipe.source, FromStart) else None,
        stored=_stored(work, language) if isinstance(recipe.source, Offline) else None,
        aside=_aside(work, language) if isinstance(recipe, Recipe) and recipe.aside else None,
    )


def sampler(work: Work, language: Language) -> LocalSampler:
    """Samples from this policy."""
    return LocalSampler(language=language, objectives=tuple(work.experiment.objectives))


def _start(work: Work, language: Language) -> Language:
    """The policy as it was before the first update: the one that is learnt without its adapter, or a copy."""
    if isinstance(language.model, PeftModel):
        return replace(language, model=AdapterOff(language.model))
    start = load_policy(work.start, seed=work.experiment.run.seed)
    return replace(start, model=start.model.requires_grad_(False))


def _critic(work: Work, recipe: Recipe, heads: int, reward: RewardModel | None) -> Critic | None:
    """A critic that starts as the recipe says, perhaps from the reward model; none where no part asks it."""
    if not heads:
        return None
    e = work.experiment
    how = lora(e.policy.lora)
    if recipe.critic.of == "policy":
        return new_critic(load_policy(work.start, seed=e.run.seed).model, heads, lora=how, seed=e.run.seed)
    reward = reward_of(work, "reward") if reward is None else reward
    columns = [reward.objectives.index(o.of or name) for name, o in e.objectives.items()]
    apart = torch.diag(torch.tensor(reward.scale))[columns]
    mixed = torch.tensor(list(e.first_weights.values())) @ apart
    return critic_like(reward.network, mixed[None] if heads == 1 else apart, lora=how, seed=e.run.seed)


def _stored(work: Work, language: Language) -> StoredResponses:
    e = work.experiment
    stream = CandidateStream(work.material.stored, e.learn.prompts, e.run.seed)
    return StoredResponses(language, tuple(e.objectives), stream)


def _aside(work: Work, language: Language) -> Stream:
    """Demonstrations of their own, or those that the starting policy learnt from."""
    found = work.material
    return Stream(Imitation(language, found.remembered or found.demonstrations))
