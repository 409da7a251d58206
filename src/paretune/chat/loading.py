"""Loads the models of a conversation, and what scores their answers."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from paretune.api.arguments import check_arguments
from paretune.api.loading import LoadingContext
from paretune.api.policies import policy_path
from paretune.api.recipe_parts import evaluation_settings
from paretune.chat.scoring import ChatScorer, chat_scorers
from paretune.chat.session import Chat
from paretune.chat.streaming import ChatSettings, ChatSide
from paretune.config import Config, load_config
from paretune.config.build import build_spec
from paretune.core.errors import ConfigError
from paretune.experiment.context import initial_policy, trained_policy
from paretune.models.load import ModelSpec, PolicyModel
from paretune.models.load import load_policy as load_policy_model
from paretune.rollout.probe import probe_sampler
from paretune.run.compat import RESOLVED_CONFIG_FILE
from paretune.run.io import read_json

BASE = "base"
"""Instead of a second model: the policy of the run before its alignment."""


@check_arguments
def load_chat(
    model: str | Path,
    vs: str | Path | None = None,
    *,
    rewards: str | Path | None = None,
    llm_judges: bool = False,
    device: str = "auto",
) -> Chat:
    """Load one or two models to chat with, and the scorers and judges of their answers.

    Answers are sampled as in the evaluation of the run; `Chat.configure` changes that.

    Args:
        model: A run folder (its trained policy), a model folder or a hub name.
        vs: The model beside it; "base": the policy of the run before its alignment; None: "base" for a run,
            and no other model beside a model folder.
        rewards: Run folder whose reward, scorers and judges score the answers; None: the run among the
            models, if there is one.
        llm_judges: Ask the LLM judges of that run too, a request per answer.
        device: auto, cpu or cuda.

    Raises:
        ConfigError: A run has no trained policy, or `vs` and `rewards` name no run where one is needed.
        DataError: There is no such model, or its files cannot be read.
    """
    first = str(model)
    runs = {name: config for name in (first, str(vs or "")) if (config := _run_config(name)) is not None}
    second = BASE if vs is None and first in runs else None if vs is None else str(vs)
    if second == BASE and first not in runs:
        fix = "name a run folder, or the folder of another model with --vs"
        raise ConfigError(f"{first}: is not a run folder, so its base is unknown; fix: {fix}")
    names = [first] if second is None else [first, second]
    specs = [_model_spec(name, first, runs, device) for name in names]
    scoring, config = _scoring_run(rewards, runs)
    sides = tuple(_load_side(name, spec, runs.get(first if name == BASE else name)) for name, spec in specs)
    scorers: tuple[ChatScorer, ...] = ()
    notes: tuple[str, ...] = ()
    if config is not None:
        context = LoadingContext(tokenizer=sides[0].policy.tokenizer, run_dir=scoring, device=device)
        scorers, notes = chat_scorers(config, scoring, context, llm_judges=llm_judges)
    elif llm_judges:
        raise ConfigError("--llm-judges has no effect without a run; fix: name one with --rewards RUN")
    goals = None if config is None else config.goals
    return Chat(_with_unique_names(sides), scorers, _settings(runs.get(first)), notes, goals)


def _run_config(name: str) -> Config | None:
    """The recipe of a run folder, whose data need not be here; None if it is not a run folder."""
    if not name or read_json(Path(name) / "run.json") is None:
        return None
    resolved = Path(name) / RESOLVED_CONFIG_FILE
    return load_config(resolved, check_files=False) if resolved.exists() else None


def _model_spec(name: str, first: str, runs: dict[str, Config], device: str) -> tuple[str, ModelSpec]:
    """The model of a name, checked as far as its run folder allows.

    Raises:
        ConfigError: The run has no trained policy, or its adapter is missing.
    """
    if name == BASE:
        return name, initial_policy(runs[first], Path(first), device)
    path = policy_path(name)
    if name not in runs:
        return name, ModelSpec(path=path, device=device)
    spec, config = trained_policy(runs[name], Path(name), device), runs[name]
    if config.policy.lora is not None and spec.adapter_path is None:
        missing = Path(name) / "final" / "adapter"
        fix = f"copy it from where the run was made, or name {path}, its merged weights"
        raise ConfigError(f"{missing}: the adapter of the run is missing; fix: {fix}")
    return name, spec


def _load_side(name: str, spec: ModelSpec, config: Config | None) -> ChatSide:
    policy: PolicyModel = load_policy_model(spec)
    probe_sampler(policy)
    if config is None:
        return ChatSide(name=name, policy=policy)
    algorithm = build_spec(config)
    view = algorithm.scorer_view
    return ChatSide(name=name, policy=policy, prompt_format=algorithm.prompt_format, scorer_view=view)


def _with_unique_names(sides: Sequence[ChatSide]) -> tuple[ChatSide, ...]:
    """Names that tell the sides apart, also where the same model is on both."""
    if len(sides) == 2 and sides[0].name == sides[1].name:
        return sides[0], replace(sides[1], name=f"{sides[1].name} (2)")
    return tuple(sides)


def _scoring_run(rewards: str | Path | None, runs: dict[str, Config]) -> tuple[Path, Config | None]:
    """The run whose scorers score, and its recipe; None: nothing scores.

    Raises:
        ConfigError: `rewards` is not a run folder.
    """
    if rewards is not None:
        config = _run_config(str(rewards))
        if config is None:
            fix = "name one, whose scorers score the answers"
            raise ConfigError(f"{rewards}: is not a run folder; fix: {fix}")
        return Path(rewards), config
    return next(((Path(name), config) for name, config in runs.items()), (Path(), None))


def _settings(config: Config | None) -> ChatSettings:
    """Those of the evaluation of a run."""
    if config is None:
        return ChatSettings()
    generation, _ = evaluation_settings(config)
    return ChatSettings(
        temperature=generation.temperature,
        max_new_tokens=generation.max_new_tokens,
        seed=generation.seed,
    )
