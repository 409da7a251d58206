"""Loads what callers give as scorers and judges: objects, functions and settings of scorers."""

import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paretune.api.checked_scorers import checked_scorer, is_scorer
from paretune.api.scorers import ScorerSetup, python_scorer
from paretune.config.scorer_schema import LlmJudgeScorerSection, PythonScorerSection
from paretune.core.errors import ConfigError, WiringError, format_issue
from paretune.core.types import PreTrainedTokenizerBase
from paretune.data.records import Prompt
from paretune.evaluate.judge_quality import JudgeQuality, head_qualities
from paretune.evaluate.judging import Judge
from paretune.experiment.scorers import (
    ScorerBuilder,
    describe_scorer,
    identity_of,
    make_python_scorer,
    scorer_problems,
    scorer_qualities,
)
from paretune.reward.failures import GuardedScorer, OnFailures, unwrapped
from paretune.reward.function_signatures import check_arguments, check_columns, load_function
from paretune.reward.scorers import Scorer

ScorerLike = Scorer | Callable[..., Any] | ScorerSetup
"""A scorer, a reward function, or the settings of a scorer from `paretune.scorers`."""
ScorersLike = ScorerLike | Sequence[ScorerLike] | Mapping[str, ScorerLike]
"""One or more; a mapping names them. A function's name is its objective; a scorer has names of its own."""

_PROMPT_FIELDS = ("id", "category")


@dataclass(frozen=True, kw_only=True)
class LoadingContext:
    """What scorers are loaded for."""

    prompts: tuple[Prompt, ...] = ()
    """The prompts whose columns they read; checked before anything is loaded."""
    tokenizer: PreTrainedTokenizerBase | None = None
    """Of the policy."""
    run_dir: Path = Path()
    """Folder that gets the replies of LLM judges."""
    device: str = "auto"
    on_failures: OnFailures | None = None


def load_scorers(scorers: ScorersLike, context: LoadingContext) -> tuple[GuardedScorer, ...]:
    """The scorers, each with its name, its failures counted and its settings checked.

    Raises:
        WiringError: There are none, one is no scorer, or two score the same objective.
        ConfigError: A setting is wrong.
        ScoringError: An LLM judge answers too many canaries wrongly.
    """
    loaded = tuple(_load(name, scorer, context) for name, scorer in _named(scorers, "scorers"))
    owners: dict[str, str] = {}
    for scorer in loaded:
        for objective in scorer.names:
            if objective in owners:
                problem = f'the objective "{objective}" is scored by {owners[objective]} and by {scorer.name}'
                fix = "name the objective of one differently, or keep one of them"
                raise WiringError(f"{problem}; fix: {fix}")
            owners[objective] = scorer.name
    return loaded


def load_judges(
    judges: ScorersLike | Judge | Sequence[ScorerLike | Judge],
    context: LoadingContext,
    *,
    parameter: str = "judges",
) -> tuple[Judge, ...]:
    """The judges, with what is known of their weights and training data.

    Several judges may score one objective, if their names differ.

    Raises:
        WiringError: There are none, or one is no scorer.
        ConfigError: A setting is wrong.
        ScoringError: An LLM judge answers too many canaries wrongly.
    """
    loaded = []
    for name, judge in _named(judges, parameter):
        if isinstance(judge, Judge):
            loaded.append(_load_judge(judge, context))
            continue
        scorer = _load(name, judge, context)
        weights_hash, data_hashes = identity_of(unwrapped(scorer))
        display_name = scorer.name
        if isinstance(judge, ScorerSetup) and judge.function is None:
            display_name = describe_scorer(scorer.name, judge.section)
        loaded.append(
            Judge(
                name=display_name,
                scorer=scorer,
                weights_hash=weights_hash,
                data_hashes=data_hashes,
                key=scorer.name,
                qualities=_qualities(judge, scorer.names),
            )
        )
    return tuple(loaded)


