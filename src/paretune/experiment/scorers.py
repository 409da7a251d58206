"""Scorers and judges of a recipe that have a type: what can be told at the door, and how they are built."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from paretune.config.schema import Config
from paretune.config.scorer_schema import (
    ClassifierScorerSection,
    JsonRuleSection,
    LengthRuleSection,
    LlmJudgeScorerSection,
    PhrasesRuleSection,
    PythonScorerSection,
    RegexRuleSection,
    RepetitionRuleSection,
    RewardModelScorerSection,
    RuleSection,
    ScorerSection,
)
from paretune.config.scorers import objective_columns, scorer_sections
from paretune.config.yaml import KeyPath
from paretune.core.errors import ConfigError, DataError, WiringError
from paretune.core.types import PreTrainedTokenizerBase
from paretune.data.chat import render_prompt
from paretune.data.chat_template import chat_template_of
from paretune.data.records import Prompt
from paretune.evaluate.judge_quality import JudgeQuality, fitted_report, head_qualities
from paretune.experiment.data_limits import policy_tokenizer
from paretune.experiment.resolved import ResolvedRun
from paretune.reward.failures import FailureCounts, GuardedScorer, OnFailures, describe_reasons
from paretune.reward.scorers import ObjectiveColumns, Scorer, ThinkingScorer

if TYPE_CHECKING:
    from paretune.reward.function_signatures import RewardFunction
    from paretune.reward.functions import PythonScorer

if TYPE_CHECKING:  # it imports the records, whose checks are here
    from paretune.experiment.context import RunContext

SCORING_FAILURE_EVENT = "scoring_failed"
PROMPT_FIELDS = ("id", "category")
"""What every prompt has, besides its columns."""
LLM_CACHE = "judge_cache"
"""Folder of the replies of LLM judges below the run folder."""


@dataclass(frozen=True)
class ScorerProblem:
    """A mistake of a scorer's section that is known without its weights."""

    path: KeyPath
    problem: str
    fix: str = ""


def typed_scorer_issues(
    run: ResolvedRun, train_prompts: Sequence[Prompt], test_prompts: Sequence[Prompt]
) -> list[str]:
    """Errors of scorers and judges that are visible without weights and without asking an endpoint.

    Args:
        run: The resolved recipe.
        train_prompts: Prompts that `scorers` read.
        test_prompts: Prompts that `judges` read.
    """
    issues = []
    for path, name, section in scorer_sections(run.config):
        prompts = train_prompts if path[0] == "scorers" else test_prompts
        for each in scorer_problems(path, name, section, prompts):
            issues.append(run.issue(each.path, each.problem, each.fix))
    return issues


def scorer_problems(
    path: KeyPath, name: str, section: ScorerSection, prompts: Sequence[Prompt] | None
) -> Iterator[ScorerProblem]:
    """What is wrong with one scorer, as far as it is known without weights and without asking an endpoint.

    Args:
        path: Key path of its section.
        name: Its name.
        section: Its section.
        prompts: Prompts that it reads; None: unknown.
    """
    if isinstance(section, PythonScorerSection):
        columns = {*PROMPT_FIELDS, *(name for prompt in prompts or () for name in prompt.columns)}
        yield from _function_problems(path, section, None if prompts is None else columns)
    elif isinstance(section, ClassifierScorerSection):
        from paretune.reward.classifier import classifier_issues

        for issue in classifier_issues(
            section.path,
            label=section.label,
            output=section.output,
            reads=section.reads,
            revision=section.revision,
        ):
            yield ScorerProblem((*path, issue.key), issue.problem, issue.fix)
    elif isinstance(section, RewardModelScorerSection):
        from paretune.reward.pretrained import reward_model_issues

        for issue in reward_model_issues(
            section.path, name=name, outputs=section.outputs, revision=section.revision
        ):
            yield ScorerProblem((*path, issue.key), issue.problem, issue.fix)
    elif isinstance(section, LlmJudgeScorerSection):
        yield from _judge_problems(path, section, prompts or ())
    else:
        yield from _caught(path, lambda: make_rule(section, None))


def _function_problems(
    path: KeyPath, section: PythonScorerSection, columns: Collection[str] | None
) -> Iterator[ScorerProblem]:
    from paretune.reward.function_signatures import check_arguments, check_columns

    functions: list[RewardFunction] = []
    yield from _caught((*path, "function"), lambda: functions.append(load_section_function(section)))
    if columns is None:
        return
    for function in functions:
        yield from _caught((*path, "function"), partial(check_columns, function, columns))
        yield from _caught((*path, "arguments"), partial(check_arguments, function, columns))


