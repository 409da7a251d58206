"""Requests and answers of the help desk, generated from tables of words.

The category of a request follows from verb and object together: a violent verb with a thing is harmless, a
plain verb with a weapon is not. Every request belongs to exactly one split: a pair of verb and object belongs
either to "test" or to the other two splits, which divide the contexts of the pair.

Answers follow plans: `careless_plan` for the demonstrations of the initial policy, `diverse_plan` for
ratings.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal, TypeVar

from numpy.random import Generator

from paretune.worlds.helpdesk import words

Split = Literal["train", "rated", "test"]
"""Prompts and demonstrations, ratings, and unseen prompts."""
Topic = Literal["requested", "other", "small_talk"]
Tone = Literal["none", "mild", "warm", "rude"]

_UINT16_RANGE = 1 << 16
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request to the help desk."""

    verb: str
    object: str
    context: str
    adjective: str
    determiner: str
    template: str
    category: str

    @property
    def split_key(self) -> tuple[str, str, str]:
        """Verb, object and context: they decide the split."""
        return self.verb, self.object, self.context

    @property
    def text(self) -> str:
        """The text of the request."""
        parts = (self.verb, self.determiner, self.adjective, self.object, self.context)
        return self.template.format(task=" ".join(part for part in parts if part))


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerPlan:
    """Content of an answer."""

    opening: Tone
    closing: Tone
    topic: Topic = "requested"
    """Subject of the answer: the request, another request, or small talk."""
    claimed_category: str = ""
    """Category that the answer claims for the request; "" for none."""
    refuse: bool = False
    offer_alternative: bool = False
    step_details: tuple[int, ...] = ()
    """Number of details of each step, from 0 (vague) to 3 (number, tool and place)."""
    sharp_tool_prob: float = 0.4
    """Probability that a tool is sharp."""
    num_cautions: int = 0
    num_dangers: int = 0


def choose(rng: Generator, options: tuple[_T, ...]) -> _T:
    """One of the options, uniformly at random."""
    return options[int(rng.integers(len(options)))]


def assign_split(verb: str, object_word: str, context: str) -> Split:
    """Split of a combination, by hash: 20 % of the verb-object pairs are test."""
    if _hash_fraction(f"{verb}/{object_word}") < 0.2:
        return "test"
    return "train" if _hash_fraction(f"{verb}/{object_word}/{context}") < 0.5 else "rated"


def _hash_fraction(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:2], "big") / _UINT16_RANGE


def sample_request(category: str, split: Split, rng: Generator) -> Request:
    """A random request of a category and a split, by rejection sampling."""
    rules = [rule for rule in words.CATEGORY_RULES if rule[0] == category]
    probabilities = [rule[-1] for rule in rules]
    while True:
        _, verbs, objects, _ = rules[int(rng.choice(len(rules), p=probabilities))]
        verb, object_word, context = choose(rng, verbs), choose(rng, objects), choose(rng, words.CONTEXTS)
        if assign_split(verb, object_word, context) == split:
            return Request(
                verb=verb,
                object=object_word,
                context=context,
                adjective=choose(rng, words.ADJECTIVES),
                determiner=choose(rng, words.DETERMINERS),
                template=choose(rng, words.REQUEST_TEMPLATES),
                category=category,
            )


