"""Stop tokens: what ends a response, by the chat template, the generation configuration, the tokenizer."""

from typing import Any

from paretune.core.errors import DataError
from paretune.core.types import PreTrainedModel, PreTrainedTokenizerBase
from paretune.data.chat_template import chat_template_of


def stop_tokens(
    tokenizer: PreTrainedTokenizerBase, configured: int | list[int] | None, source: str = "generation_config"
) -> dict[int, str]:
    """Every token id that ends a response, and where it comes from, such as "template".

    The first one is the token that the chat template writes after an answer, if it writes one: stored
    responses get it. Without a template it is the first of the configuration.

    Args:
        tokenizer: The tokenizer, with or without a chat template.
        configured: `eos_token_id` of the generation configuration or of the model configuration.
        source: The name of that configuration.
    """
    ids = [configured] if isinstance(configured, int) else list(configured or [])
    stops = dict.fromkeys(ids, source)
    if tokenizer.eos_token_id is not None:
        stops.setdefault(tokenizer.eos_token_id, "tokenizer")
    template = chat_template_of(tokenizer)
    if template.source is None:
        return stops
    end_id, next_id = template.turns.end_id, template.turns.next_id
    # Without an end of turn, some models stop at the token that begins the next turn: then it is configured.
    first = next_id if end_id is None and next_id in stops else end_id
    return stops if first is None else {first: "template"} | {k: v for k, v in stops.items() if k != first}


def eos_ids_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """EOS ids: the union of the chat template's turn end, the generation configuration's and the tokenizer's.

    The first one is the token that the chat template writes after an answer, if it writes one. The model
    configuration's counts only if there is no other.

    Raises:
        DataError: No EOS token is defined.
    """
    configured: Any = model.generation_config.eos_token_id if model.generation_config else None
    if configured is None and tokenizer.eos_token_id is None:
        configured = model.config.eos_token_id
    stops = stop_tokens(tokenizer, configured)
    if not stops:
        raise DataError(
            f"{model.config.name_or_path or 'the model'}: no EOS token is defined; "
            "fix: set eos_token_id in generation_config.json"
        )
    return tuple(stops)


def describe_stop_tokens(
    tokenizer: PreTrainedTokenizerBase, configured: int | list[int] | None, source: str = "generation_config"
) -> str:
    """The stop tokens as one line, such as "<|im_end|> (template), <|endoftext|> (tokenizer)"."""
    stops = stop_tokens(tokenizer, configured, source)
    return ", ".join(f"{tokenizer.convert_ids_to_tokens(k)} ({name})" for k, name in stops.items()) or "none"
