"""What both sides are given: the model, the prompts, how many responses of what length."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerBase

from paretune.data.chat import encode_prompt, render_prompt
from paretune.data.readers import read_preference_pairs, read_ratings
from paretune.data.records import Message, PreferencePair, Prompt, Rating
from paretune.reward.checkpoint import RewardModelSpec, new_reward_model, save_reward_model
from paretune.worlds.helpdesk import world
from paretune.worlds.helpdesk.model import helpdesk_tokenizer as world_tokenizer
from paretune.worlds.helpdesk.model import policy_config

HERE = Path(__file__).parent
SHARED = HERE.parent.parent / "shared"
MADE = HERE.parent / "build" / "bench"
"""Where models that are made for the bench lie."""
NEVER = "<|never|>"
"""A token that no model writes: where it alone ends a response, all responses are of full length."""

MICRO_TOKENS = 2048
"""Tokens of a forward pass with gradients on both sides, padding included. Neither is faster with more here,
and both take less memory than by default."""

Model = Literal["dialogue", "world", "wide"]
"""dialogue-7m; the shape of the built-in world's policy; dialogue-7m's shape with 4096 positions. The latter
two have random weights."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A step of alignment: `prompts` times `n` responses."""

    name: str
    least: int
    """Tokens of the shortest prompt."""
    most: int
    """Tokens of the longest prompt."""
    max_new: int
    full: bool
    """Responses are of `max_new` tokens, all of them; else they stop where the policy stops."""
    turns: int = 1
    """Messages of a prompt at least."""
    prompts: int = 8
    n: int = 8
    model: Model = "dialogue"
    objectives: int = 1

    def micro(self) -> int:
        """Rows of a peer's forward pass with gradients, all as long as the longest can be; a power of 2."""
        rows = min(self.prompts * self.n, MICRO_TOKENS // (self.most + self.max_new))
        return 2 ** int(math.log2(max(rows, 1)))

    def but(self, **changes: int | str) -> "Workload":
        """The same with some fields replaced."""
        return replace(self, **changes)  # type: ignore[arg-type]


WORKLOADS = {
    each.name: each
    for each in (
        Workload(name="short", least=20, most=28, max_new=64, full=True),
        Workload(name="dialogue", least=48, most=384, max_new=64, full=False, turns=3),
        Workload(name="long", least=256, most=256, max_new=256, full=True),
        Workload(name="world", least=1, most=64, max_new=64, full=True, model="world"),
    )
}


def model_folder(model: Model, full: bool) -> Path:
    """The folder of the model that both sides load; made where it is not there.

    With `full` the generation ends at a token that the model does not have, which costs nobody anything.
    """
    folder = MADE / f"{model}{'-full' if full else ''}"
    if (folder / "config.json").exists():
        return folder
    shared = SHARED / "models" / "dialogue-7m"
    if model == "dialogue":
        network = AutoModelForCausalLM.from_pretrained(shared, dtype=torch.float32, local_files_only=True)
    else:
        torch.manual_seed(0)  # a process of its own, and the weights are random on purpose
        network = AutoModelForCausalLM.from_config(_config(model, shared), dtype=torch.float32)
    words = world_tokenizer() if model == "world" else AutoTokenizer.from_pretrained(shared)
    if full:
        words.add_special_tokens({"eos_token": NEVER})
        network.config.eos_token_id = network.generation_config.eos_token_id = len(words) - 1
    network.generation_config.pad_token_id = words.pad_token_id
    words.save_pretrained(folder)
    network.save_pretrained(folder)
    return folder


def _config(model: Model, shared: Path) -> LlamaConfig:
    if model == "world":
        return policy_config(len(world_tokenizer()))
    return LlamaConfig.from_pretrained(shared, max_position_embeddings=4096)


def prompts_of(workload: Workload, steps: int, words: PreTrainedTokenizerBase) -> list[list[Prompt]]:
    """For each step its prompts, the same for both sides; they repeat when there are no more."""
    found = _fitting(workload, words, steps * workload.prompts)
    if not found:
        raise SystemExit(
            f"bench: no prompt of {workload.least} to {workload.most} tokens for {workload.name}"
        )
    places = range(steps * workload.prompts)
    flat = [replace(found[i % len(found)], id=str(i)) for i in places]
    return [flat[i * workload.prompts : (i + 1) * workload.prompts] for i in range(steps)]


def _fitting(workload: Workload, words: PreTrainedTokenizerBase, count: int) -> list[Prompt]:
    if workload.model == "world":
        return world.generate_requests("train", count, 0)
    found = []
    for given in _shuffled(dict.fromkeys(pair.prompt.messages for pair in pairs())):
        turns = _cut(given, workload.most, words) if workload.least == workload.most else given
        if len(turns) < workload.turns:
            continue
        length = len(encode_prompt(words, Prompt(messages=turns)))
        if workload.least <= length <= workload.most:
            found.append(Prompt(messages=turns))
        if len(found) == count:
            break
    return found


def _cut(prompt: Sequence[Message], tokens: int, words: PreTrainedTokenizerBase) -> tuple[Message, ...]:
    """One user turn that takes exactly so many tokens with its template, or an empty prompt."""
    text = "\n".join(message.content for message in prompt)
    while len(text) < tokens * 16:
        text += "\n" + text
    frame = len(encode_prompt(words, Prompt(messages=(Message("user", "x"),)))) - 1
    for more in range(-4, 12):
        ids = words(text, add_special_tokens=False, verbose=False)["input_ids"][: tokens - frame + more]
        shown = (Message("user", words.decode(ids).strip()),)
        if len(encode_prompt(words, Prompt(messages=shown))) == tokens:
            return shown
    return ()


def _shuffled(prompts: Iterable[tuple[Message, ...]]) -> list[tuple[Message, ...]]:
    """In an order that has to do with their text alone."""
    return sorted(prompts, key=lambda turns: hashlib.sha256(turns[-1].content.encode()).hexdigest())


def pairs() -> list[PreferencePair]:
    """Real comparisons, multi-turn, of uneven length."""
    folder = SHARED / "data" / "preferences"
    return [
        pair
        for name in ("hh_helpful", "hh_harmless")
        for pair in read_preference_pairs(folder / f"{name}.train.jsonl.gz", objective="better")
    ]


RATINGS = {"oasst2": "quality", "usr_topicalchat": "overall", "realtoxicityprompts": "toxicity"}
"""Files of ratings, of very uneven length together, and the aspect of each that is fitted."""


def ratings() -> list[Rating]:
    """Real ratings on one scale: the aspect of each file in its standard deviations."""
    found = []
    for name, aspect in RATINGS.items():
        file = SHARED / "data" / "ratings" / f"{name}.train.jsonl.gz"
        rows = read_ratings(file, labels={"score": aspect}, max_rows=300)
        values = torch.tensor([row.labels["score"] for row in rows])
        mean, deviation = float(values.mean()), float(values.std())
        found += [replace(row, labels={"score": (row.labels["score"] - mean) / deviation}) for row in rows]
    return found


def letters(text: str) -> float:
    """The reward of both sides: the share of letters e, a number that costs next to nothing."""
    return text.count("e") / (len(text) + 1)


def pairs_up_to(tokens: int, words: PreTrainedTokenizerBase) -> list[PreferencePair]:
    """The comparisons whose two rows have at most so many tokens, in an order of no meaning."""
    order = sorted(pairs(), key=lambda pair: hashlib.sha256(pair.chosen.encode()).hexdigest())
    return [pair for pair in order if max(row_lengths(pair, words)) <= tokens]


def row_lengths(pair: PreferencePair, words: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Tokens of the prompt with each of the two responses and the token that ends it."""
    prompt = len(encode_prompt(words, pair.prompt))
    chosen, rejected = (
        len(words(text, add_special_tokens=False, verbose=False)["input_ids"]) + 1
        for text in (pair.chosen, pair.rejected)
    )
    return prompt + chosen, prompt + rejected


SCORED = ("scoring",)
"""The work that needs a stored reward model."""
PAIRS, RATED, SCORES = 64, 128, 256
"""Judgements of a fit to pairs, of a fit to ratings, and of a pass that scores."""
LONGEST = 768
"""Tokens of a judged row at most."""


def scorer_folder() -> Path:
    """A reward model that both sides load: dialogue-7m's body and one head with random weights."""
    folder = MADE / "scorer"
    if not (folder / "config.json").exists():
        model = new_reward_model(
            RewardModelSpec(path=str(model_folder("dialogue", False)), objectives=("score",)), (1.0,), (0.0,)
        )
        head = model.network.score.weight  # type: ignore[union-attr]
        torch.nn.init.normal_(head, std=0.05, generator=torch.Generator().manual_seed(0))
        save_reward_model(model, folder)
    return folder


def rated(count: int, words: PreTrainedTokenizerBase) -> list[Rating]:
    """So many of the ratings that are not too long, in an order that has to do with their text alone."""
    order = sorted(ratings(), key=lambda rating: hashlib.sha256(rating.response.encode()).hexdigest())
    fits = (r for r in order if len(words(text_of(r, words))["input_ids"]) <= LONGEST)
    return list(islice(fits, count))


def text_of(rating: Rating, words: PreTrainedTokenizerBase) -> str:
    """A rated response as a classifier reads it: the conversation, the response and what ends it."""
    return render_prompt(words, rating.prompt) + rating.response + words.convert_ids_to_tokens(2)
