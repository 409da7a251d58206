"""Models that a recipe needs before its own loop begins: made once, kept in `phases/`, and frozen."""

from dataclasses import replace
from pathlib import Path
from shutil import rmtree

from torch import nn

from paretune.chance import seed_of
from paretune.config import written_at
from paretune.config.algorithm import recipe_of
from paretune.config.rules import WORLD
from paretune.errors import ConfigError, complaint
from paretune.learn.descend import descend
from paretune.learn.microbatch import rows_unkept
from paretune.learn.recipe import Phase, Recipe, Soup
from paretune.models.adapt import Lora
from paretune.models.load import Language, load_policy, save_model
from paretune.models.soup import shortfall, soup
from paretune.rollout.sample import Online
from paretune.stages.assemble import assembled, sampler
from paretune.stages.material import stream_of
from paretune.stages.policy import taught
from paretune.stages.work import Work, lora, micro_tokens

STRANGE = 1.0
"""Nats a token by which the start's own responses may be less likely under an average than under itself."""


def made_before(work: Work, recipe: Recipe) -> dict[str, nn.Module]:
    """The frozen models of the recipe's phases, by role; those that are complete are only read."""
    found: dict[str, nn.Module] = {}
    for made in recipe.before:
        folder = made_in(work, made, lora(work.experiment.policy.lora))
        model = load_policy(replace(work.start, path=str(folder), revision=None)).model
        found[made.role] = model.requires_grad_(False)
    return found


def made_in(work: Work, made: Phase | Soup, adapter: Lora | None) -> Path:
    """The folder of one of them; it is made with this adapter, unless it is complete."""
    folder = work.folder("phases", made.role)
    if not (folder / "config.json").exists():
        work.console.say(f"before it: {made.role}")
        # Its lines bear its name: those of the alignment go when that begins anew.
        stage, work.run.stage = work.run.stage, made.role
        try:
            language = _phase(work, made, adapter) if isinstance(made, Phase) else _soup(work, made)
        finally:
            work.run.stage = stage
        save_model(language.model, language.tokenizer, folder)
    for name in (made.role, f"{made.role}-second"):
        rmtree(work.folder("checkpoints", name), ignore_errors=True)
    return folder


def _phase(work: Work, phase: Phase, adapter: Lora | None) -> Language:
    """The start, after the phase's own recipe."""
    e = work.experiment
    language = load_policy(replace(work.start, lora=adapter), seed=e.run.seed)
    descend(
        phase.recipe,
        assembled(work, phase.recipe, language),
        steps=phase.steps,
        seed=seed_of(e.run.seed, 0, f"phase {phase.role}"),
        run=work.run,
        folder=work.folder("checkpoints", phase.role),
        checkpoint_every=e.run.checkpoint_every,
        keep=e.run.keep,
        on_step=lambda step, *_: work.console.progress(step + 1, phase.steps, phase.role),
    )
    return language


def _soup(work: Work, made: Soup) -> Language:
    """The mean of the start and of one more model."""
    first = load_policy(work.start)
    if made.other:
        second = load_policy(replace(work.start, path=made.other, revision=None))
    else:
        # The built-in world's policy shares no pretrained weights with one of another seed: no average of
        # the two would be a language model. So its second start is the first one, taught once more.
        seed = seed_of(work.experiment.run.seed, 0, "second start")
        again = work.experiment.policy.path == WORLD
        second = taught(work, f"{made.role}-second", seed, start=again)
    weights = (1 - made.share, made.share)
    mixed = replace(first, model=soup((first.model, second.model), weights))
    _refuse_strangers(work, first, mixed)
    return mixed


def _refuse_strangers(work: Work, first: Language, mixed: Language) -> None:
    """Is the average a model of language still? It is where both grew from the same weights.

    Raises:
        ConfigError: What the start says is far less likely under it than under the start.
    """
    e = work.experiment
    source = recipe_of(e).source
    assert isinstance(source, Online)
    prompts = stream_of(e, work.material.pools)(0)
    batch, _ = sampler(work, first)(prompts, source, seed=seed_of(e.run.seed, 0, "soup"), step=0)
    most = micro_tokens(e.learn.micro_tokens, e.run.device)
    short = shortfall(mixed.model, first.model, batch, rows=rows_unkept(batch, most))
    if not short <= STRANGE:
        where, key = written_at(e, ("algorithm", "second")), "algorithm.second"
        wrong = (
            f"a token of the start's responses has {short:.2f} nats less under the average of both starts "
            "than under the start: they did not grow from the same weights"
        )
        fix = "name a model that was fitted from the same pretrained one"
        raise ConfigError(complaint(where, None, None, key, wrong, fix=fix))
