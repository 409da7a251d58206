"""The work of both sides: model, prompts, number and length of responses, ratings and pairs."""

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
from paretune.worlds.helpdesk.model import helpdesk_tokenizer, policy_config

BENCH_DIR = Path(__file__).parent
SHARED = BENCH_DIR.parent.parent / "shared"
BUILD_DIR = BENCH_DIR.parent / "build" / "bench"
"""Folder of the models that are created for the benchmark."""
UNUSED_EOS = "<|never|>"
"""An EOS token that no model generates, so that all responses have full length."""

MAX_TOKENS_PER_PASS = 2048
"""Tokens per forward pass with gradients of the peer, padding included. Neither side is faster with more on
the test machine, and both need less memory than by default."""

Model = Literal["dialogue", "world", "wide"]
"""dialogue-7m; the architecture of the help desk world's policy; dialogue-7m's architecture with 4096
positions. The latter two have random weights."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """An alignment step: `prompts` times `num_generations` responses."""

    name: str
    min_prompt_tokens: int
    """Tokens of the shortest prompt."""
    max_prompt_tokens: int
    """Tokens of the longest prompt."""
    max_new_tokens: int
    full_length: bool
    """All responses have `max_new_tokens` tokens; otherwise they end with the policy's EOS token."""
    min_messages: int = 1
    """Minimum number of messages per prompt."""
    prompts: int = 8
    num_generations: int = 8
    model: Model = "dialogue"
    objectives: int = 1

    def micro_batch_size(self) -> int:
        """Rows per forward pass with gradients of the peer, if all have maximum length; a power of 2."""
        rows = min(
            self.prompts * self.num_generations,
            MAX_TOKENS_PER_PASS // (self.max_prompt_tokens + self.max_new_tokens),
        )
        return 2 ** int(math.log2(max(rows, 1)))

    def replace(self, **changes: int | str) -> "Workload":
        """A copy with some fields replaced."""
        return replace(self, **changes)  # type: ignore[arg-type]


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            name="short", min_prompt_tokens=20, max_prompt_tokens=28, max_new_tokens=64, full_length=True
        ),
        Workload(
            name="dialogue",
            min_prompt_tokens=48,
            max_prompt_tokens=384,
            max_new_tokens=64,
            full_length=False,
            min_messages=3,
        ),
        Workload(
            name="long", min_prompt_tokens=256, max_prompt_tokens=256, max_new_tokens=256, full_length=True
        ),
        Workload(
            name="world",
            min_prompt_tokens=1,
            max_prompt_tokens=64,
            max_new_tokens=64,
            full_length=True,
            model="world",
        ),
    )
}


def model_folder(model: Model, full_length: bool) -> Path:
    """The folder of the model that both sides load; created if missing.

    With `full_length`, the EOS token has no embedding and is never generated, at no cost for either side.
    """
    folder = BUILD_DIR / f"{model}{'-full' if full_length else ''}"
    if (folder / "config.json").exists():
        return folder
    shared = SHARED / "models" / "dialogue-7m"
    if model == "dialogue":
        network = AutoModelForCausalLM.from_pretrained(shared, dtype=torch.float32, local_files_only=True)
    else:
        torch.manual_seed(0)  # the benchmark's own process; the weights are random on purpose
        network = AutoModelForCausalLM.from_config(_config(model, shared), dtype=torch.float32)
    tokenizer = helpdesk_tokenizer() if model == "world" else AutoTokenizer.from_pretrained(shared)
    if full_length:
        tokenizer.add_special_tokens({"eos_token": UNUSED_EOS})
        network.config.eos_token_id = network.generation_config.eos_token_id = len(tokenizer) - 1
    network.generation_config.pad_token_id = tokenizer.pad_token_id
    tokenizer.save_pretrained(folder)
    network.save_pretrained(folder)
    return folder


def _config(model: Model, shared: Path) -> LlamaConfig:
    if model == "world":
        return policy_config(len(helpdesk_tokenizer()))
    return LlamaConfig.from_pretrained(shared, max_position_embeddings=4096)


def prompts_of(workload: Workload, steps: int, tokenizer: PreTrainedTokenizerBase) -> list[list[Prompt]]:
    """Prompts per step, the same for both sides; they repeat when there are not enough."""
    prompts = _matching_prompts(workload, tokenizer, steps * workload.prompts)
    if not prompts:
        raise SystemExit(
            f"bench: {workload.name}: no prompt has {workload.min_prompt_tokens} to "
            f"{workload.max_prompt_tokens} tokens"
        )
    flat = [replace(prompts[i % len(prompts)], id=str(i)) for i in range(steps * workload.prompts)]
    return [flat[i * workload.prompts : (i + 1) * workload.prompts] for i in range(steps)]


def _matching_prompts(workload: Workload, tokenizer: PreTrainedTokenizerBase, count: int) -> list[Prompt]:
    if workload.model == "world":
        return world.generate_requests("train", count, 0)
    prompts = []
    fixed_length = workload.min_prompt_tokens == workload.max_prompt_tokens
    for original in _shuffled(dict.fromkeys(pair.prompt.messages for pair in pairs())):
        messages = (
            _cut_to_length(original, workload.max_prompt_tokens, tokenizer) if fixed_length else original
        )
        if len(messages) < workload.min_messages:
            continue
        length = len(encode_prompt(tokenizer, Prompt(messages=messages)))
        if workload.min_prompt_tokens <= length <= workload.max_prompt_tokens:
            prompts.append(Prompt(messages=messages))
        if len(prompts) == count:
            break
    return prompts


