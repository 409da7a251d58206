"""Random transformers models that are small enough for tests, and a tokenizer."""

from typing import Any, Literal, get_args

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

Kind = Literal["llama", "qwen2", "qwen3", "mistral", "gemma", "gpt2"]
KINDS: tuple[str, ...] = get_args(Kind)

_CONFIGS: dict[str, type[PretrainedConfig]] = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "mistral": MistralConfig,
    "gemma": GemmaConfig,
}

_TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'][0] + '>' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
)


def tiny_config(
    kind: Kind,
    vocab: int,
    *,
    width: int = 32,
    layers: int = 2,
    heads: int = 4,
    context: int = 256,
    initial: float = 0.02,
    stop: int = 1,
    pad: int = 0,
    **more: Any,
) -> PretrainedConfig:
    """A configuration of the model family with a tied head.

    Args:
        kind: The model family (`model_type`).
        vocab: Vocabulary size.
        width: Hidden size.
        layers: Number of layers.
        heads: Number of attention heads; families with GQA get half as many key/value heads.
        context: Maximum sequence length.
        initial: Standard deviation of the random weights; with 0.02 the next-token distributions are almost
            uniform, with 0.3 they are not.
        stop: EOS token id.
        pad: Padding token id; may equal `stop`.
        **more: Further fields of the family's configuration.
    """
    common: dict[str, Any] = {
        "vocab_size": vocab,
        "initializer_range": initial,
        "bos_token_id": None,
        "eos_token_id": stop,
        "pad_token_id": pad,
        "tie_word_embeddings": True,
    }
    if kind == "gpt2":
        no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        size = {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": context}
        return GPT2Config(**(common | size | no_dropout | more))
    size = {
        "hidden_size": width,
        "intermediate_size": 8 * width // 3 // 8 * 8,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(heads // 2, 1),
        "head_dim": width // heads,
        "max_position_embeddings": context,
    }
    return _CONFIGS[kind](**(common | size | more))


def random_model(config: PretrainedConfig, *, seed: int = 0) -> PreTrainedModel:
    """A float32 model with weights drawn from `seed`; the global random generator is not changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


def tiny_model(kind: Kind, vocab: int, *, seed: int = 0, **size: Any) -> PreTrainedModel:
    """A random float32 model of the family; `size` as in `tiny_config`."""
    return random_model(tiny_config(kind, vocab, **size), seed=seed)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of single characters (101 ids) with a chat template; `</s>` (id 1) ends a response."""
    pieces = ["<pad>", "</s>", "<s>", "<u>", "<a>", "<unk>", *(chr(code) for code in range(32, 127))]
    core = Tokenizer(WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    core.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=["<s>", "<u>", "<a>"],
        chat_template=_TEMPLATE,
    )
