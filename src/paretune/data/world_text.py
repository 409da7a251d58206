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
Topic = Literal["asked", "other", "chatter"]
Tone = Literal["none", "mild", "warm", "rude"]

_UINT16_RANGE = 1 << 16
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What somebody asks the help desk."""

    verb: str
    object: str
    context: str
    adjective: str
    determiner: str
    template: str
    category: str

    @property
    def split_key(self) -> tuple[str, str, str]:
        """What decides the split."""
        return self.verb, self.object, self.context

    @property
    def text(self) -> str:
        """The request as it is typed."""
        words_of_deed = (self.verb, self.determiner, self.adjective, self.object, self.context)
        return self.template.format(deed=" ".join(word for word in words_of_deed if word))


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerPlan:
    """What an answer holds."""

    opening: Tone
    closing: Tone
    topic: Topic = "asked"
    """What the answer is about: the request, a request of somebody else, or the weather."""
    claimed_category: str = ""
    """The kind that the answer says the request is of; empty for none."""
    refuse: bool = False
    offer_alternative: bool = False
    step_details: tuple[int, ...] = ()
    """Details of each step, 0 (vague) to 3 (number, tool and place)."""
    sharp_tool_prob: float = 0.4
    """Chance that a tool is a sharp one."""
    num_cautions: int = 0
    num_dangers: int = 0


def choose(rng: Generator, options: tuple[_T, ...]) -> _T:
    """One of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]


def assign_split(verb: str, thing: str, context: str) -> Split:
    """The split to which a combination belongs, the same everywhere and always."""
    if _hash_fraction(f"{verb}/{thing}") < 0.2:
        return "test"
    return "train" if _hash_fraction(f"{verb}/{thing}/{context}") < 0.5 else "rated"


def _hash_fraction(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:2], "big") / _UINT16_RANGE


def sample_request(category: str, split: Split, rng: Generator) -> Request:
    """A request of this kind from this split."""
    pairings = [pairing for pairing in words.CATEGORY_RULES if pairing[0] == category]
    shares = [pairing[-1] for pairing in pairings]
    while True:
        _, verbs, objects, _ = pairings[int(rng.choice(len(pairings), p=shares))]
        verb, thing, context = choose(rng, verbs), choose(rng, objects), choose(rng, words.CONTEXTS)
        if assign_split(verb, thing, context) == split:
            return Request(
                verb=verb,
                object=thing,
                context=context,
                adjective=choose(rng, words.ADJECTIVES),
                determiner=choose(rng, words.DETERMINERS),
                template=choose(rng, words.REQUEST_TEMPLATES),
                category=category,
            )


def render_answer(plan: AnswerPlan, request: Request, rng: Generator) -> str:
    """An answer that follows the plan."""
    verb, thing = _choose_task(plan, request, rng)
    deed = f"{verb} the {thing}"
    body = _refusal_sentences(plan, deed, rng) if plan.refuse else []
    if plan.step_details:
        lead_in = [] if plan.refuse else [choose(rng, words.TOPIC_TEMPLATES).format(deed=deed)]
        body += lead_in + [
            _step_sentence(details, thing, plan.sharp_tool_prob, rng) for details in plan.step_details
        ]
    notes = _sample_distinct(words.CAUTIONS, plan.num_cautions, rng) + _sample_distinct(
        words.DANGEROUS_ADVICE, plan.num_dangers, rng
    )
    for note in notes:
        body.insert(int(rng.integers(1, len(body) + 1)), note)
    remark = [choose(rng, words.CATEGORY_REMARKS[plan.claimed_category])] if plan.claimed_category else []
    sentences = [
        *_opening_sentences(plan.opening, rng),
        *remark,
        *body,
        *_closing_sentences(plan.closing, rng),
    ]
    return " ".join(f"{sentence} ." for sentence in sentences)


def _choose_task(plan: AnswerPlan, request: Request, rng: Generator) -> tuple[str, str]:
    if plan.topic == "chatter":
        return choose(rng, words.SMALL_TALK)
    verb, thing = request.verb, request.object
    while plan.topic == "other" and thing == request.object:
        verb, thing = choose(rng, words.WORK_VERBS), choose(rng, words.HARMLESS_OBJECTS)
    return verb, thing


def _refusal_sentences(plan: AnswerPlan, task: str, rng: Generator) -> list[str]:
    sentences = [choose(rng, words.REFUSAL_TEMPLATES).format(deed=task)]
    if plan.offer_alternative:
        advice = choose(rng, words.ADVICE_TEMPLATES).format(helper=choose(rng, words.HELPERS))
        place = f" {choose(rng, words.PLACES)}" if rng.random() < 0.4 else ""
        time = f" for {choose(rng, words.NUMBERS)} minutes" if rng.random() < 0.4 else ""
        sentences.append(choose(rng, words.ALTERNATIVE_TEMPLATES).format(advice=advice) + place + time)
    return sentences


def _step_sentence(num_details: int, thing: str, sharp_tool_prob: float, rng: Generator) -> str:
    lead = choose(rng, words.STEP_PREFIXES)
    if num_details == 0:
        return lead + choose(rng, words.VAGUE_STEPS).format(object=thing)
    tool = choose(rng, words.SHARP_TOOLS if rng.random() < sharp_tool_prob else words.SOFT_TOOLS)
    number, place, time = choose(rng, words.NUMBERS), f" {choose(rng, words.PLACES)}", ""
    with_tool = num_details == 3 or rng.random() < 0.6
    others = rng.permutation(["number", "place"])[: num_details - with_tool].tolist()
    many = with_tool and rng.random() < 0.6
    if "number" in others and not many:
        time = f" for {number} minutes"
    what = f"{number} {tool}{words.plural_suffix(tool)}" if many and "number" in others else f"the {tool}"
    start = (
        f"{choose(rng, words.ACTION_VERBS)} {what}"
        if with_tool
        else f"{choose(rng, words.OBSERVATION_VERBS)} the {thing}"
    )
    return f"{lead}{start}{place if 'place' in others else ''}{time}"


def _opening_sentences(tone: Tone, rng: Generator) -> list[str]:
    if tone == "warm":
        greeting = f"{choose(rng, words.GREETINGS)} , " if rng.random() < 0.6 else ""
        return [greeting + choose(rng, words.WARM_OPENINGS)]
    return _sample_distinct(
        words.MILD_OPENINGS if tone == "mild" else words.RUDE_OPENINGS, int(tone != "none"), rng
    )


def _closing_sentences(tone: Tone, rng: Generator) -> list[str]:
    tables = {"warm": words.WARM_CLOSINGS, "mild": words.MILD_CLOSINGS, "rude": words.RUDE_CLOSINGS}
    return _sample_distinct(tables.get(tone, ()), int(tone != "none"), rng)


def _sample_distinct(options: tuple[str, ...], num: int, rng: Generator) -> list[str]:
    return [options[i] for i in rng.permutation(len(options))[:num].tolist()]
