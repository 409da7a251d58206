"""Shapes of published models, so that a plan needs none of their files.

Source: the config.json of Qwen/Qwen2.5-0.5B, -7B and -14B on the Hugging Face hub, as described in the
Qwen2.5 technical report, table 1 (arXiv:2412.15115).
"""

from typing import Any


def _qwen(
    hidden: int, layers: int, heads: int, kv_heads: int, ffn: int, vocab: int, *, tied: bool
) -> dict[str, Any]:
    return {
        "model_type": "qwen2",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 32768,
    }


PUBLISHED_CONFIGS = {
    "Qwen/Qwen2.5-0.5B": _qwen(896, 24, 14, 2, 4864, 151936, tied=True),
    "Qwen/Qwen2.5-7B": _qwen(3584, 28, 28, 4, 18944, 152064, tied=False),
    "Qwen/Qwen2.5-14B": _qwen(5120, 48, 40, 8, 13824, 152064, tied=False),
}
"""Hub name -> fields of its configuration; an -Instruct model has the shape of its base model."""


def published_config(path: str) -> dict[str, Any] | None:
    """Fields of the configuration of a hub name; None if it is not one of the table."""
    return PUBLISHED_CONFIGS.get(path.removesuffix("-Instruct"))
