"""What a reward model was fitted on, in hashes few enough to be kept inside it.

They answer one question later: were the training reward and the judge of an evaluation fitted on common data?
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from paretune.data.records import Preference, Rating

KEPT = 2048
"""Hashes kept of a model's records: the smallest ones.

Of two sets of records each side keeps those that hash lowest, so that common records are kept on both sides
or on neither. Up to so many records nothing is missed; of more, a common part far below one in `KEPT` may be.
"""
DIGITS = 12
"""Of a record's hash; two different records among thousands do not meet by chance."""


def lineage(records: Iterable[Rating | Preference], files: Iterable[str] = ()) -> dict[str, list[str]]:
    """Hashes of the texts that were labelled, whatever the labels, and of the files they were read from.

    The same response under another rater counts as the same record: errors that hang on a text are then
    common to both models.

    Args:
        records: Those of the fit.
        files: Their SHA-256.
    """
    found = {_hashed(record, text) for record in records for text in _texts(record)}
    return {"files": sorted(set(files)), "records": sorted(found)[:KEPT]}


def known_data(data: Mapping[str, Sequence[str]]) -> frozenset[str] | None:
    """A stored lineage as one set, or None where nobody knows what the model was fitted on."""
    if not data.get("records"):
        return None
    return frozenset(f"{kind} {name}" for kind in ("files", "records") for name in data.get(kind, ()))


def _texts(record: Rating | Preference) -> tuple[str, ...]:
    return (record.chosen, record.rejected) if isinstance(record, Preference) else (record.response,)


def _hashed(record: Rating | Preference, text: str) -> str:
    """Of the conversation and the response; white space does not count."""
    turns = [part for message in record.prompt.messages for part in (message.role, message.content)]
    whole = "\x00".join(" ".join(part.split()) for part in (*turns, text))
    return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()[:DIGITS]
