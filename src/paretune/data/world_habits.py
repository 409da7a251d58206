"""How answers of the built-in help desk are distributed.

The careless habits of the starting policy, a broad mixture for the raters, and ways to spoil a text.
"""

from numpy.random import Generator

from paretune.data.world_text import AnswerPlan, Tone, Topic, choose

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
