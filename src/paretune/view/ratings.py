"""Ratings by people: the responses that are shown, in a random order, and the file of the answers.

The rows are those that `reward.ratings` and `reward.pairs` of a recipe read. One file holds all of them, with
a column `type`: "rating" is a response with scores, "pair" a chosen and a rejected one, "tie" two equally
good ones, which no reward model learns from.
"""

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from paretune.core.errors import ConfigError
from paretune.run.io import fsync_dir, write_error
from paretune.view.folders import RUN_FILE
from paretune.view.samples import Pair, Source

Mode = Literal["pairs", "scores"]
MODES: tuple[Mode, ...] = ("pairs", "scores")
CHOICES = ("1", "2", "=")
"""First response, second response, tie."""
OVERALL = "overall"
"""Name of the objective of comparisons that no objective is named for."""
MAX_SPAN = 9
"""Largest difference of a scale's ends: each step of it is one key."""


@dataclass(frozen=True, slots=True)
class Scale:
    """The whole numbers that a person can give."""

    low: int = 1
    high: int = 5

    @property
    def values(self) -> range:
        """All of them."""
        return range(self.low, self.high + 1)


def parse_scales(texts: Sequence[str]) -> tuple[Scale, dict[str, Scale]]:
    """The scale of all objectives, and those of single ones, from texts such as 1-5 and safety=0-1.

    Raises:
        ConfigError: A text is not a scale.
    """
    default, named = Scale(), {}
    for text in texts:
        name, _, ends = text.rpartition("=")
        match = re.fullmatch(r"(\d)-(\d)", ends.strip())
        scale = Scale(int(match[1]), int(match[2])) if match else None
        if scale is None or not 0 < scale.high - scale.low <= MAX_SPAN:
            raise ConfigError(f"--scale: {text} is not a scale; fix: two digits, such as 1-5 or safety=0-1")
        if name.strip():
            named[name.strip()] = scale
        else:
            default = scale
    return default, named


@dataclass(frozen=True, slots=True)
class Item:
    """What a person is shown: two responses side by side, or one."""

    id: str
    pair: Pair
    responses: tuple[str, ...]
    """As shown, from left to right."""
    origins: tuple[str, ...]
    """The source of each; no page shows it before the answer."""


def items(
    pairs: Sequence[Pair], origins: tuple[Source, Source], mode: Mode, objective: str, seed: int
) -> tuple[list[Item], dict[str, int]]:
    """Everything to rate in its order, and how much is left out for which reason."""
    names = (origins[0].title, origins[1].title)
    left_out: dict[str, int] = {}
    found: dict[str, Item] = {}
    for pair in pairs:
        reason = _reason_left_out(pair, mode)
        if reason:
            left_out[reason] = left_out.get(reason, 0) + 1
        elif mode == "pairs":
            item = _blind_pair(pair, names, objective, seed)
            found.setdefault(item.id, item)
        else:
            for response, origin in ((pair.first.text, names[0]), (pair.second.text, names[1])):
                if response.strip():
                    key = _hash("rating", pair.prompt, response)
                    found.setdefault(key, Item(key, pair, (response,), (origin,)))
    order = sorted(found.values(), key=lambda item: _hash(str(seed), "order", item.id))
    return order, left_out


def _reason_left_out(pair: Pair, mode: Mode) -> str:
    if not pair.messages:
        return "conversations whose turns the file does not tell apart"
    if mode == "pairs" and pair.first.text.strip() == pair.second.text.strip():
        return "pairs of equal responses"
    texts = (pair.first.text.strip(), pair.second.text.strip())
    if not (all(texts) if mode == "pairs" else any(texts)):
        return "empty responses"
    return ""


def _blind_pair(pair: Pair, names: tuple[str, str], objective: str, seed: int) -> Item:
    texts = (pair.first.text, pair.second.text)
    # The same pair compared the other way round is the same question.
    key = _hash("pair", objective, pair.prompt, *sorted(texts))
    order = (0, 1) if int(_hash(str(seed), "side", key)[:8], 16) % 2 else (1, 0)
    return Item(key, pair, tuple(texts[i] for i in order), tuple(names[i] for i in order))


def _hash(*parts: str) -> str:
    text = json.dumps(parts)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def comparison_row(item: Item, choice: str, objective: str) -> dict[str, Any]:
    """The row of an answer to "which is better"."""
    common = {"id": item.id, "prompt": _prompt(item.pair), "objective": objective}
    if item.pair.category:
        common["category"] = item.pair.category
    if choice == "=":
        return {"type": "tie", **common, "responses": list(item.responses), "origins": list(item.origins)}
    chosen = CHOICES.index(choice)
    return {
        "type": "pair",
        **common,
        "chosen": item.responses[chosen],
        "rejected": item.responses[1 - chosen],
        "chosen_origin": item.origins[chosen],
        "rejected_origin": item.origins[1 - chosen],
    }


def rating_row(item: Item, scores: Mapping[str, int]) -> dict[str, Any]:
    """The row of a response with a score per objective."""
    return {
        "type": "rating",
        "id": item.id,
        "prompt": _prompt(item.pair),
        "response": item.responses[0],
        "scores": dict(scores),
        **({"category": item.pair.category} if item.pair.category else {}),
        "origin": item.origins[0],
    }


def _prompt(pair: Pair) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in pair.messages]


