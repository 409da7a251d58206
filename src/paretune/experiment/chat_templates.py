"""Chat templates of a run, checked and described without weights."""

from collections.abc import Iterator, Mapping
from typing import Any

from paretune.config import Config
from paretune.config.validate import WORLD, reward_sections
from paretune.config.yaml import KeyPath
from paretune.core.errors import DataError
from paretune.core.types import PreTrainedTokenizerBase
from paretune.data.chat_checks import check_template, template_warnings
from paretune.data.chat_template import RESERVED_ARGUMENTS, ChatTemplateError, chat_template_of
from paretune.experiment.data_limits import policy_tokenizer
from paretune.experiment.resolved import ResolvedRun, as_config_error
from paretune.models.load import load_tokenizer, stored_eos_ids
from paretune.models.stop_tokens import describe_stop_tokens


def chat_template_issues(run: ResolvedRun) -> Iterator[str]:
    """One line per chat template that fails or loses texts, and per argument that its template does not read.

    Args:
        run: The resolved recipe; the configurations of its models can be read.

    Raises:
        ConfigError: A tokenizer cannot be read.
    """
    policy = run.config.policy
    if policy.path != WORLD:
        with as_config_error(run, ("policy", "path")):
            tokenizer = policy_tokenizer(run.config)
        yield from _template_issues(run, ("policy", "path"), policy.path, tokenizer)
        yield from _argument_issues(run, ("policy",), policy.chat_template_kwargs, tokenizer)
    for name, section in reward_sections(run.config):
        if section.pretrained_model is not None:
            key, path = section.pretrained_model
            arguments = section.chat_template_kwargs
            with as_config_error(run, (name, key)):
                tokenizer = load_tokenizer(path, revision=section.revision, chat_template_kwargs=arguments)
            yield from _template_issues(run, (name, key), path, tokenizer)
            yield from _argument_issues(run, (name,), arguments, tokenizer)


def _template_issues(
    run: ResolvedRun, key: KeyPath, path: str, tokenizer: PreTrainedTokenizerBase
) -> Iterator[str]:
    try:
        check_template(tokenizer)
    except ChatTemplateError as error:
        yield run.issue(key, f"{path}: {error.problem}", error.fix)
    except DataError as error:
        yield run.issue(key, str(error))


def _argument_issues(
    run: ResolvedRun, section: KeyPath, arguments: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> Iterator[str]:
    if not arguments:
        return
    template = chat_template_of(tokenizer)
    for name in arguments:
        path = (*section, "chat_template_kwargs", name)
        if name in RESERVED_ARGUMENTS:
            yield run.issue(
                path, "is no argument of chat templates, or is set by every rendering", "remove it"
            )
        elif template.source is None:
            yield run.issue(path, "has no effect: the tokenizer has no chat template", "remove it")
        elif not template.mentions(name):
            yield run.issue(path, "has no effect: the chat template does not read it", "remove it")


def policy_stop_tokens(config: Config) -> list[str]:
    """The tokens that end a response of the policy, and where they come from; no line for the built-in world.

    Raises:
        DataError: The tokenizer or the configuration of the policy cannot be read.
    """
    policy = config.policy
    if policy.path == WORLD:
        return []
    tokenizer = policy_tokenizer(config)
    return [describe_stop_tokens(tokenizer, *stored_eos_ids(policy.path, revision=policy.revision))]


def policy_template_warnings(config: Config) -> list[str]:
    """One line per difference between what the policy's chat template asks for and what it writes.

    Raises:
        DataError: The tokenizer of the policy cannot be read.
    """
    if config.policy.path == WORLD:
        return []
    return [f"policy: {line}" for line in template_warnings(policy_tokenizer(config))]
