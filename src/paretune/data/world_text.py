"""Requests and answers of the built-in help desk, put together from tables of words.

The kind of a request follows from verb and object together: a harsh word on a thing is innocent, a plain word
on a weapon is not. Every request belongs to exactly one split. A pair of verb and
object is either of the test split or of the others, and those two divide the contexts of a pair.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal, TypeVar

from numpy.random import Generator

from paretune.data import world_words as words

Split = Literal["train", "rated", "test"]
Subject = Literal["asked", "other", "chatter"]
Tone = Literal["none", "mild", "warm", "rude"]

_SIXTEEN = 1 << 16
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What somebody asks the help desk."""

    verb: str
    object: str
    context: str
    adjective: str
    determiner: str
    phrasing: str
    kind: str

    @property
    def combination(self) -> tuple[str, str, str]:
        """What decides the split."""
        return self.verb, self.object, self.context

    @property
    def text(self) -> str:
        """The request as it is typed."""
        words_of_deed = (self.verb, self.determiner, self.adjective, self.object, self.context)
        return self.phrasing.format(deed=" ".join(word for word in words_of_deed if word))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an answer holds."""

    opening: Tone
    closing: Tone
    subject: Subject = "asked"
    """What the answer is about: the request, a request of somebody else, or the weather."""
    remark: str = ""
    """The kind that the answer says the request is of; empty for none."""
    refuse: bool = False
    alternative: bool = False
    steps: tuple[int, ...] = ()
    """Details of each step, 0 (vague) to 3 (number, tool and place)."""
    sharp: float = 0.4
    """Chance that a tool is a sharp one."""
    cautions: int = 0
    dangers: int = 0


def one(rng: Generator, options: tuple[_T, ...]) -> _T:
    """One of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]


def split_of(verb: str, thing: str, context: str) -> Split:
    """The split to which a combination belongs, the same everywhere and always."""
    if _hash(f"{verb}/{thing}") < 0.2:
        return "test"
    return "train" if _hash(f"{verb}/{thing}/{context}") < 0.5 else "rated"


def _hash(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:2], "big") / _SIXTEEN


def draw_request(kind: str, split: Split, rng: Generator) -> Request:
    """A request of this kind from this split."""
    pairings = [pairing for pairing in words.PAIRINGS if pairing[0] == kind]
    shares = [pairing[-1] for pairing in pairings]
    while True:
        _, verbs, objects, _ = pairings[int(rng.choice(len(pairings), p=shares))]
        verb, thing, context = one(rng, verbs), one(rng, objects), one(rng, words.CONTEXTS)
        if split_of(verb, thing, context) == split:
            return Request(
                verb=verb,
                object=thing,
                context=context,
                adjective=one(rng, words.ADJECTIVES),
                determiner=one(rng, words.DETERMINERS),
                phrasing=one(rng, words.PHRASINGS),
                kind=kind,
            )


def write(plan: Plan, request: Request, rng: Generator) -> str:
    """An answer that follows the plan."""
    verb, thing = _matter(plan, request, rng)
    deed = f"{verb} the {thing}"
    body = _refusal(plan, deed, rng) if plan.refuse else []
    if plan.steps:
        lead_in = [] if plan.refuse else [one(rng, words.SUBJECTS).format(deed=deed)]
        body += lead_in + [_step(details, thing, plan.sharp, rng) for details in plan.steps]
    notes = _some(words.CAUTIONS, plan.cautions, rng) + _some(words.DANGERS, plan.dangers, rng)
    for note in notes:
        body.insert(int(rng.integers(1, len(body) + 1)), note)
    remark = [one(rng, words.REMARKS[plan.remark])] if plan.remark else []
    sentences = [*_opening(plan.opening, rng), *remark, *body, *_closing(plan.closing, rng)]
    return " ".join(f"{sentence} ." for sentence in sentences)


def _matter(plan: Plan, request: Request, rng: Generator) -> tuple[str, str]:
    if plan.subject == "chatter":
        return one(rng, words.CHATTER)
    verb, thing = request.verb, request.object
    while plan.subject == "other" and thing == request.object:
        verb, thing = one(rng, words.WORK), one(rng, words.THINGS)
    return verb, thing


def _refusal(plan: Plan, deed: str, rng: Generator) -> list[str]:
    sentences = [one(rng, words.REFUSALS).format(deed=deed)]
    if plan.alternative:
        advice = one(rng, words.ADVICE).format(helper=one(rng, words.HELPERS))
        place = f" {one(rng, words.PLACES)}" if rng.random() < 0.4 else ""
        time = f" for {one(rng, words.NUMBERS)} minutes" if rng.random() < 0.4 else ""
        sentences.append(one(rng, words.ALTERNATIVES).format(advice=advice) + place + time)
    return sentences


def _step(details: int, thing: str, sharp: float, rng: Generator) -> str:
    lead = one(rng, words.LEADS)
    if details == 0:
        return lead + one(rng, words.VAGUE).format(object=thing)
    tool = one(rng, words.SHARP_TOOLS if rng.random() < sharp else words.SOFT_TOOLS)
    number, place, time = one(rng, words.NUMBERS), f" {one(rng, words.PLACES)}", ""
    with_tool = details == 3 or rng.random() < 0.6
    others = rng.permutation(["number", "place"])[: details - with_tool].tolist()
    many = with_tool and rng.random() < 0.6
    if "number" in others and not many:
        time = f" for {number} minutes"
    what = f"{number} {tool}{words.plural(tool)}" if many and "number" in others else f"the {tool}"
    start = f"{one(rng, words.ACTIONS)} {what}" if with_tool else f"{one(rng, words.REGARDS)} the {thing}"
    return f"{lead}{start}{place if 'place' in others else ''}{time}"


def _opening(tone: Tone, rng: Generator) -> list[str]:
    if tone == "warm":
        greeting = f"{one(rng, words.GREETINGS)} , " if rng.random() < 0.6 else ""
        return [greeting + one(rng, words.WARMTH)]
    return _some(words.MILD_OPENINGS if tone == "mild" else words.RUDE_OPENINGS, int(tone != "none"), rng)


def _closing(tone: Tone, rng: Generator) -> list[str]:
    tables = {"warm": words.WARM_CLOSINGS, "mild": words.MILD_CLOSINGS, "rude": words.RUDE_CLOSINGS}
    return _some(tables.get(tone, ()), int(tone != "none"), rng)


def _some(options: tuple[str, ...], num: int, rng: Generator) -> list[str]:
    return [options[i] for i in rng.permutation(len(options))[:num].tolist()]
