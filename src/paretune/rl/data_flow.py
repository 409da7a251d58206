"""Which fields of the batch each part of an algorithm reads and writes, and parts whose result nothing reads.

The dry run gives every part a `RecordedBatch`, so that parts of the user's own are seen like shipped ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from typing import Any

from jaxtyping import Int
from torch import Tensor

from paretune.core.batch import Batch
from paretune.core.errors import WiringError

_FIELDS = frozenset(f.name for f in dataclass_fields(Batch))

IMPLICITLY_READ = frozenset({"input_ids", "attention_mask", "response_mask", "group", "ref_logprobs"})
"""Fields that the training step itself reads; the reference's log-probabilities for the logged KL."""

WRITERS: Mapping[str, str] = {
    "advantages": "put BroadcastToTokens before it in credit",
    "entropy": "put PolicyEntropy into model_passes",
    "old_logprobs": "put OldLogprobs into model_passes",
    "ref_logprobs": "put RefLogprobs into model_passes",
    "returns": "put Gae or ReturnToGo before it in credit",
    "rollout_logprobs": "write {type: OldLogprobs, source: policy} into model_passes",
    "token_rewards": "put TerminalReward before it in credit",
    "values": "put CriticValues into model_passes",
    "weight_version": "sample the responses instead of reading stored ones",
}
"""How a field that is missing is usually written, for the message about it."""

READERS: Mapping[str, str] = {
    "advantages": "a loss that reads advantages, such as ClippedSurrogate",
    "entropy": "TopEntropyTokens in credit",
    "importance_weights": "a policy loss, such as ClippedSurrogate",
    "old_logprobs": "a policy loss, such as ClippedSurrogate",
    "returns": "SquaredValueLoss",
    "rewards": "BroadcastToTokens or TerminalReward after it",
    "token_rewards": "Gae or ReturnToGo after it (a KlPenalty needs neither with level: sequence)",
    "values": "Gae in credit",
}
"""The part that usually reads a field, for the message about a field that nothing reads."""


@dataclass
class FieldAccess:
    """What one part did with the fields of the batch."""

    name: str
    argument: str
    """The argument of the algorithm that the part stands in, such as "credit"."""
    index_from_end: int = 0
    """Parts after it in that argument; counted from the end, since steps of the objectives come first."""
    reads: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    """Fields that it read and nothing had written."""
    writes: set[str] = field(default_factory=set)
    selects: bool = False
    """It returned other rows than it got."""

    def finish(self, before: Batch, after: Batch) -> None:
        """See what the part wrote; of rows that it selected, only the fields that it replaced.

        Raises:
            PartWiringError: It replaced fields of the batch and returned the old one.
        """
        self.selects = _value(after, "input_ids") is not _value(before, "input_ids")
        if self.selects:
            return
        replaced = sorted(self.writes)
        self.writes = {f for f in _FIELDS if _value(before, f) is not _value(after, f)}
        if replaced and after is before:
            raise PartWiringError(
                f"{self.name} replaces {', '.join(replaced)}, and returns the batch as it was; fix: return "
                f"what batch.replace({replaced[0]}=...) returns",
                self,
            )


class PartWiringError(WiringError):
    """A part does not fit among the others; `part` says where it stands."""

    def __init__(self, message: str, part: FieldAccess) -> None:
        super().__init__(message)
        self.part = part


