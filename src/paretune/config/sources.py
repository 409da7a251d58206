"""The files that a recipe names, each with its key and its type of record."""

from collections.abc import Callable, Iterator
from typing import Any

from paretune.config.data_schema import ColumnsSection, DataSource
from paretune.config.issues import ConfigIssue, list_names
from paretune.config.schema import Config
from paretune.config.unknown import UnknownValueError, known_items
from paretune.config.validate import non_default_keys, reward_sections
from paretune.config.yaml import KeyPath

COLUMNS_BY_RECORD_TYPE = {
    "prompts": {"prompt", "messages", "id", "category", "preference_weights"},
    "ratings": {"prompt", "messages", "id", "response", "scores", "rater"},
    "pairs": {"prompt", "id", "chosen", "rejected", "objective"},
    "demonstrations": {"prompt", "messages", "id", "response"},
}


def data_sources(config: Config) -> Iterator[tuple[KeyPath, str, DataSource]]:
    """Every file of the recipe: its key path, its record type, and the source."""
    for path, record_type, sources in _groups(config):
        for name, source in known_items(sources).items():
            yield (*path, name), record_type, source


def _groups(config: Config) -> Iterator[tuple[KeyPath, str, dict[str, Any]]]:
    """The groups of sources that can be read, in their order."""

    def sft_sources() -> dict[str, Any]:
        return config.policy.sft.demonstrations if config.policy.sft else {}

    groups: list[tuple[KeyPath, str, Callable[[], dict[str, Any]]]] = [
        (("data", "prompts"), "prompts", lambda: config.data.prompts),
        (("data", "test_prompts"), "prompts", lambda: config.data.test_prompts),
        (("policy", "sft", "demonstrations"), "demonstrations", sft_sources),
        (("data", "stored_responses", "ratings"), "ratings", lambda: config.data.stored_responses.ratings),
        (("data", "stored_responses", "pairs"), "pairs", lambda: config.data.stored_responses.pairs),
        (("data", "demonstrations"), "demonstrations", lambda: config.data.demonstrations),
    ]
    for path, record_type, sources in groups:
        try:
            yield path, record_type, sources()
        except UnknownValueError:
            continue
    for name, section in reward_sections(config):
        for group in ("ratings", "pairs", "test_ratings", "test_pairs"):
            try:
                yield (name, group), group.removeprefix("test_"), getattr(section, group)
            except UnknownValueError:
                continue


def column_issues(config: Config) -> Iterator[ConfigIssue]:
    """Columns that a type of record does not have."""
    for path, record_type, source in data_sources(config):
        columns: ColumnsSection = source.columns
        allowed = COLUMNS_BY_RECORD_TYPE[record_type]
        for key in (key for key in non_default_keys(columns) if key not in allowed):
            problem = f"{record_type} have no such column"
            fix = f"one of {list_names(sorted(allowed), 'docs/data.md')}"
            yield ConfigIssue((*path, "columns", key), problem, fix=fix, standalone=True)
        if record_type == "pairs" and columns.objective and getattr(source, "objective", None) is not None:
            yield ConfigIssue(
                (*path, "columns", "objective"), "has no effect with `objective`", fix="remove it"
            )
