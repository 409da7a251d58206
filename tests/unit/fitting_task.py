"""A task that a tiny model learns in seconds, and a linear model on averages does not."""

import random

from paretune.data.records import Demonstration, Message, PreferencePair, Prompt, Rating
from paretune.models.load import as_policy_model
from support.tiny_models import tiny_model, tiny_tokenizer

WORDS = "abcdefgh"


def language(seed=0, **size):
    tokenizer = tiny_tokenizer()
    shape = {"width": 32, "layers": 2, "initial": 0.1} | size
    return as_policy_model(tiny_model("llama", len(tokenizer), seed=seed, **shape), tokenizer)


def prompt(asked, n=0):
    return Prompt(messages=(Message("user", asked),), id=f"p{n}")


def text(rng):
    return "!" * rng.randint(0, 3) + "".join(rng.choices(WORDS, k=rng.randint(2, 9)))


def truth(response):
    """`ending` depends on the place of a letter, `loud` on a count; each in units of its own."""
    return {"ending": WORDS.index(response[-1]) / 7, "loud": 10.0 + 5 * response.count("!")}


def ratings(count, seed, missing=0.3):
    rng = random.Random(seed)
    made = []
    for n in range(count):
        asked, response = rng.choice(WORDS), text(rng)
        labels = {k: v for k, v in truth(response).items() if rng.random() > missing}
        made.append(Rating(prompt=prompt(asked, n), response=response, labels=labels))
    return made


def pairs(count, seed, objective="brief"):
    """The shorter of two responses is preferred."""
    rng = random.Random(seed)
    made = []
    for n in range(count):
        short, long = sorted((text(rng), text(rng) + "xy"), key=len)
        if len(short) < len(long):
            asked = prompt(rng.choice(WORDS), n)
            made.append(PreferencePair(prompt=asked, chosen=short, rejected=long, objective=objective))
    return made


def demonstrations(count, seed):
    rng = random.Random(seed)
    asked = [rng.choice(WORDS) for _ in range(count)]
    return [Demonstration(prompt=prompt(a, n), response=a * 3) for n, a in enumerate(asked)]