def _judge_problems(
    path: KeyPath, section: LlmJudgeScorerSection, prompts: Sequence[Prompt]
) -> Iterator[ScorerProblem]:
    from paretune.config.judges import build_llm_judge, llm_judge_issues, load_rubric
    from paretune.reward.rubric import check_prompt_criteria

    issues = list(llm_judge_issues(section, path))
    for issue in issues:
        yield ScorerProblem(issue.path, issue.problem, issue.fix)
    if issues:
        return
    problems = list(_caught((*path, "rubric"), lambda: build_llm_judge(section, cache_dir=Path(LLM_CACHE))))
    if not problems:
        rubric, column = load_rubric(section.rubric), section.criteria_column
        problems += _caught(
            (*path, "criteria_column"), lambda: check_prompt_criteria(rubric, prompts, column)
        )
    yield from problems


def _caught(path: KeyPath, build: Any) -> Iterator[ScorerProblem]:
    """The error of building something, as a problem at a key."""
    try:
        build()
    except (ConfigError, DataError, WiringError) as error:
        problem, _, fix = str(error).partition("; fix: ")
        yield ScorerProblem(path, problem, fix)


def load_section_function(section: PythonScorerSection) -> "RewardFunction":
    """The function of a section, loaded and checked.

    Raises:
        ConfigError: It cannot be loaded, or its arguments do not fit.
    """
    from paretune.reward.function_signatures import load_function

    return load_function(section.function, section.signature, section.arguments)


def make_rule(section: RuleSection, tokenizer: PreTrainedTokenizerBase | None) -> Any:
    """The rule of a section.

    Args:
        section: The section.
        tokenizer: Of the policy, for lengths in tokens; None: only to be checked.

    Raises:
        ConfigError: A setting is wrong.
    """
    from paretune.reward import rules
    from paretune.reward.json_rule import JsonRule, load_schema

    if isinstance(section, LengthRuleSection):
        tokenize = None
        if section.unit == "tokens":
            tokenize = _ids_of(tokenizer) if tokenizer is not None else (lambda _: ())
        return rules.LengthRule(
            unit=section.unit, target=section.target, min=section.min, max=section.max, tokenize=tokenize
        )
    if isinstance(section, RegexRuleSection):
        return rules.RegexRule(
            pattern=section.pattern, full_match=section.full_match, ignore_case=section.ignore_case
        )
    if isinstance(section, JsonRuleSection):
        schema = section.json_schema
        return JsonRule(load_schema(Path(schema)) if isinstance(schema, str) else schema)
    if isinstance(section, PhrasesRuleSection):
        return rules.PhrasesRule(
            required=section.required, forbidden=section.forbidden, ignore_case=section.ignore_case
        )
    assert isinstance(section, RepetitionRuleSection)
    return rules.RepetitionRule(n=section.n)


def _ids_of(tokenizer: PreTrainedTokenizerBase) -> Any:
    """A function from a text to its token ids, without special tokens."""

    def ids(text: str) -> list[int]:
        encoded: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return encoded

    return ids


def make_python_scorer(
    name: str,
    section: PythonScorerSection,
    function: "RewardFunction",
    tokenizer: PreTrainedTokenizerBase | None,
) -> "PythonScorer":
    """The scorer of a function.

    Args:
        name: Its objective, if the section names none.
        section: Its settings.
        function: The loaded function.
        tokenizer: Of the policy; None: prompts and completions are lists of messages.
    """
    from paretune.reward.functions import PythonScorer, join_messages

    is_text = tokenizer is not None and chat_template_of(tokenizer).source is None
    automatic: Literal["messages", "text"] = "text" if is_text else "messages"
    return PythonScorer(
        function=function,
        names=section.objectives or (name,),
        input=automatic if section.input == "auto" else section.input,
        timeout=section.timeout,
        max_failure_rate=section.max_failure_rate,
        prompt_text=join_messages if tokenizer is None else partial(render_prompt, tokenizer),
        tokenize=None if tokenizer is None else _ids_of(tokenizer),
    )


