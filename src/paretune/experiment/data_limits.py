"""Limits of the data stage: the policy's tokenizer, lengths that fit a model, and samples of prompts."""

from paretune.config import Config
from paretune.config.data_schema import (
    DataSource,
    DemonstrationSource,
    PairSource,
    PromptSource,
    RatingSource,
    RewardSection,
)
from paretune.config.sources import data_sources
from paretune.config.validate import WORLD
from paretune.config.yaml import KeyPath, dotted_key
from paretune.core.errors import ConfigError
from paretune.core.types import PreTrainedTokenizerBase
from paretune.data.prompt_formats import PromptFormat
from paretune.data.records import Prompt
from paretune.experiment.dataset import LengthFilter
from paretune.experiment.resolved import ResolvedRun, as_config_error
from paretune.models.load import load_tokenizer, stored_context_length
from paretune.worlds import get_world


def policy_tokenizer(config: Config) -> PreTrainedTokenizerBase:
    """The tokenizer of the policy."""
    path, world = config.policy.path, config.data.world
    if path == WORLD:
        return get_world().tokenizer(world.prompt_format if world is not None else "")
    arguments = config.policy.chat_template_kwargs
    return load_tokenizer(path, revision=config.policy.revision, chat_template_kwargs=arguments)


def policy_context_length(config: Config) -> int:
    """The context length of the policy in tokens."""
    policy = config.policy
    if policy.path == WORLD:
        return get_world().context_length
    return stored_context_length(policy.path, revision=policy.revision)


def reward_tokenizer(
    run: ResolvedRun, name: str, section: RewardSection
) -> tuple[PreTrainedTokenizerBase, int]:
    """The tokenizer of a reward model to fit, and its context length in tokens.

    Raises:
        ConfigError: The tokenizer cannot be read.
    """
    if section.init_from == "policy":
        with as_config_error(run, ("policy", "path")):
            return policy_tokenizer(run.config), policy_context_length(run.config)
    with as_config_error(run, (name, "init_from")):
        kwargs = section.chat_template_kwargs
        tokenizer = load_tokenizer(section.init_from, revision=section.revision, chat_template_kwargs=kwargs)
        return tokenizer, stored_context_length(section.init_from, revision=section.revision)


def length_filter_of(
    source: PromptSource | RatingSource | PairSource | DemonstrationSource,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    prompt_format: PromptFormat = "",
    reason: str = "the context of the model",
) -> LengthFilter:
    """The length filter of a file: its own limit, or that of the model, for its reason, if it is lower."""
    limit = min(source.max_length or max_length, max_length)
    reason = "max_length of this file" if limit < max_length else reason
    return LengthFilter(tokenizer, limit, source.overlong, limit_reason=reason, prompt_format=prompt_format)


def max_prompt_length(run: ResolvedRun, context_length: int) -> int:
    """The longest prompt in tokens that leaves room for a response, in training and in the evaluation."""
    path, longest = _longest_response(run.config)
    if longest >= context_length:
        problem = f"{longest} tokens leave no room for a prompt: the policy's context has {context_length}"
        raise ConfigError(run.issue(path, problem, "lower it"))
    return context_length - longest


def prompt_filter(
    run: ResolvedRun,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    source: PromptSource | None = None,
) -> LengthFilter:
    """The length filter of a file of prompts, or of those of the built-in world.

    Args:
        run: The resolved recipe.
        tokenizer: Of the policy.
        max_length: Returned by `max_prompt_length`.
        source: The file; None: the built-in world.
    """
    path, longest = _longest_response(run.config)
    reason = f"the policy's context of {max_length + longest} minus {dotted_key(path)} {longest}"
    prompt_format = run.algorithm.prompt_format
    if source is None:
        return LengthFilter(tokenizer, max_length, "error", reason, prompt_format)
    return length_filter_of(source, tokenizer, max_length, prompt_format, reason)


def _longest_response(config: Config) -> tuple[KeyPath, int]:
    """The key of the longest response, in training or in the evaluation, and its tokens."""
    lengths: dict[KeyPath, int] = {
        ("algorithm", "max_new_tokens"): int(config.algorithm.arguments.get("max_new_tokens", 256)),
        ("evaluate", "max_new_tokens"): config.evaluate.max_new_tokens or 0,
    }
    path = max(lengths, key=lambda key: lengths[key])
    return path, lengths[path]


def source_key(run: ResolvedRun, source: DataSource) -> KeyPath:
    """The key of a source of data."""
    return next(key for key, _, other in data_sources(run.config) if other is source)


def source_issue(run: ResolvedRun, source: DataSource, error: str) -> str:
    """The error of a whole source, such as a dataset of the hub, at its key in the recipe."""
    problem, _, fix = error.partition("; fix: ")
    return run.issue((*source_key(run, source), "file"), problem, fix)


def sample_by_category(prompts: list[Prompt], max_prompts: int) -> list[Prompt]:
    """At most this many prompts, with every category in its proportion, in their order."""
    if len(prompts) <= max_prompts:
        return prompts
    by_category = sorted(range(len(prompts)), key=lambda i: prompts[i].category)
    indices = sorted(by_category[k * len(prompts) // max_prompts] for k in range(max_prompts))
    return [prompts[i] for i in indices]
