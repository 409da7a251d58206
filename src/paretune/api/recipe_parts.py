"""Scorers, judges, prompts and settings of a recipe, for use outside of a run."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from paretune.api.inputs import Prompts, read_prompts
from paretune.api.loading import LoadingContext, load_judges, load_scorers
from paretune.api.policies import Generation
from paretune.api.reward_models import load_reward_model
from paretune.api.scorers import ScorerSetup
from paretune.config import Config, find_recipe, load_config
from paretune.config.data_schema import RewardSection
from paretune.config.issues import closest_match
from paretune.config.scorer_schema import LlmJudgeScorerSection
from paretune.config.scorers import JUDGE, REWARD, objective_columns
from paretune.config.shipped import SUFFIXES, bundled_recipes
from paretune.core.errors import ConfigError, WiringError
from paretune.data.records import Prompt
from paretune.evaluate.judging import Judge
from paretune.experiment.data import load_data
from paretune.experiment.resolved import resolve
from paretune.reward.failures import GuardedScorer
from paretune.reward.scorers import ObjectiveColumns
from paretune.run.compat import RESOLVED_CONFIG_FILE
from paretune.worlds import get_world

GROUPS = ("scorers", "judges")


def recipe_of(name: str) -> Config:
    """The recipe of a file, a shipped recipe, or a run folder.

    Raises:
        ConfigError: There is none, or one line per mistake.
    """
    resolved = Path(name) / RESOLVED_CONFIG_FILE
    return load_config(resolved if resolved.exists() else find_recipe(name))


def section_setup(config: Config, recipe: str, key: str) -> ScorerSetup:
    """The scorer of a section such as `scorers.polite`.

    Raises:
        ConfigError: The recipe has no such section.
    """
    group, _, name = key.partition(".")
    if group in GROUPS and name in getattr(config, group):
        return ScorerSetup(name=name, section=getattr(config, group)[name])
    names = _section_names(config)
    suggestion = closest_match(key, names)
    listed = f"the recipe has {', '.join(names)}" if names else "the recipe has neither scorers nor judges"
    hint = f'; did you mean "{suggestion}"?' if suggestion else ""
    raise ConfigError(f"{recipe}: {key}: there is no such scorer{hint}; fix: {listed}")


def llm_judge_setup(config: Config, recipe: str, name: str | None) -> ScorerSetup:
    """The LLM judge of this name, among scorers and judges; None: the only one.

    Raises:
        ConfigError: There is none, or there are several.
    """
    found = {
        each: section
        for group in GROUPS
        for each, section in getattr(config, group).items()
        if isinstance(section, LlmJudgeScorerSection)
    }
    if not found:
        fix = "add one under judges: {type: llm_judge, base_url: ..., model: ..., rubric: ...}"
        raise ConfigError(f"{recipe}: no scorer or judge of type llm_judge; fix: {fix}")
    listed = ", ".join(found)
    if name is None and len(found) > 1:
        raise ConfigError(f"{recipe}: several LLM judges: {listed}; fix: name one with --judge")
    if name is not None and name not in found:
        raise ConfigError(f"{recipe}: {name} is no LLM judge; fix: --judge with one of {listed}")
    chosen = name or listed
    return ScorerSetup(name=chosen, section=found[chosen])


def reward_scorers(config: Config, run_dir: Path, context: LoadingContext) -> tuple[GuardedScorer, ...]:
    """The training rewards: the reward model, if it can be loaded without a run, and `scorers`.

    Raises:
        ParetuneError: One of them cannot be loaded.
    """
    scorers: list[Any] = []
    model = _reward_model(config.reward, run_dir / REWARD / "model", context)
    if model is not None:
        scorers.append(model)
    scorers += [ScorerSetup(name=name, section=section) for name, section in config.scorers.items()]
    if not scorers:
        return ()
    loaded = load_scorers(scorers, context)
    by_scorer = objective_columns(config)
    return tuple(_under_objectives(scorer, config, by_scorer) for scorer in loaded)


def _under_objectives(
    scorer: GuardedScorer, config: Config, by_scorer: Mapping[str, tuple[str, str]]
) -> GuardedScorer:
    """The scorer with the names of the recipe's objectives, which need not be those of its columns.

    Args:
        scorer: One of the training rewards.
        config: The recipe.
        by_scorer: Result of `objective_columns`.
    """
    columns = {}
    for objective, section in config.objectives.items():
        own = REWARD, section.scores_from or objective
        name, column = by_scorer.get(objective, own)
        is_own = name == scorer.name or (name == REWARD and scorer.name not in config.scorers)
        if is_own and column in scorer.names and objective not in config.thinking_objectives:
            columns[objective] = column
    if not columns or tuple(columns) == tuple(scorer.names):
        return scorer
    return GuardedScorer(scorer.name, ObjectiveColumns(scorer, columns))


def recipe_judges(
    config: Config, recipe: str, run_dir: Path, context: LoadingContext
) -> tuple[tuple[Judge, ...], tuple[Judge, ...]]:
    """The judges of a recipe, and its training rewards as far as they are there.

    Raises:
        ConfigError: It has no judge, or its judge was not fitted yet.
    """
    rewards = (
        load_judges(list(scorers), context) if (scorers := reward_scorers(config, run_dir, context)) else ()
    )
    judges: list[Judge] = []
    if config.judge == "ground_truth":
        judges.append(Judge(name="the ground truth", scorer=get_world().scorer(), key=JUDGE))
    elif config.judge is not None:
        model = _reward_model(config.judge, run_dir / JUDGE / "model", context)
        if model is None:
            fix = f"paretune run {recipe} --until judge"
            raise ConfigError(f"{recipe}: judge: it is fitted in a run, and {run_dir} holds none; fix: {fix}")
        judges += [
            replace(judge, name="a fitted reward model", key=JUDGE) for judge in load_judges(model, context)
        ]
    setups = [ScorerSetup(name=name, section=section) for name, section in config.judges.items()]
    judges += load_judges(setups, context) if setups else ()
    if not judges:
        raise ConfigError(f"{recipe}: has neither judge nor judges; fix: add a judge")
    return tuple(judges), rewards


def evaluation_prompts(config: Config, prompts: Prompts | None) -> tuple[Prompt, ...]:
    """The prompts of a file, or the test prompts of a recipe.

    Raises:
        DataError: They cannot be read.
    """
    if prompts is not None:
        return read_prompts(prompts)
    return tuple(load_data(resolve(config)).test_prompts)


def evaluation_settings(config: Config) -> tuple[Generation, dict[str, Any]]:
    """How the evaluation of a recipe samples, and further arguments of `compare_policies`."""
    settings = config.evaluate
    length = settings.max_new_tokens or int(config.algorithm.arguments.get("max_new_tokens", 256))
    generation = Generation(settings.num_generations, length, settings.temperature, settings.seed)
    return generation, {
        "goals": config.goals,
        "margins": settings.non_inferiority_margin,
        "refusal_categories": settings.refusal_categories,
        "verdict_rule": settings.verdict,
        "bootstrap_samples": settings.bootstrap_samples,
    }


def _reward_model(section: Any, fitted: Path, context: LoadingContext) -> Any:
    """The reward model of a section; None if it has to be fitted first."""
    if not isinstance(section, RewardSection):
        return None
    if section.path is None and not fitted.exists():
        return None
    return load_reward_model(
        section.path or fitted,
        revision=section.revision if section.path else None,
        dtype=section.dtype,
        device=context.device,
        chat_template_kwargs=section.chat_template_kwargs if section.path else None,
    )


def scorers_of(model: str, context: LoadingContext) -> tuple[GuardedScorer, ...]:
    """The scorers that `paretune score` was asked for.

    Args:
        model: A reward model, a run folder (its training rewards), or `RECIPE:scorers.NAME`.
        context: What they are loaded for.

    Raises:
        ParetuneError: There is no such scorer, or it cannot be loaded.
    """
    recipe, separator, key = model.rpartition(":")
    if separator and (key.partition(".")[0] in GROUPS or Path(recipe).suffix in SUFFIXES):
        return load_scorers(section_setup(recipe_of(recipe), recipe, key), context)
    if (Path(model) / RESOLVED_CONFIG_FILE).exists():
        config = recipe_of(model)
        scorers = reward_scorers(config, Path(model), context)
        if not scorers:
            raise ConfigError(f"{model}: this run has no reward model yet; fix: resume the run first")
        return scorers
    if not Path(model).is_dir() and (Path(model).suffix in SUFFIXES or model in bundled_recipes()):
        names = [f"{model}:{name}" for name in _section_names(recipe_of(model))]
        listed = (
            f"one of {', '.join(names)}"
            if names
            else "the folder of its run, once it has fitted a reward model"
        )
        raise ConfigError(f"{model}: is a recipe, not a scorer; fix: {listed}")
    try:
        loaded = load_reward_model(model, device=context.device)
    except WiringError as error:
        key, _, text = str(error).partition(": ")
        if key not in _SCORER_TYPES:
            raise
        problem = text.partition("; fix: ")[0]
        fix = f"put it into a recipe as a scorer of {_SCORER_TYPES[key]}, and score RECIPE:scorers.NAME"
        raise WiringError(f"{problem}; fix: {fix}") from error
    return load_scorers(loaded, context)


_SCORER_TYPES = {
    **dict.fromkeys(("path", "type"), "type: classifier with path and label"),
    "outputs": "type: reward_model with path and outputs",
}
"""Key of a recipe in an error about a reward model -> the scorer that reads this model."""


def _section_names(config: Config) -> list[str]:
    return [f"{group}.{name}" for group in GROUPS for name in getattr(config, group)]