@dataclass(frozen=True, kw_only=True)
class ScorerBuilder:
    """Builds the scorers and judges of a run; they are loaded when they are asked for."""

    config: Config | None = None
    """The recipe; None: of scorers that come from no recipe."""
    run_dir: Path
    device: str
    tokenizer: PreTrainedTokenizerBase | None
    """Of the policy: lengths in tokens, and prompts as text; None: there is no policy."""
    on_failures: OnFailures | None = None

    def build(self, path: KeyPath, name: str, section: ScorerSection) -> GuardedScorer:
        """One scorer.

        Raises:
            ParetuneError: It cannot be loaded.
        """
        scorer, in_run = self._load(path, name, section), self.config is not None
        return GuardedScorer(".".join(map(str, path)), scorer, self.on_failures, in_run)

    def _load(self, path: KeyPath, name: str, section: ScorerSection) -> Any:
        if isinstance(section, PythonScorerSection):
            return make_python_scorer(name, section, load_section_function(section), self.tokenizer)
        if isinstance(section, ClassifierScorerSection):
            from paretune.reward.classifier import load_classifier_scorer

            return load_classifier_scorer(
                name=section.objective or name,
                device=self.device,
                **section.model_dump(exclude={"type", "objective"}),
            )
        if isinstance(section, RewardModelScorerSection):
            from paretune.reward.pretrained import load_pretrained_reward_scorer

            values = section.model_dump(exclude={"type"})
            return load_pretrained_reward_scorer(name=name, device=self.device, **values)
        if isinstance(section, LlmJudgeScorerSection):
            from paretune.config.judges import build_llm_judge

            scope = f"{'' if self.config is None else self.config.name} {'.'.join(map(str, path))}"
            return build_llm_judge(section, cache_dir=self.run_dir / LLM_CACHE, scope=scope)
        from paretune.reward.rules import RuleScorer

        return RuleScorer(name=section.objective or name, rule=make_rule(section, self.tokenizer))

    def training_scorers(self) -> list[Scorer]:
        """The scorers of `scorers` in the recipe, with the objectives that each of them scores."""
        config = self.config
        assert config is not None
        columns = objective_columns(config)
        scorers: list[Scorer] = []
        for name, section in config.scorers.items():
            own = {o: column for o, (owner, column) in columns.items() if owner == name}
            thinking = {o: own.pop(o) for o in list(own) if o in config.thinking_objectives}
            scorer = self.build(("scorers", name), name, section)
            if own:
                scorers.append(ObjectiveColumns(scorer, own))
            if thinking:
                scorers.append(ThinkingScorer(scorer, thinking))
        return scorers


def scorer_builder(ctx: "RunContext") -> ScorerBuilder:
    """The builder of the scorers of a run, which writes their failures into its events."""

    def on_failures(name: str, counts: FailureCounts) -> None:
        text = f"{name}: {counts.reasons.total():,} of {counts.num_responses:,} responses not scored"
        ctx.run.log_event(SCORING_FAILURE_EVENT, f"{text}: {describe_reasons(counts)}")

    return ScorerBuilder(
        config=ctx.config,
        run_dir=ctx.run.path,
        device=ctx.device,
        tokenizer=policy_tokenizer(ctx.config),
        on_failures=on_failures,
    )


def reads_columns(config: Config) -> bool:
    """Whether a scorer or judge reads further columns of the prompts."""
    readers = (PythonScorerSection, LlmJudgeScorerSection)
    return any(isinstance(section, readers) for _, _, section in scorer_sections(config))


def scorer_qualities(section: ScorerSection, names: Sequence[str]) -> dict[str, JudgeQuality]:
    """Objective -> measured quality of its head, of a reward model that another run fitted."""
    if not isinstance(section, RewardModelScorerSection):
        return {}
    return head_qualities(fitted_report(section.path), section.outputs or {name: name for name in names})


def describe_scorer(name: str, section: ScorerSection) -> str:
    """What a scorer is, as a noun phrase for tables and `paretune check`."""
    if isinstance(section, PythonScorerSection):
        return f"{name}: the function {section.function}"
    if isinstance(section, ClassifierScorerSection):
        return f"{name}: label {section.label} of the classifier {section.path}"
    if isinstance(section, RewardModelScorerSection):
        return f"{name}: the reward model {section.path}"
    if isinstance(section, LlmJudgeScorerSection):
        return f"{name}: {section.model} at {section.base_url} by {section.rubric}"
    return f"{name}: the rule {section.rule}"


def identity_of(scorer: Any) -> tuple[str, frozenset[str] | None]:
    """Hash of the weights of a scorer, and hashes of its training data: empty if none, None if unknown."""
    from paretune.reward.llm_judge import LlmJudgeScorer

    if isinstance(scorer, LlmJudgeScorer):
        return scorer.model_identity, None
    weights_hash = getattr(scorer, "weights_hash", None)
    if weights_hash is None:
        # A function or rule has no weights: its source stands for them. Of any other object nothing is known.
        identity = str(getattr(scorer, "identity", ""))
        return identity, frozenset() if identity else None
    return weights_hash(), getattr(scorer, "data_hashes", None)


def scorer_files(config: Config) -> list[Path]:
    """The local files that scorers and judges rest on, besides models: code, schemas, rubrics, canaries."""
    files: list[Path] = []
    for _, _, section in scorer_sections(config):
        if isinstance(section, PythonScorerSection):
            files += load_section_function(section).files
        elif isinstance(section, JsonRuleSection) and isinstance(section.json_schema, str):
            files.append(Path(section.json_schema))
        elif isinstance(section, LlmJudgeScorerSection):
            files.append(Path(section.rubric))
            files += [] if section.canaries is None else [Path(section.canaries)]
    return list(dict.fromkeys(files))
