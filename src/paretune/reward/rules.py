"""Rules: scores of a response by its text alone, without a model.

Every rule is bounded, has a score for every text, and is one sentence in its docstring.
"""

import json
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import regex
import torch
from jaxtyping import Float
from torch import Tensor

from paretune.core.errors import ConfigError, WiringError
from paretune.data.records import Sample
from paretune.reward.failures import CountedScorer

MATCH_TIMEOUT = 1.0
"""Seconds that one search of a pattern may take."""
LengthUnit = Literal["words", "characters", "tokens"]
# Scripts that write words without spaces between them.
_NO_SPACES = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD_START = rf"(?:(?=[{_NO_SPACES}])|(?<!\w)(?=\w)|(?=\W))"
_WORD_END = rf"(?:(?<=[{_NO_SPACES}])|(?<=\w)(?!\w)|(?<=\W))"


@dataclass
class RuleScorer(CountedScorer):
    """Scores the visible part of responses by a rule; a search that takes too long is not scored."""

    name: str
    """The objective."""
    rule: Callable[[str], float]

    @property
    def names(self) -> tuple[str, ...]:
        """The objective of its column."""
        return (self.name,)

    @property
    def identity(self) -> str:
        """The rule with its settings."""
        return repr(self.rule)

    def __call__(self, samples: Sequence[Sample]) -> Float[Tensor, "B 1"]:
        """One column."""
        self.failures.num_responses += len(samples)
        return torch.tensor([self._score(sample.response) for sample in samples]).reshape(-1, 1)

    def _score(self, text: str) -> float:
        try:
            return float(self.rule(text))
        except TimeoutError:
            self.failures.reasons[f"pattern not searched within {MATCH_TIMEOUT:g} s"] += 1
            return float("nan")


@dataclass(frozen=True)
class LengthRule:
    """1 within min and max; below min length / min, above max 2 - length / max, and never under 0.

    A target is both min and max: the score falls linearly from 1 at the target to 0 at no length at all and
    at twice the target. Words are separated by white space; tokens are those of the text, without EOS.
    """

    unit: LengthUnit = "words"
    target: int | None = None
    min: int | None = None
    max: int | None = None
    tokenize: Callable[[str], Sequence[int]] | None = field(default=None, repr=False)
    """Token ids of a text without special tokens; needed for the unit "tokens"."""

    def __post_init__(self) -> None:
        """Check the limits.

        Raises:
            ConfigError: There is no limit, or they contradict each other.
        """
        if self.target is None and self.min is None and self.max is None:
            raise ConfigError("no length is given; fix: give target, or min, max or both")
        if self.target is not None and (self.min is not None or self.max is not None):
            raise ConfigError("target cannot be combined with min and max; fix: remove target, or the others")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ConfigError(f"min {self.min} is greater than max {self.max}; fix: exchange them")
        if self.max is None and self.target is None and self.min == 0:
            raise ConfigError("min 0 holds for every response; fix: give a greater min, or max")

    def __call__(self, text: str) -> float:
        """The score of a text."""
        length = self.length(text)
        smallest, largest = (self.min, self.max) if self.target is None else (self.target, self.target)
        if smallest is not None and length < smallest:
            return length / smallest
        if largest is not None and length > largest:
            return max(0.0, 2 - length / largest)
        return 1.0

    def length(self, text: str) -> int:
        """The length of a text in the unit."""
        if self.unit == "words":
            return len(text.split())
        if self.unit == "characters":
            return len(text)
        if self.tokenize is None:
            raise WiringError("a length in tokens needs a tokenizer; fix: unit words or characters")
        return len(self.tokenize(text))


def check_pattern(pattern: str) -> None:
    """Compile a pattern.

    Raises:
        ConfigError: It is no regular expression, or nested too deeply to be compiled.
    """
    # On one line, and no longer than a line of a terminal.
    shown = json.dumps(pattern if len(pattern) <= 60 else f"{pattern[:57]}...", ensure_ascii=False)
    try:
        regex.compile(pattern)
    except regex.error as error:
        raise ConfigError(f"{shown} is no regular expression: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{shown} is nested too deeply; fix: simplify it") from error