class RecordedBatch(Batch):
    """A batch that records which fields are read, replaced and selected."""

    __slots__ = ("access",)
    access: FieldAccess

    @classmethod
    def of(cls, batch: Batch, access: FieldAccess, changes: Mapping[str, Any] | None = None) -> Batch:
        """The batch, with some fields changed, as one that is recorded."""
        values = {name: _value(batch, name) for name in _FIELDS}
        recorded = cls(**(values | dict(changes or {})))
        object.__setattr__(recorded, "access", access)
        return recorded

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if name in _FIELDS:
            access = self._access()
            if access is not None:
                (access.reads if value is not None else access.missing).add(name)
        return value

    def _access(self) -> FieldAccess | None:
        """None in a copy that `dataclasses.replace` made, which is not recorded."""
        try:
            access: FieldAccess = object.__getattribute__(self, "access")
        except AttributeError:
            return None
        return access

    def require(self, field: str) -> Tensor:
        """As `Batch.require`; the error names the part.

        Raises:
            WiringError: No part has written it.
        """
        access = self._access()
        if access is not None and _value(self, field) is None:
            raise PartWiringError(missing_field(access.name, field), access)
        return super().require(field)

    def replace(self, **changes: Any) -> Batch:
        """As `Batch.replace`; copying the other fields is not reading them."""
        access = self._access()
        if access is None:
            return super().replace(**changes)
        access.writes |= changes.keys()
        return RecordedBatch.of(self, access, changes)

    def select(self, index: Int[Tensor, " N"]) -> Batch:
        """As `Batch.select`; it reads no field either."""
        access = self._access()
        selected = plain_batch(self).select(index)
        return selected if access is None else RecordedBatch.of(selected, access)

    @property
    def num_reward_columns(self) -> int:
        """As `Batch.num_reward_columns`; the number alone does not read the rewards."""
        return int(_value(self, "rewards").shape[-1])


def plain_batch(batch: Batch) -> Batch:
    """The batch as one that is not recorded."""
    return Batch(**{name: _value(batch, name) for name in _FIELDS})


def _value(batch: Batch, name: str) -> Any:
    return object.__getattribute__(batch, name)


def missing_field(name: str, field: str) -> str:
    """The message about a field that a part reads and no part before it writes."""
    fix = WRITERS.get(field, f"put a part that writes {field} before it")
    return f"{name} reads batch.{field}, and no part before it writes it; fix: {fix}"


def check_data_flow(parts: Sequence[FieldAccess]) -> None:
    """Check that the result of every part is read by a later one.

    Args:
        parts: All parts in the order in which they act; the losses are the last.

    Raises:
        PartWiringError: A part computes what nothing reads, or what is overwritten before anything reads it.
    """
    live, unread = set(IMPLICITLY_READ), dict[int, str]()
    for index in reversed(range(len(parts))):
        part = parts[index]
        dead = sorted(part.writes - live)
        for name in dead:
            overwriting = next((p for p in parts[index + 1 :] if name in p.writes), None)
            if overwriting is not None and not unread:
                raise PartWiringError(
                    f"{part.name} writes {name}, and {overwriting.name} overwrites {name} before anything "
                    "reads it; fix: leave out one of the two",
                    part,
                )
        if dead and len(dead) == len(part.writes) and not part.selects:
            unread[index] = next((f for f in dead if f in READERS), dead[0])
        else:
            live = (live - (part.writes - part.reads)) | part.reads
    if unread:
        last = max(unread)
        whole = all(i in unread for i, part in enumerate(parts) if part.argument == parts[last].argument)
        raise PartWiringError(_unread(parts[last], unread[last], parts[:last], whole), parts[last])


def _unread(part: FieldAccess, name: str, earlier: Sequence[FieldAccess], whole: bool) -> str:
    """The message about a part whose result nothing reads; `whole`: it is so with all parts of the list."""
    last = next((p for p in reversed(earlier) if name in p.reads and name not in p.writes), None)
    if last is not None:
        return (
            f"{part.name} writes {name} after {last.name}, the last part that reads {name}; fix: put "
            f"{part.name} before {last.name}, or leave it out"
        )
    fix = f"leave it out, by {part.argument}: []" if whole else "leave it out"
    fix += f", or add {READERS[name]}" if name in READERS else ""
    no_reader = "no loss reads advantages" if name == "advantages" else f"nothing after it reads {name}"
    return f"{part.name} writes {name}, and {no_reader}; fix: {fix}"
