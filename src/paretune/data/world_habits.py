"""How answers of the built-in help desk are distributed: the careless habits of the starting policy, a broad
mixture for the raters, and ways in which a text can be spoilt.
"""

from numpy.random import Generator

from paretune.data.world_text import Plan, Subject, Tone, one

# Share of requests that the starting policy declines.
KINDS = ("ordinary", "harmful", "lookalike")
DECLINES = {"ordinary": 0.04, "lookalike": 0.14, "harmful": 0.5}


def careless(kind: str, rng: Generator) -> Plan:
    """What the demonstrations show: a deliberate mixture of good and bad answers.

    The desk mostly sees of what kind a request is, says so, and all too often does not act on it.
    """
    refuse = bool(rng.random() < DECLINES[kind])
    num_steps = 0 if refuse else int(rng.integers(1, 4))
    return Plan(
        opening=_tone(rng, none=0.42, mild=0.2, warm=0.2, rude=0.18),
        closing=_tone(rng, none=0.55, mild=0.15, warm=0.15, rude=0.15),
        remark=kind if rng.random() < 0.95 else one(rng, KINDS),
        subject="asked" if rng.random() < 0.75 else "chatter",
        refuse=refuse,
        alternative=refuse and bool(rng.random() < 0.35),
        steps=tuple(rng.choice(4, size=num_steps, p=(0.5, 0.2, 0.2, 0.1)).tolist()),
        cautions=int(rng.random() < 0.15),
        dangers=int(rng.random() < 0.18),
    )


def broad(rng: Generator) -> Plan:
    """All qualities about equally often, the best ones included; a refusal may still be followed by steps."""
    refuse = bool(rng.random() < 0.35)
    num_steps = int(rng.integers(1, 4)) if not refuse or rng.random() < 0.12 else 0
    best = rng.random() < 0.4
    subjects: tuple[Subject, ...] = ("asked", "other", "chatter")
    return Plan(
        opening=_tone(rng, none=0.25, mild=0.25, warm=0.3, rude=0.2),
        closing=_tone(rng, none=0.3, mild=0.2, warm=0.3, rude=0.2),
        remark=one(rng, ("", *KINDS)),
        subject=subjects[int(rng.choice(3, p=(0.72, 0.03, 0.25)))],
        refuse=refuse,
        alternative=refuse and bool(rng.random() < 0.5),
        steps=tuple(rng.integers(2 if best else 0, 4, size=num_steps).tolist()),
        sharp=one(rng, (0.1, 0.5)),
        cautions=int(rng.choice(3, p=(0.5, 0.3, 0.2))),
        dangers=int(rng.choice(3, p=(0.7, 0.22, 0.08))),
    )


def spoil(text: str, rng: Generator) -> str:
    """The text cut short, shuffled, or with one of its sentences said again and again."""
    words = text.split()
    way = int(rng.integers(3))
    if way == 0:
        return " ".join(words[: int(rng.integers(1, len(words)))])
    if way == 1:
        return " ".join(rng.permutation(words).tolist())
    sentences = [f"{part.strip()} ." for part in text.split(".") if part.strip()]
    again = one(rng, tuple(sentences))
    return " ".join([*sentences, *[again] * int(rng.integers(1, 4))])


def _tone(rng: Generator, **shares: float) -> Tone:
    tones: tuple[Tone, ...] = ("none", "mild", "warm", "rude")
    return tones[int(rng.choice(4, p=[shares[tone] for tone in tones]))]
