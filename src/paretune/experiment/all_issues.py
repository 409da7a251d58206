"""All mistakes of a recipe in one round: those of its data and models beside those of its values.

`check_run` stops at the first stage with mistakes. Here every check runs by itself, and one that reads a
value which is invalid, or a model which cannot be read, says nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from paretune.config import Config, find_recipe, load_config
from paretune.config.build import base_spec
from paretune.config.data_schema import RewardSection
from paretune.config.load import InvalidRecipeError, issue_sort_key
from paretune.config.prompt_format import apply_prompt_format
from paretune.config.scorers import scorer_sections
from paretune.config.sources import data_sources
from paretune.config.unknown import UnknownAlgorithm, UnknownValueError, known_items
from paretune.config.yaml import KeyPath
from paretune.core.errors import ConfigError, ParetuneError
from paretune.data.records import Prompt
from paretune.experiment.chat_templates import chat_template_issues
from paretune.experiment.data import DataReader
from paretune.experiment.data_limits import max_prompt_length, policy_context_length, reward_tokenizer
from paretune.experiment.model_checks import model_issues
from paretune.experiment.preflight import (
    critic_tokenizer_issues,
    gradient_checkpointing_issues,
    readable_models,
    section_issues,
)
from paretune.experiment.resolved import ResolvedRun, resolve
from paretune.experiment.scorers import scorer_problems


def load_or_tell_all(recipe: str, overrides: Sequence[str] = ()) -> Config:
    """Load a recipe; if it has mistakes, look for those of its data and models too.

    Args:
        recipe: A YAML file, or the name of a shipped recipe.
        overrides: Values that override it.

    Raises:
        ConfigError: One line per mistake.
    """
    try:
        return load_config(find_recipe(recipe), overrides)
    except InvalidRecipeError as error:
        if error.partial is None:
            raise
        further = remaining_issues(error.partial)
        lines = sorted([*error.issues, *further], key=issue_sort_key)
        lines.sort(key=lambda line: not issue_sort_key(line))  # files of data, without a place in the recipe
        raise ConfigError("\n".join(lines)) from None


def with_all_issues(run: ResolvedRun, error: ParetuneError) -> ParetuneError:
    """The error of a check, with the mistakes behind the one that stopped it."""
    lines = str(error).splitlines()
    further = [line for line in remaining_issues(run.config) if line not in lines]
    if not further:
        return error
    return type(error)("\n".join([*lines, *further]))


def remaining_issues(config: Config) -> list[str]:
    """One line per mistake of the data and models of a recipe, of which some values may be unknown."""
    run, lines = _resolve_known(config), _Lines()
    checks: list[Callable[[], Iterable[str]]] = [
        lambda: _model_lines(run, lines),
        lambda: critic_tokenizer_issues(run),
        lambda: gradient_checkpointing_issues(run),
        lambda: chat_template_issues(run),
    ]
    results = [lines.gather(check) for check in checks]
    if results[-1]:  # else every row would be reported for the same reason
        prompts = _read_rows(run, lines)
        for path, name, section in scorer_sections(config):
            lines.gather(
                lambda path=path, name=name, section=section: (  # type: ignore[misc]
                    run.issue(each.path, each.problem, each.fix)
                    for each in scorer_problems(path, name, section, prompts[path[0] != "scorers"])
                )
            )
    return lines.unique


class _Lines:
    """The lines of several checks, each once."""

    def __init__(self) -> None:
        self.unique: list[str] = []

    def gather(self, check: Callable[[], Iterable[str]]) -> bool:
        """Add the lines of one check; False if it found a mistake, or could not be made."""
        num_lines = len(self.unique)
        try:
            for line in check():
                self.add(line)
        except UnknownValueError:
            return False
        except ParetuneError as error:
            for line in str(error).splitlines():
                self.add(line)
            return False
        return len(self.unique) == num_lines

    def add(self, line: str) -> None:
        if line not in self.unique:
            self.unique.append(line)


class _PartlyKnownRun(ResolvedRun):
    """A run whose algorithm cannot be built."""

    def __init__(self, config: Config, algorithm: UnknownAlgorithm) -> None:
        # The fields of a frozen dataclass, one of which has another type here.
        vars(self).update(config=config, algorithm=algorithm, phases=(), learning_rate_notes=())


def _resolve_known(config: Config) -> ResolvedRun:
    """The run as far as it is known: its algorithm has no argument that is invalid."""
    try:
        return resolve(config)
    except (UnknownValueError, ParetuneError):
        pass
    known: dict[str, Any] = {}
    try:
        arguments = known_items(config.algorithm.arguments)
        section = type(config.algorithm)(name=config.algorithm.name, **arguments)
        spec = base_spec(config.model_copy(update={"algorithm": section}), gates=())
        known["gradient_free"] = spec.gradient_free
        known["prompt_format"] = apply_prompt_format(config, spec).prompt_format
    except (UnknownValueError, ParetuneError):
        pass
    return _PartlyKnownRun(config, UnknownAlgorithm(known))


def _model_lines(run: ResolvedRun, lines: _Lines) -> Iterator[str]:
    models, issues = readable_models(run)
    yield from issues
    lines.gather(lambda: model_issues(run, models))
    yield from section_issues(run, models)


def _read_rows(run: ResolvedRun, lines: _Lines) -> tuple[list[Prompt] | None, list[Prompt] | None]:
    """Check the rows of every file; returns the prompts of training and of evaluation, None if unknown."""
    config = run.config
    reader = DataReader(run, lambda done, total, note: None, model_issues=[])
    prompts: dict[str, list[Prompt] | None] = {"prompts": [], "test_prompts": []}
    limit = 0

    def prompt_limit() -> Iterator[str]:
        nonlocal limit
        limit = policy_context_length(config)
        limit = max_prompt_length(run, limit)
        yield from ()

    lines.gather(prompt_limit)
    for path, record_type, source in data_sources(config):
        group = str(path[-2])

        def read(
            path: KeyPath = path, record_type: str = record_type, source: Any = source, group: str = group
        ) -> Iterator[str]:
            yield from _read_source(reader, path, record_type, source, limit, prompts)

        num_issues = len(reader.file_issues.places) + len(reader.row_issues)
        is_read = limit > 0 and lines.gather(read)
        has_issues = len(reader.file_issues.places) + len(reader.row_issues) > num_issues
        if path[0] == "data" and group in prompts and (not is_read or has_issues):
            prompts[group] = None
    for line in (*reader.file_issues.lines(), *reader.row_issues):
        lines.add(line)
    try:
        data = config.data
        if data.world is not None:
            return None, None
        for name in prompts:
            _ = [*getattr(data, name)]
        tested = prompts["prompts"] if data.holdout_fraction is not None else prompts["test_prompts"]
    except UnknownValueError:
        return None, None
    return prompts["prompts"], tested


def _read_source(
    reader: DataReader,
    path: KeyPath,
    record_type: str,
    source: Any,
    limit: int,
    prompts: dict[str, list[Prompt] | None],
) -> Iterator[str]:
    """Read one file, whose complaints the reader collects."""
    run, name = reader.run, str(path[-1])
    if record_type == "prompts":
        read = reader.read_prompts(name, source, limit)
        known = prompts[str(path[1])]
        if known is not None:
            known += read
    elif record_type == "demonstrations":
        reader.read_demonstrations({name: source}, policy_context_length(run.config))
    else:
        owner = str(path[0])
        section = getattr(run.config, owner)
        tokenizer, max_length = reader.tokenizer, policy_context_length(run.config)
        if isinstance(section, RewardSection):
            tokenizer, max_length = reward_tokenizer(run, owner, section)
        ratings, pairs = ({name: source}, {}) if record_type == "ratings" else ({}, {name: source})
        reader.read_labelled_rows(owner, ratings, pairs, tokenizer, max_length)
    yield from ()
