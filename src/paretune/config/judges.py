"""LLM judges of a recipe: their rubric files, what can be known before a run, and the scorers themselves."""

import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from pydantic import ValidationError

from paretune.config.issues import ConfigIssue, closest_match, schema_issues
from paretune.config.scorer_schema import LlmJudgeScorerSection
from paretune.config.yaml import KeyPath, parse_yaml, read_text, short_repr
from paretune.core.errors import ConfigError, format_issue, join_issues
from paretune.reward.judge_canaries import read_canaries
from paretune.reward.judge_requests import JudgeEndpoint, JudgeLimits
from paretune.reward.llm_judge import LlmJudgeScorer
from paretune.reward.rubric import Rubric

_EMPTY_FIX = "write criteria: {politeness: {text: is it polite, levels: {rude: 0, polite: 1}}}"
_VARIABLE_PATTERN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET_PATTERN = re.compile(r"key|token|secret|sig|pass|pwd|auth|bearer|credential", re.IGNORECASE)


def load_rubric(path: str | Path) -> Rubric:
    """The rubric of a YAML file.

    Raises:
        ConfigError: One line per mistake of the file.
    """
    text, read_issue = read_text(Path(path), str(path))
    if read_issue:
        raise ConfigError(read_issue)
    return _parse_rubric(text, str(path))


@lru_cache(32)  # a check asks for the objectives of a rubric about ten times
def _parse_rubric(text: str, path: str) -> Rubric:
    tree = parse_yaml(text, path, _EMPTY_FIX)
    rubric, issues = None, []
    if not tree.unreadable:
        try:
            rubric = Rubric.model_validate(tree.values)
        except ValidationError as error:
            issues = schema_issues(error.errors(include_url=False), tree.values, Rubric)
        else:
            issues = [ConfigIssue(each.path, each.problem, fix=each.fix) for each in rubric.problems()]
    if rubric is None or issues or tree.issues:
        raise ConfigError(join_issues([*tree.issues, *(issue.render(tree) for issue in issues)]))
    return rubric


def llm_judge_issues(section: LlmJudgeScorerSection, path: KeyPath) -> Iterator[ConfigIssue]:
    """What is wrong with the section of an LLM judge, as far as it can be known without the network.

    Mistakes inside of the rubric and of the canaries are raised by `build_llm_judge`.
    """
    yield from _address_issues(section.base_url, (*path, "base_url"))
    yield from _key_issues(section.api_key_env, (*path, "api_key_env"))
    for key, name in (("rubric", section.rubric), ("canaries", section.canaries)):
        if name is not None and not Path(name).is_file():
            file = Path(name)
            siblings = [str(each) for each in file.parent.iterdir()] if file.parent.is_dir() else []
            match, fix = closest_match(name, siblings), "files are relative to the working directory"
            yield ConfigIssue(
                (*path, key), f"there is no file {short_repr(name)}", match, fix, standalone=True
            )
    has_price = section.input_price > 0 or section.output_price > 0
    if section.max_cost is not None and not has_price:
        problem = "has no effect: without prices every request costs 0"
        yield ConfigIssue((*path, "max_cost"), problem, fix="set input_price and output_price")
    if section.canaries is None and "min_canary_accuracy" in section.model_fields_set:
        problem = "has no effect without canaries"
        yield ConfigIssue((*path, "min_canary_accuracy"), problem, fix="remove it, or name canaries")


def _address_issues(address: str, path: KeyPath) -> Iterator[ConfigIssue]:
    try:
        parts = urlsplit(address)
        is_address = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # a port that is no number
        is_address = False
    if not is_address:
        fix = "write it like http://127.0.0.1:8000/v1"
        yield ConfigIssue(path, "is not the address of an API", fix=fix)
        return
    if parts.path.rstrip("/").endswith("/chat/completions"):
        address = address.partition("/chat/completions")[0]
        yield ConfigIssue(path, "is the address of one route", fix=f"write {short_repr(address)}")
    # The value is not shown: it would be copied into logs with the secret in it.
    secret_names = [name for name, _ in parse_qsl(parts.query) if _SECRET_PATTERN.search(name)]
    if parts.username is not None or parts.password is not None or secret_names:
        fix = "remove it, and name an environment variable in api_key_env"
        yield ConfigIssue(path, "holds a secret", fix=fix)


def _key_issues(variable: str | None, path: KeyPath) -> Iterator[ConfigIssue]:
    # The value is not shown: somebody may have written the key itself.
    if variable is None:
        return
    if not _VARIABLE_PATTERN.fullmatch(variable):
        fix = "write the name of a variable that holds the key, such as OPENAI_API_KEY, not the key itself"
        yield ConfigIssue(path, "is not the name of an environment variable", fix=fix)
        return
    key = os.environ.get(variable, "").strip()
    if not key:
        problem = "names an environment variable that is not set"
        yield ConfigIssue(path, problem, fix="set it in the shell that starts the run")
    elif not (key.isascii() and key.isprintable()):
        problem = "names an environment variable with characters that no key can have"
        yield ConfigIssue(path, problem, fix="set it to the key alone")


def judge_limits(section: LlmJudgeScorerSection) -> JudgeLimits:
    """Caps and prices of a section."""
    return JudgeLimits(
        max_requests=section.max_requests,
        max_cost=section.max_cost,
        input_price=section.input_price,
        output_price=section.output_price,
    )


def build_llm_judge(section: LlmJudgeScorerSection, *, cache_dir: Path, scope: str = "") -> LlmJudgeScorer:
    """The scorer of a section; asks nothing.

    Args:
        section: The section.
        cache_dir: Folder of the replies, if the section names none.
        scope: Whose requests and cost the caps count, such as run and judge.

    Raises:
        ConfigError: One line per mistake of the rubric.
        DataError: One line per mistake of the canaries.
    """
    rubric = load_rubric(section.rubric)
    if section.criteria_column is None and (empty := rubric.empty_classes):
        fix = "set criteria_column, or remove them"
        problem = f"no criterion belongs to {', '.join(empty)}"
        raise ConfigError(format_issue(section.rubric, 1, None, "classes", problem, fix=fix))
    endpoint = JudgeEndpoint(
        base_url=section.base_url,
        model=section.model,
        api_key_env=section.api_key_env,
        temperature=section.temperature,
        max_tokens=section.max_tokens,
        response_format=section.response_format,
        timeout=section.timeout,
        max_retries=section.max_retries,
        max_concurrency=section.max_concurrency,
    )
    return LlmJudgeScorer(
        rubric=rubric,
        endpoint=endpoint,
        cache_dir=Path(section.cache_dir) if section.cache_dir else cache_dir,
        limits=judge_limits(section),
        scope=scope,
        criteria_column=section.criteria_column,
        canaries=() if section.canaries is None else read_canaries(Path(section.canaries), rubric),
        min_canary_accuracy=section.min_canary_accuracy,
        max_failure_rate=section.max_failure_rate,
    )
