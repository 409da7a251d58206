"""Kinds of prompts: a word that was all but one of those whose refusals are counted apart."""

from collections.abc import Iterator

from paretune.config.faults import Fault
from paretune.config.schema import Experiment
from paretune.config.tree import short
from paretune.data.columns import LESS_LIKE, UNCOUNTED, counted_kind


def kind_faults(e: Experiment) -> Iterator[Fault]:
    """Kinds in whose spelling a slip would take their refusals out of the evaluation, unseen."""
    for group, found in (("prompts", e.data.prompts), ("test", e.data.test)):
        for name, source in found.items():
            meant = counted_kind(source.kind)
            if meant:
                fix = LESS_LIKE.format(meant)
                wrong = f"{short(source.kind)} {UNCOUNTED}"
                yield Fault(("data", group, name, "kind"), wrong, meant=meant, fix=fix, alone=True)
