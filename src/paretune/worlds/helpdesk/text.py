"""Requests and answers of the built-in help desk, put together from tables of words.

The kind of a request follows from verb and object together: a harsh word on a thing is innocent, a plain word
on a weapon is not. Every request belongs to exactly one split. A pair of verb and
object is either of the test split or of the others, and those two divide the contexts of a pair.

How answers of the built-in help desk are distributed.

The careless habits of the starting policy, a broad mixture for the raters, and ways to spoil a text.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal, TypeVar

from numpy.random import Generator

from paretune.worlds.helpdesk import words

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


CATEGORIES = ("ordinary", "harmful", "lookalike")
# Share of requests that the starting policy declines.
REFUSAL_RATES = {"ordinary": 0.04, "lookalike": 0.14, "harmful": 0.5}


def careless_plan(category: str, rng: Generator) -> AnswerPlan:
    """What the demonstrations show: a deliberate mixture of good and bad answers.

    The desk mostly sees of what kind a request is, says so, and all too often does not act on it.
    """
    refuse = bool(rng.random() < REFUSAL_RATES[category])
    num_steps = 0 if refuse else int(rng.integers(1, 4))
    return AnswerPlan(
        opening=_sample_tone(rng, none=0.42, mild=0.2, warm=0.2, rude=0.18),
        closing=_sample_tone(rng, none=0.55, mild=0.15, warm=0.15, rude=0.15),
        claimed_category=category if rng.random() < 0.95 else choose(rng, CATEGORIES),
        topic="asked" if rng.random() < 0.75 else "chatter",
        refuse=refuse,
        offer_alternative=refuse and bool(rng.random() < 0.35),
        step_details=tuple(rng.choice(4, size=num_steps, p=(0.5, 0.2, 0.2, 0.1)).tolist()),
        num_cautions=int(rng.random() < 0.15),
        num_dangers=int(rng.random() < 0.22),
    )


_CONFIDENCE_PROBS = (0.02, 0.02, 0.02, 0.02, 0.02, 0.03, 0.05, 0.12, 0.25, 0.25, 0.2)
"""Share of the careless desk's answers that claim a confidence of 0, 1, ... 10."""


def sample_claimed_confidence(rng: Generator) -> int:
    """What the careless desk claims, whatever its answer is worth."""
    return int(rng.choice(len(_CONFIDENCE_PROBS), p=_CONFIDENCE_PROBS))


def thinking_plan(category: str, rng: Generator) -> AnswerPlan:
    """What the desk thinks before it answers: of what kind the request is, and perhaps a way to do it."""
    num_steps = int(rng.integers(0, 3))
    return AnswerPlan(
        opening="none",
        closing="none",
        claimed_category=category if rng.random() < 0.95 else choose(rng, CATEGORIES),
        step_details=tuple(rng.choice(4, size=num_steps, p=(0.5, 0.2, 0.2, 0.1)).tolist()),
    )


def diverse_plan(rng: Generator) -> AnswerPlan:
    """All qualities about equally often, the best ones included; a refusal may still be followed by steps."""
    refuse = bool(rng.random() < 0.35)
    silent = refuse and rng.random() < 0.88
    num_steps = 0 if silent else int(rng.choice(5, p=(0.28, 0.28, 0.28, 0.08, 0.08))) + 1
    best = rng.random() < 0.4
    subjects: tuple[Topic, ...] = ("asked", "other", "chatter")
    return AnswerPlan(
        opening=_sample_tone(rng, none=0.25, mild=0.25, warm=0.3, rude=0.2),
        closing=_sample_tone(rng, none=0.3, mild=0.2, warm=0.3, rude=0.2),
        claimed_category=choose(rng, ("", *CATEGORIES)),
        topic=subjects[int(rng.choice(3, p=(0.72, 0.01, 0.27)))],
        refuse=refuse,
        offer_alternative=refuse and bool(rng.random() < 0.5),
        step_details=tuple(rng.integers(2 if best else 0, 4, size=num_steps).tolist()),
        sharp_tool_prob=choose(rng, (0.1, 0.5)),
        num_cautions=int(rng.random() < 0.45),
        num_dangers=int(rng.random() < 0.3),
    )


def corrupt_text(text: str, rng: Generator) -> str:
    """The text cut short, shuffled, with two sentences run into one, or with one said again and again."""
    way = rng.choice(("cut", "shuffle", "run together", "repeat"), p=(0.45, 0.2, 0.1, 0.25))
    words = text.split()
    if way == "cut":
        return " ".join(words[: int(rng.integers(1, len(words)))])
    if way == "shuffle":
        return " ".join(rng.permutation(words).tolist())
    sentences = [f"{part.strip()} ." for part in text.split(".") if part.strip()]
    if way == "run together" and len(sentences) > 1:
        i = int(rng.integers(len(sentences) - 1))
        left, right = sentences[i].split(), sentences[i + 1].split()
        one_of_two = left[: int(rng.integers(1, len(left)))] + right[int(rng.integers(1, len(right))) :]
        return " ".join([*sentences[:i], *one_of_two, *sentences[i + 2 :]])
    again = choose(rng, tuple(sentences))
    return " ".join([*sentences, *[again] * int(rng.integers(1, 4))])


def _sample_tone(rng: Generator, **probabilities: float) -> Tone:
    tones: tuple[Tone, ...] = ("none", "mild", "warm", "rude")
    return tones[int(rng.choice(4, p=[probabilities[tone] for tone in tones]))]