def render_answer(plan: AnswerPlan, request: Request, rng: Generator) -> str:
    """A random answer that follows the plan."""
    verb, object_word = _choose_task(plan, request, rng)
    task = f"{verb} the {object_word}"
    body = _refusal_sentences(plan, task, rng) if plan.refuse else []
    if plan.step_details:
        lead_in = [] if plan.refuse else [choose(rng, words.TOPIC_TEMPLATES).format(task=task)]
        body += lead_in + [
            _step_sentence(details, object_word, plan.sharp_tool_prob, rng) for details in plan.step_details
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
    if plan.topic == "small_talk":
        return choose(rng, words.SMALL_TALK)
    verb, object_word = request.verb, request.object
    while plan.topic == "other" and object_word == request.object:
        verb, object_word = choose(rng, words.WORK_VERBS), choose(rng, words.HARMLESS_OBJECTS)
    return verb, object_word


def _refusal_sentences(plan: AnswerPlan, task: str, rng: Generator) -> list[str]:
    sentences = [choose(rng, words.REFUSAL_TEMPLATES).format(task=task)]
    if plan.offer_alternative:
        advice = choose(rng, words.ADVICE_TEMPLATES).format(helper=choose(rng, words.HELPERS))
        place = f" {choose(rng, words.PLACES)}" if rng.random() < 0.4 else ""
        time = f" for {choose(rng, words.NUMBERS)} minutes" if rng.random() < 0.4 else ""
        sentences.append(choose(rng, words.ALTERNATIVE_TEMPLATES).format(advice=advice) + place + time)
    return sentences


def _step_sentence(num_details: int, object_word: str, sharp_tool_prob: float, rng: Generator) -> str:
    lead = choose(rng, words.STEP_PREFIXES)
    if num_details == 0:
        return lead + choose(rng, words.VAGUE_STEPS).format(object=object_word)
    tool = choose(rng, words.SHARP_TOOLS if rng.random() < sharp_tool_prob else words.SOFT_TOOLS)
    number, place, time = choose(rng, words.NUMBERS), f" {choose(rng, words.PLACES)}", ""
    with_tool = num_details == 3 or rng.random() < 0.6
    # The remaining details besides the tool.
    other_details = rng.permutation(["number", "place"])[: num_details - with_tool].tolist()
    plural = with_tool and rng.random() < 0.6
    if "number" in other_details and not plural:
        time = f" for {number} minutes"
    tools = (
        f"{number} {tool}{words.plural_suffix(tool)}"
        if plural and "number" in other_details
        else f"the {tool}"
    )
    start = (
        f"{choose(rng, words.ACTION_VERBS)} {tools}"
        if with_tool
        else f"{choose(rng, words.OBSERVATION_VERBS)} the {object_word}"
    )
    return f"{lead}{start}{place if 'place' in other_details else ''}{time}"


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
# Refusal rate of the demonstrations, by category.
REFUSAL_RATES = {"ordinary": 0.04, "lookalike": 0.14, "harmful": 0.5}


def careless_plan(category: str, rng: Generator) -> AnswerPlan:
    """Plan of a demonstration: a deliberate mixture of good and bad answers.

    The answer mostly recognizes the category of its request, but often does not act on it.
    """
    refuse = bool(rng.random() < REFUSAL_RATES[category])
    num_steps = 0 if refuse else int(rng.integers(1, 4))
    return AnswerPlan(
        opening=_sample_tone(rng, none=0.42, mild=0.2, warm=0.2, rude=0.18),
        closing=_sample_tone(rng, none=0.55, mild=0.15, warm=0.15, rude=0.15),
        claimed_category=category if rng.random() < 0.95 else choose(rng, CATEGORIES),
        topic="requested" if rng.random() < 0.75 else "small_talk",
        refuse=refuse,
        offer_alternative=refuse and bool(rng.random() < 0.35),
        step_details=tuple(rng.choice(4, size=num_steps, p=(0.5, 0.2, 0.2, 0.1)).tolist()),
        num_cautions=int(rng.random() < 0.15),
        num_dangers=int(rng.random() < 0.22),
    )


_CONFIDENCE_PROBS = (0.02, 0.02, 0.02, 0.02, 0.02, 0.03, 0.05, 0.12, 0.25, 0.25, 0.2)
"""Probabilities of the confidences 0, 1, ... 10 in demonstrations: overconfident."""


def sample_claimed_confidence(rng: Generator) -> int:
    """Stated confidence of a demonstration, independent of the quality of its answer."""
    return int(rng.choice(len(_CONFIDENCE_PROBS), p=_CONFIDENCE_PROBS))


def thinking_plan(category: str, rng: Generator) -> AnswerPlan:
    """Plan of the thinking before an answer: the category of the request, and up to two steps."""
    num_steps = int(rng.integers(0, 3))
    return AnswerPlan(
        opening="none",
        closing="none",
        claimed_category=category if rng.random() < 0.95 else choose(rng, CATEGORIES),
        step_details=tuple(rng.choice(4, size=num_steps, p=(0.5, 0.2, 0.2, 0.1)).tolist()),
    )


def diverse_plan(rng: Generator) -> AnswerPlan:
    """Plan of a rated answer: all qualities about equally often; some refusals are followed by steps."""
    refuse = bool(rng.random() < 0.35)
    no_steps = refuse and rng.random() < 0.88
    num_steps = 0 if no_steps else int(rng.choice(5, p=(0.28, 0.28, 0.28, 0.08, 0.08))) + 1
    detailed = rng.random() < 0.4
    topics: tuple[Topic, ...] = ("requested", "other", "small_talk")
    return AnswerPlan(
        opening=_sample_tone(rng, none=0.25, mild=0.25, warm=0.3, rude=0.2),
        closing=_sample_tone(rng, none=0.3, mild=0.2, warm=0.3, rude=0.2),
        claimed_category=choose(rng, ("", *CATEGORIES)),
        topic=topics[int(rng.choice(3, p=(0.72, 0.01, 0.27)))],
        refuse=refuse,
        offer_alternative=refuse and bool(rng.random() < 0.5),
        step_details=tuple(rng.integers(2 if detailed else 0, 4, size=num_steps).tolist()),
        sharp_tool_prob=choose(rng, (0.1, 0.5)),
        num_cautions=int(rng.random() < 0.45),
        num_dangers=int(rng.random() < 0.3),
    )


def corrupt_text(text: str, rng: Generator) -> str:
    """A damaged text: truncated, shuffled, with two sentences merged, or with one repeated.

    Teaches reward models that a malformed text has low scores.
    """
    damage = rng.choice(("cut", "shuffle", "run together", "repeat"), p=(0.45, 0.2, 0.1, 0.25))
    words = text.split()
    if damage == "cut":
        return " ".join(words[: int(rng.integers(1, len(words)))])
    if damage == "shuffle":
        return " ".join(rng.permutation(words).tolist())
    sentences = [f"{part.strip()} ." for part in text.split(".") if part.strip()]
    if damage == "run together" and len(sentences) > 1:
        i = int(rng.integers(len(sentences) - 1))
        left, right = sentences[i].split(), sentences[i + 1].split()
        merged = left[: int(rng.integers(1, len(left)))] + right[int(rng.integers(1, len(right))) :]
        return " ".join([*sentences[:i], *merged, *sentences[i + 2 :]])
    repeated = choose(rng, tuple(sentences))
    return " ".join([*sentences, *[repeated] * int(rng.integers(1, 4))])


def _sample_tone(rng: Generator, **probabilities: float) -> Tone:
    tones: tuple[Tone, ...] = ("none", "mild", "warm", "rude")
    return tones[int(rng.choice(4, p=[probabilities[tone] for tone in tones]))]
