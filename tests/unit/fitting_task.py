"""A task that a tiny model learns in seconds and a linear model on averaged features does not."""

import random

from paretune.data.records import Demonstration, Message, PreferencePair, Prompt, Rating
from paretune.models.load import as_policy_model
from support.tiny_models import tiny_model, tiny_tokenizer

WORDS = "abcdefgh"


def language(seed=0, **size):
    tokenizer = tiny_tokenizer()
    shape = {"width": 32, "layers": 2, "initial": 0.1} | size
    return as_policy_model(tiny_model("llama", len(tokenizer), seed=seed, **shape), tokenizer)


def prompt(question, n=0):
    return Prompt(messages=(Message("user", question),), id=f"p{n}")


def text(rng):
    return "!" * rng.randint(0, 3) + "".join(rng.choices(WORDS, k=rng.randint(2, 9)))


def truth(response):
    """`ending` depends on the position of a letter, `loud` on a count; the scales differ."""
    return {"ending": WORDS.index(response[-1]) / 7, "loud": 10.0 + 5 * response.count("!")}


def ratings(count, seed, missing=0.3):
    rng = random.Random(seed)
    records = []
    for n in range(count):
        question, response = rng.choice(WORDS), text(rng)
        labels = {k: v for k, v in truth(response).items() if rng.random() > missing}
        records.append(Rating(prompt=prompt(question, n), response=response, labels=labels))
    return records


def pairs(count, seed, objective="brief"):
    """The shorter of two responses is preferred."""
    rng = random.Random(seed)
    records = []
    for n in range(count):
        short, long = sorted((text(rng), text(rng) + "xy"), key=len)
        if len(short) < len(long):
            question = prompt(rng.choice(WORDS), n)
            records.append(PreferencePair(prompt=question, chosen=short, rejected=long, objective=objective))
    return records


def demonstrations(count, seed):
    rng = random.Random(seed)
    questions = [rng.choice(WORDS) for _ in range(count)]
    return [Demonstration(prompt=prompt(q, n), response=q * 3) for n, q in enumerate(questions)]
