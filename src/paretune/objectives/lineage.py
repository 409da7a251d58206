"""What a reward model was fitted on, in hashes few enough to be kept inside it.

They answer one question later: were the training reward and the judge of an evaluation fitted on common data?
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from paretune.data.records import PreferencePair, Rating

MAX_RECORD_HASHES = 2048
"""Hashes kept of a model's records: the smallest ones.

Of two sets of records each side keeps those that hash lowest, so that common records are kept on both sides
or on neither. Up to so many records nothing is missed; of more, a common part far below one in `KEPT` may be.
"""
RECORD_HASH_DIGITS = 12
"""Of a record's hash; two different records among thousands do not meet by chance."""


def data_provenance(
    records: Iterable[Rating | PreferencePair], file_hashes: Iterable[str] = ()
) -> dict[str, list[str]]:
    """Hashes of the texts that were labelled, whatever the labels, and of the files they were read from.

    The same response under another rater counts as the same record: errors that hang on a text are then
    common to both models.

    Args:
        records: Those of the fit.
        file_hashes: Their SHA-256.
    """
    found = {_record_hash(record, text) for record in records for text in _responses(record)}
    return {"files": sorted(set(file_hashes)), "records": sorted(found)[:MAX_RECORD_HASHES]}


def provenance_hashes(provenance: Mapping[str, Sequence[str]]) -> frozenset[str] | None:
    """A stored lineage as one set, or None where nobody knows what the model was fitted on."""
    if not provenance.get("records"):
        return None
    return frozenset(f"{kind} {name}" for kind in ("files", "records") for name in provenance.get(kind, ()))


def _responses(record: Rating | PreferencePair) -> tuple[str, ...]:
    return (record.chosen, record.rejected) if isinstance(record, PreferencePair) else (record.response,)


def _record_hash(record: Rating | PreferencePair, response: str) -> str:
    """Of the conversation and the response; white space does not count."""
    turns = [part for message in record.prompt.messages for part in (message.role, message.content)]
    whole = "\x00".join(" ".join(part.split()) for part in (*turns, response))
    return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()[:RECORD_HASH_DIGITS]