def _cut_to_length(
    prompt: Sequence[Message], tokens: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[Message, ...]:
    """One user message of exactly this many tokens including the template, or an empty prompt."""
    text = "\n".join(message.content for message in prompt)
    while len(text) < tokens * 16:
        text += "\n" + text
    template_tokens = len(encode_prompt(tokenizer, Prompt(messages=(Message("user", "x"),)))) - 1
    # Decoding and encoding again may change the number of tokens: a few lengths are tried.
    for extra in range(-4, 12):
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][
            : tokens - template_tokens + extra
        ]
        messages = (Message("user", tokenizer.decode(ids).strip()),)
        if len(encode_prompt(tokenizer, Prompt(messages=messages))) == tokens:
            return messages
    return ()


def _shuffled(prompts: Iterable[tuple[Message, ...]]) -> list[tuple[Message, ...]]:
    """In an order that depends on their texts only."""
    return sorted(prompts, key=lambda messages: hashlib.sha256(messages[-1].content.encode()).hexdigest())


def pairs() -> list[PreferencePair]:
    """Real multi-turn preference pairs of different lengths."""
    folder = SHARED / "data" / "preferences"
    return [
        pair
        for name in ("hh_helpful", "hh_harmless")
        for pair in read_preference_pairs(folder / f"{name}.train.jsonl.gz", objective="better")
    ]


RATINGS = {"oasst2": "quality", "usr_topicalchat": "overall", "realtoxicityprompts": "toxicity"}
"""Files of ratings, together of very different lengths, and the label of each that is learned."""


def ratings() -> list[Rating]:
    """Real ratings on one scale: the label of each file, standardized."""
    standardized = []
    for name, label in RATINGS.items():
        file = SHARED / "data" / "ratings" / f"{name}.train.jsonl.gz"
        rows = read_ratings(file, labels={"score": label}, max_rows=300)
        values = torch.tensor([row.labels["score"] for row in rows])
        mean, deviation = float(values.mean()), float(values.std())
        standardized += [
            replace(row, labels={"score": (row.labels["score"] - mean) / deviation}) for row in rows
        ]
    return standardized


def letters(text: str) -> float:
    """The reward of both sides: the fraction of letters e, which is almost free to compute."""
    return text.count("e") / (len(text) + 1)


def pairs_up_to(tokens: int, tokenizer: PreTrainedTokenizerBase) -> list[PreferencePair]:
    """Preference pairs whose rows have at most this many tokens, in pseudo-random order."""
    order = sorted(pairs(), key=lambda pair: hashlib.sha256(pair.chosen.encode()).hexdigest())
    return [pair for pair in order if max(row_lengths(pair, tokenizer)) <= tokens]


def row_lengths(pair: PreferencePair, tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Tokens of the prompt with each of the two responses and its EOS token."""
    prompt = len(encode_prompt(tokenizer, pair.prompt))
    chosen, rejected = (
        len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) + 1
        for text in (pair.chosen, pair.rejected)
    )
    return prompt + chosen, prompt + rejected


NEEDS_REWARD_MODEL = ("scoring",)
"""Workloads that need a stored reward model."""
NUM_PAIRS, NUM_RATINGS, NUM_SCORED = 64, 128, 256
"""Examples of training on pairs, of training on ratings, and of scoring."""
MAX_ROW_TOKENS = 768
"""Maximum tokens of a row in training on ratings and pairs, and in scoring."""


def reward_model_folder() -> Path:
    """The reward model that both sides load: dialogue-7m's body and one head with random weights."""
    folder = BUILD_DIR / "scorer"
    if not (folder / "config.json").exists():
        model = new_reward_model(
            RewardModelSpec(path=str(model_folder("dialogue", False)), objectives=("score",)), (1.0,), (0.0,)
        )
        head = model.network.score.weight  # type: ignore[union-attr]
        torch.nn.init.normal_(head, std=0.05, generator=torch.Generator().manual_seed(0))
        save_reward_model(model, folder)
    return folder


def short_ratings(count: int, tokenizer: PreTrainedTokenizerBase) -> list[Rating]:
    """`count` ratings of at most `MAX_ROW_TOKENS` tokens, in an order that depends on their texts only."""
    order = sorted(ratings(), key=lambda rating: hashlib.sha256(rating.response.encode()).hexdigest())
    short = (r for r in order if len(tokenizer(text_of(r, tokenizer))["input_ids"]) <= MAX_ROW_TOKENS)
    return list(islice(short, count))


def text_of(rating: Rating, tokenizer: PreTrainedTokenizerBase) -> str:
    """A rated response as a classifier reads it: conversation, response and EOS token."""
    return render_prompt(tokenizer, rating.prompt) + rating.response + tokenizer.convert_ids_to_tokens(2)
