"""Constructors of scorers: the signals of the section `scorers` of a recipe, with its names and defaults.

They are loaded when they are used; `paretune.score`, `align` and `evaluate` take them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from paretune.api.arguments import check_arguments
from paretune.config.data_schema import Name, Section
from paretune.config.issues import schema_issues
from paretune.config.scorer_schema import ScorerSection
from paretune.config.yaml import dotted_key
from paretune.core.errors import ConfigError, format_issue

__all__ = ["ScorerSetup", "classifier", "llm_judge", "python_scorer", "reward_model", "rule"]


class _Scorers(Section):
    scorers: dict[Name, ScorerSection]


@dataclass(frozen=True, kw_only=True)
class ScorerSetup:
    """A scorer with its settings, before anything of it is loaded."""

    name: str
    """Its name, and its objective if it scores a single one that is not named otherwise."""
    section: Any
    """Its settings, as a section of a recipe."""
    function: Callable[..., Any] | None = None
    """The function of a `python` scorer that was given as an object."""


@check_arguments
def python_scorer(
    function: Callable[..., Any] | str,
    *,
    name: str | None = None,
    timeout: float | None = 60.0,
    signature: Literal["trl", "verl", "openrlhf"] = "trl",
    objectives: Sequence[str] = (),
    input: Literal["auto", "messages", "text"] = "auto",
    arguments: Mapping[str, Any] | None = None,
    max_failure_rate: float = 0.2,
) -> ScorerSetup:
    """A Python function: a reward function of TRL, verl or OpenRLHF, unchanged, or one of your own.

    Args:
        function: The function, or `package.module:name` or `file.py:name`.
        name: Its objective; None: the name of the function.
        timeout: Seconds that a call may take; None: no limit.
        signature: The arguments that it expects.
        objectives: The objectives that one call scores, if it returns several.
        input: Prompts and completions as lists of messages or as text; auto: messages, but text for a policy
            without a chat template.
        arguments: Further keyword arguments of every call.
        max_failure_rate: Largest share of responses that may fail before scoring stops.

    Raises:
        ConfigError: A setting is wrong, or the function has no name.
    """
    label = function if isinstance(function, str) else getattr(function, "__name__", type(function).__name__)
    own_name = name or label.rpartition(":")[2].rpartition(".")[2]
    if name is None and (own_name == "<lambda>" or isinstance(function, partial)):
        raise ConfigError(
            f"a {own_name.strip('<>')} has no name; fix: name its objective, by a mapping "
            '{"polite": function} or python_scorer(function, name="polite")'
        )
    section = _section(
        own_name,
        type="python",
        function=label,
        timeout=timeout,
        signature=signature,
        objectives=tuple(objectives),
        input=input,
        arguments=dict(arguments or {}),
        max_failure_rate=max_failure_rate,
    )
    return ScorerSetup(
        name=own_name, section=section, function=None if isinstance(function, str) else function
    )


@check_arguments
def rule(
    rule: Literal["length", "regex", "json", "phrases", "repetition"],
    *,
    name: str | None = None,
    **settings: Any,
) -> ScorerSetup:
    """A rule that reads the response alone.

    Args:
        rule: length, regex, json, phrases or repetition.
        name: Its objective; None: the name of the rule.
        settings: The keys of the rule in a recipe, such as `max` and `unit` of length; docs/scorers.md.

    Raises:
        ConfigError: A setting is wrong.
    """
    own_name = name or rule
    return ScorerSetup(name=own_name, section=_section(own_name, type="rule", rule=rule, **settings))


@check_arguments
def classifier(
    path: str | Path,
    *,
    label: str | int,
    name: str | None = None,
    revision: str | None = None,
    output: Literal["probability", "logit", "log_odds"] = "probability",
    invert: bool = False,
    reads: Literal["response", "prompt_and_response", "conversation"] = "response",
    dtype: Literal["float32", "bfloat16"] = "float32",
    max_failure_rate: float = 0.2,
) -> ScorerSetup:
    """A sequence classifier of transformers, one of its labels as one objective.

    Args:
        path: Folder or hub name.
        label: The label, by name or index.
        name: Its objective; None: the label.
        revision: Revision on the hub.
        output: probability, logit or log_odds of the label.
        invert: The label is bad.
        reads: The response alone, the prompt and the response as a pair, or the conversation.
        dtype: Precision of its body.
        max_failure_rate: Largest share of responses that may fail before scoring stops.

    Raises:
        ConfigError: A setting is wrong.
    """
    own_name = name or (label if isinstance(label, str) else f"label_{label}")
    section = _section(
        own_name,
        type="classifier",
        path=str(path),
        label=label,
        revision=revision,
        output=output,
        invert=invert,
        reads=reads,
        dtype=dtype,
        max_failure_rate=max_failure_rate,
    )
    return ScorerSetup(name=own_name, section=section)


@check_arguments
def reward_model(
    path: str | Path,
    *,
    name: str = "reward",
    outputs: Mapping[str, str | int] | None = None,
    revision: str | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    max_failure_rate: float = 0.2,
) -> ScorerSetup:
    """A reward model: one that this package fitted, or a ready-made one.

    Args:
        path: Folder or hub name.
        name: Its name, and the objective of a model with a single output.
        outputs: Objective -> label or index of the output; None: the labels are the objectives.
        revision: Revision on the hub.
        dtype: Precision of its body.
        chat_template_kwargs: Arguments of its chat template.
        max_failure_rate: Largest share of responses that may fail before scoring stops.

    Raises:
        ConfigError: A setting is wrong.
    """
    section = _section(
        name,
        type="reward_model",
        path=str(path),
        outputs=dict(outputs or {}),
        revision=revision,
        dtype=dtype,
        chat_template_kwargs=dict(chat_template_kwargs or {}),
        max_failure_rate=max_failure_rate,
    )
    return ScorerSetup(name=name, section=section)


@check_arguments
def llm_judge(
    base_url: str, model: str, rubric: str | Path, *, name: str = "judge", **settings: Any
) -> ScorerSetup:
    """A language model behind an OpenAI-compatible endpoint that rates responses by a rubric.

    Args:
        base_url: Address of the API, such as http://127.0.0.1:8000/v1.
        model: Name of the model there.
        rubric: YAML file of criteria, by its name.
        name: Its name; the criteria and classes of the rubric are its objectives.
        settings: The other keys of an `llm_judge` in a recipe, such as `api_key_env` and `max_cost`.

    Raises:
        ConfigError: A setting is wrong.
    """
    if not isinstance(rubric, str | Path):
        raise ConfigError(
            f"scorer {name}: rubric: a {type(rubric).__name__} is not the name of a YAML file; fix: write "
            'the criteria into a file, and pass its name, such as "rubric.yaml"'
        )
    section = _section(name, type="llm_judge", base_url=base_url, model=model, rubric=str(rubric), **settings)
    return ScorerSetup(name=name, section=section)


def _section(name: str, **settings: Any) -> Any:
    """The section of these settings.

    Raises:
        ConfigError: One line per mistake.
    """
    tree = {"scorers": {name: settings}}
    try:
        return _Scorers.model_validate(tree).scorers[name]
    except ValidationError as error:
        issues = schema_issues(error.errors(include_url=False), tree, _Scorers)
        lines = [
            format_issue(
                f"scorer {name}",
                None,
                None,
                dotted_key(issue.path[2:]),
                issue.problem,
                suggestion=issue.suggestion.rpartition(".")[2],
                fix=issue.fix.replace(f"scorers.{name}", "the arguments"),
            )
            for issue in issues
        ]
        raise ConfigError("\n".join(lines)) from error
