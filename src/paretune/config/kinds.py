"""Kinds of prompts: a word that was all but one of those whose refusals are counted apart."""

from collections.abc import Iterator

from paretune.config.faults import ConfigIssue
from paretune.config.schema import Config
from paretune.config.tree import short_repr
from paretune.data.columns import NOT_REFUSAL_CATEGORY, RENAME_CATEGORY_FIX, misspelled_category


def category_issues(config: Config) -> Iterator[ConfigIssue]:
    """Kinds in whose spelling a slip would take their refusals out of the evaluation, unseen."""
    for group, found in (("prompts", config.data.prompts), ("test", config.data.test_prompts)):
        for name, source in found.items():
            meant = misspelled_category(source.category)
            if meant:
                fix = RENAME_CATEGORY_FIX.format(meant)
                wrong = f"{short_repr(source.category)} {NOT_REFUSAL_CATEGORY}"
                yield ConfigIssue(
                    ("data", group, name, "kind"), wrong, suggestion=meant, fix=fix, standalone=True
                )