def _qualities(judge: Any, names: Sequence[str]) -> dict[str, JudgeQuality]:
    """The measured quality of a reward model that was fitted here or in a run; empty for other scorers."""
    if isinstance(judge, ScorerSetup) and judge.function is None:
        return scorer_qualities(judge.section, names)
    report = getattr(judge, "report", None)
    return head_qualities(report, {name: name for name in names}) if isinstance(report, Mapping) else {}


def _named(scorers: Any, parameter: str) -> list[tuple[str | None, Any]]:
    """Name, if one was given, and scorer."""
    named: list[tuple[str | None, Any]]
    if isinstance(scorers, Mapping):
        named = list(scorers.items())
    elif isinstance(scorers, ScorerSetup | Judge) or callable(scorers):
        named = [(None, scorers)]
    elif isinstance(scorers, Iterable) and not isinstance(scorers, str):
        named = [(None, scorer) for scorer in scorers]
    else:
        named = [(None, scorers)]
    if not named:
        raise WiringError(f"{parameter} is empty; fix: pass at least one function or scorer")
    return named


def _load(name: str | None, scorer: Any, context: LoadingContext) -> GuardedScorer:
    if isinstance(scorer, GuardedScorer):
        return scorer
    if isinstance(scorer, ScorerSetup):
        return _load_setup(name or scorer.name, scorer, context)
    if is_scorer(scorer):
        checked = checked_scorer(scorer)
        return GuardedScorer(name or ", ".join(checked.names), checked, context.on_failures)
    if callable(scorer):
        setup = python_scorer(scorer, name=name)
        return _load_setup(setup.name, setup, context)
    problem = f"{reprlib.repr(scorer)} is no scorer, but a {type(scorer).__name__}"
    fix = "pass a function, a Scorer, or one of paretune.scorers, such as scorers.reward_model(path)"
    raise WiringError(f"{problem}; fix: {fix}")


def _load_judge(judge: Judge, context: LoadingContext) -> Judge:
    """The judge with the mistakes of its scorer counted."""
    if isinstance(judge.scorer, ScorerSetup) or not is_scorer(judge.scorer):
        # What they score cannot be compared with the training rewards by the identity of an object.
        problem = f"its scorer is a {type(judge.scorer).__name__}, not an object with names"
        raise WiringError(f"judge {judge.name}: {problem}; fix: pass it as a judge itself, without Judge")
    return replace(judge, scorer=_load(judge.name, judge.scorer, context))


def _load_setup(name: str, setup: ScorerSetup, context: LoadingContext) -> GuardedScorer:
    section = setup.section
    if setup.function is not None:
        assert isinstance(section, PythonScorerSection)
        return GuardedScorer(name, _function_scorer(name, setup, context), context.on_failures)
    path = ("scorers", name)
    problems = list(scorer_problems(path, name, section, context.prompts))
    if problems:
        raise ConfigError("\n".join(_issue(name, each.path[2:], each.problem, each.fix) for each in problems))
    builder = ScorerBuilder(run_dir=context.run_dir, device=context.device, tokenizer=context.tokenizer)
    scorer = builder.build((name,), name, section).scorer
    if isinstance(section, LlmJudgeScorerSection):
        for problem in (scorer.check_endpoint(), scorer.check_replies()):
            if problem is not None:
                raise ConfigError(_issue(name, (problem.key,), problem.problem, problem.fix))
        scorer.check_canaries()
    return GuardedScorer(name, scorer, context.on_failures)


def _function_scorer(name: str, setup: ScorerSetup, context: LoadingContext) -> Any:
    section = setup.section
    columns = {*_PROMPT_FIELDS, *(column for prompt in context.prompts for column in prompt.columns)}
    try:
        function = load_function(setup.function, section.signature, section.arguments)  # type: ignore[arg-type]
        check_columns(function, columns)
        check_arguments(function, columns)
    except ConfigError as error:
        raise ConfigError(f"scorer {name}: {error}") from error
    return make_python_scorer(name, section, function, context.tokenizer)


def _issue(name: str, keys: Sequence[object], problem: str, fix: str) -> str:
    return format_issue(f"scorer {name}", None, None, ".".join(map(str, keys)), problem, fix=fix)