@dataclass
class RatingsFile:
    """The file of the answers: the only one that the viewer writes, one line per answer, at its end."""

    path: Path
    lock: Lock = field(default_factory=Lock)
    last_row: tuple[int, int] | None = None
    """First byte and end of the row that was written last, which can be taken back."""

    def check(self) -> None:
        """Refuse a file that must not be appended to.

        Raises:
            ConfigError: It has another suffix, is inside a run, or has a line that is not a JSON object.
        """
        if self.path.suffix != ".jsonl":
            raise ConfigError(f"{self.path}: unknown format; fix: end it with .jsonl")
        inside = [folder for folder in self.path.absolute().parents if (folder / RUN_FILE).exists()]
        if inside:
            raise ConfigError(f"{self.path}: is inside the run {inside[0]}; fix: name a file beside it")
        if not self.path.parent.is_dir():
            raise ConfigError(f"{self.path}: there is no folder {self.path.parent}; fix: make it")
        for number, line in enumerate(self._lines(), 1):
            if line.strip() and _parse_row(line) is None:
                raise ConfigError(
                    f"{self.path}:{number}: is not a rating; fix: remove the line, or name another file"
                )

    def _lines(self) -> list[bytes]:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be read: {error.strerror}") from error
        return data.split(b"\n")

    def rows(self) -> list[dict[str, Any]]:
        """All answers so far."""
        return [row for row in map(_parse_row, self._lines()) if row is not None]

    def append(self, row: Mapping[str, Any]) -> None:
        """Write an answer and flush it to disk.

        Raises:
            ResourceError: It cannot be written; then nothing of it stays in the file.
        """
        data = (json.dumps(row, ensure_ascii=True) + "\n").encode()
        with self.lock:
            try:
                is_new = not self.path.exists()
                flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
                handle = os.open(self.path, flags, 0o644)
                try:
                    start = os.lseek(handle, 0, os.SEEK_END)
                    os.lseek(handle, max(0, start - 1), os.SEEK_SET)
                    if start and os.read(handle, 1) != b"\n":
                        data = b"\n" + data  # the last line was written by hand, without its end
                    try:
                        if os.write(handle, data) != len(data):
                            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                        os.fsync(handle)
                    except OSError:
                        os.ftruncate(handle, start)
                        raise
                finally:
                    os.close(handle)
                if is_new:
                    fsync_dir(self.path.parent)
            except OSError as error:
                raise write_error(self.path, error) from error
            self.last_row = (start, start + len(data))

    def undo(self) -> bool:
        """Remove the row that was written last; False if there is none, or something was written after it."""
        with self.lock:
            if self.last_row is None:
                return False
            start, end = self.last_row
            self.last_row = None
            try:
                if self.path.stat().st_size != end:
                    return False
                os.truncate(self.path, start)
            except OSError as error:
                raise write_error(self.path, error) from error
            return True


_TEXT_KEYS = ("id", "type", "objective", "chosen_origin", "rejected_origin")


def _parse_row(line: bytes) -> dict[str, Any] | None:
    """The row of a line; None for one that holds other things than an answer, as people may edit them."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_row = (
        isinstance(row, dict)
        and all(isinstance(row.get(key, ""), str) for key in _TEXT_KEYS)
        and isinstance(row.get("scores", {}), dict)
        and isinstance(origins := row.get("origins", []), list)
        and all(isinstance(origin, str) for origin in origins)
    )
    return row if is_row else None


def comparison_counts(
    rows: Iterable[Mapping[str, Any]], objective: str, names: tuple[str, str]
) -> dict[str, int]:
    """Source -> how often it was chosen over the other, and "tie", among the answers on these two."""
    counts = {names[0]: 0, names[1]: 0, "tie": 0}
    for row in rows:
        if row.get("objective") != objective:
            continue
        if row.get("type") == "pair" and {row.get("chosen_origin"), row.get("rejected_origin")} == set(names):
            counts[str(row["chosen_origin"])] += 1
        elif row.get("type") == "tie" and set(row.get("origins", ())) == set(names):
            counts["tie"] += 1
    return counts


def recipe_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """The lines of a recipe that train a reward model on the answers."""
    kinds = {str(row.get("type")): None for row in rows}
    scores = dict.fromkeys(
        name for row in rows if row.get("type") == "rating" for name in row.get("scores", {})
    )
    compared = dict.fromkeys(str(row.get("objective")) for row in rows if row.get("type") == "pair")
    objectives = ", ".join(f"{_yaml(name)}: {{}}" for name in dict.fromkeys([*scores, *compared]))
    lines = ["reward:", f"  objectives: {{{objectives}}}"]
    if "rating" in kinds:
        labels = ", ".join(f"{_yaml(name)}: {{}}" for name in scores)
        source = f"{{file: {_yaml(str(path))}, where: {{type: rating}}, labels: {{{labels}}}}}"
        lines.append(f"  ratings: {{people: {source}}}")
    if "pair" in kinds:
        lines.append(f"  pairs: {{people: {{file: {_yaml(str(path))}, where: {{type: pair}}}}}}")
    return "\n".join(lines)


def _yaml(text: str) -> str:
    """A text as a YAML scalar; JSON strings are YAML."""
    return text if re.fullmatch(r"[A-Za-z_/.][\w/.-]*", text) else json.dumps(text)