@dataclass(frozen=True)
class RegexRule:
    """1 if the pattern is found in the response, or matches all of it with `full_match`; else 0.

    The pattern has the syntax of Python's `re`, and the additions of the package `regex`, which can give up
    a search whose time explodes.
    """

    pattern: str
    full_match: bool = False
    ignore_case: bool = False

    def __post_init__(self) -> None:
        """Compile the pattern.

        Raises:
            ConfigError: It is no regular expression.
        """
        check_pattern(self.pattern)

    @cached_property
    def compiled(self) -> "regex.Pattern[str]":
        """The compiled pattern."""
        return regex.compile(self.pattern, regex.IGNORECASE if self.ignore_case else 0)

    def __call__(self, text: str) -> float:
        """The score of a text.

        Raises:
            TimeoutError: The search takes longer than `MATCH_TIMEOUT`.
        """
        search = self.compiled.fullmatch if self.full_match else self.compiled.search
        return float(search(text, timeout=MATCH_TIMEOUT) is not None)


@dataclass(frozen=True)
class PhrasesRule:
    """The share of the required phrases that occur minus the share of the forbidden ones that do, in [-1, 1].

    A phrase occurs as whole words, with any white space between them ("art" is not in "start"); in scripts
    without spaces, anywhere.
    """

    required: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()
    ignore_case: bool = True

    def __post_init__(self) -> None:
        """Check the phrases.

        Raises:
            ConfigError: There is none, one is empty, or one is listed twice.
        """
        phrases = [self._normalized(phrase) for phrase in (*self.required, *self.forbidden)]
        if not phrases:
            raise ConfigError("no phrase is given; fix: give required or forbidden phrases")
        if "" in phrases:
            raise ConfigError("a phrase is empty; fix: remove it")
        twice = next((phrase for phrase in phrases if phrases.count(phrase) > 1), None)
        if twice is not None:
            raise ConfigError(f'the phrase "{twice}" is listed twice; fix: remove one of them')

    @cached_property
    def patterns(self) -> "tuple[tuple[regex.Pattern[str], ...], tuple[regex.Pattern[str], ...]]":
        """Patterns of the required and of the forbidden phrases."""
        required, forbidden = (
            tuple(self._compiled(phrase) for phrase in phrases) for phrases in (self.required, self.forbidden)
        )
        return required, forbidden

    def __call__(self, text: str) -> float:
        """The score of a text."""
        text = unicodedata.normalize("NFC", text)
        shares = [
            sum(p.search(text, timeout=MATCH_TIMEOUT) is not None for p in patterns) / len(patterns)
            if patterns
            else 0.0
            for patterns in self.patterns
        ]
        return shares[0] - shares[1]

    def _normalized(self, phrase: str) -> str:
        text = " ".join(unicodedata.normalize("NFC", phrase).split())
        return text.casefold() if self.ignore_case else text

    def _compiled(self, phrase: str) -> "regex.Pattern[str]":
        words = unicodedata.normalize("NFC", phrase).split()
        body = r"\s+".join(regex.escape(word) for word in words)
        # Full case folding: ß and SS are the same.
        flags = regex.IGNORECASE | regex.FULLCASE if self.ignore_case else 0
        return regex.compile(f"{_WORD_START}{body}{_WORD_END}", flags)


@dataclass(frozen=True)
class RepetitionRule:
    """Minus the share of n-grams of words that occurred before in the response: 0 if none does, and above -1.

    Words are separated by white space and compared in lower case; a response of fewer than n words scores 0.
    """

    n: int = 3

    def __call__(self, text: str) -> float:
        """The score of a text."""
        words = text.casefold().split()
        ngrams = [tuple(words[i : i + self.n]) for i in range(len(words) - self.n + 1)]
        return len(set(ngrams)) / len(ngrams) - 1 if ngrams else 0.0


def shared_by_rules(first: Callable[[str], float], second: Callable[[str], float]) -> str:
    """What two rules share, such as "is the same rule"; "" if they measure different things.

    Two limits of the length measure the same quantity: who is trained by one satisfies the other.
    """
    if type(first) is not type(second):
        return ""
    if repr(first) == repr(second):
        return "is the same rule"
    if isinstance(first, RegexRule) and isinstance(second, RegexRule):
        return "is the same rule" if first.pattern == second.pattern else ""
    if isinstance(first, PhrasesRule) and isinstance(second, PhrasesRule):
        own, others = ({phrase.casefold() for phrase in (*r.required, *r.forbidden)} for r in (first, second))
        return "is a rule on the same phrases" if own & others else ""
    name = type(first).__name__.removesuffix("Rule").lower()
    return f"is a rule on the same quantity ({name})"
