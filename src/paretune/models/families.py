"""What a model family supports, decided from its configuration alone, before any weights are loaded."""

import inspect
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from paretune.models.forward.attention import config_supports_custom_attention

Decoding = Literal["continuous", "static", "equal_length", "full_pass", "refused"]
"""How responses are sampled.

`continuous`: continuous batching over our own KV cache. `static`: static batches over transformers' KV cache,
with padded prompts. `equal_length`: the same with prompts of equal length in a batch, since a recurrent state
runs on over padding. `full_pass`: every step reads whole rows again, without a cache. `refused`: not at all.
"""

CACHE_ARGUMENTS = ("past_key_values", "cache_params")
"""Names under which the models of transformers take their cache."""


@dataclass(frozen=True, slots=True)
class ModelSupport:
    """What works with the models of a configuration."""

    decoding: Decoding
    packing: bool
    """Forward passes read rows without padding and shared prompts once; else rows padded on the right."""
    reward_head: bool
    """transformers has a sequence classifier, as reward models and critics need it."""
    reason: str
    """Why it is so, as one line; with a fix if the family is refused."""
    cache_argument: str | None = None
    """Name of the argument that takes transformers' cache; None: no such cache is used."""

    @property
    def is_supported(self) -> bool:
        """The family can be sampled and trained."""
        return self.decoding != "refused"


def model_support(config: Any) -> ModelSupport:
    """What works with models of this configuration.

    Decided by properties: the attention that the family uses, the layers of its cache, the arguments of its
    forward pass. The sampler is tried nevertheless when a policy is loaded (`rollout.probe`).

    Args:
        config: A configuration of transformers.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    reward_head = type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    family = config.model_type
    if getattr(config, "is_encoder_decoder", False) or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        reason = f"transformers has no causal language model for {family}; fix: use a decoder-only model"
        return ModelSupport("refused", False, reward_head, reason)
    rescale_every = getattr(config, "rescale_every", None) or 0
    if 0 < rescale_every < config.num_hidden_layers:
        # RWKV halves weights in place at the first forward pass, and they would be saved so.
        reason = (
            f"{family} models with more than {rescale_every} layers change their own weights when they are "
            'used; fix: write "rescale_every": 0 in the config.json of the model'
        )
        return ModelSupport("refused", False, reward_head, reason)
    if config_supports_custom_attention(config):
        return ModelSupport("continuous", True, reward_head, "attention over keys and values")
    decoding, cache_argument, reason = _decoding_without_custom_attention(config)
    return ModelSupport(decoding, False, reward_head, reason, cache_argument)


def _decoding_without_custom_attention(config: Any) -> tuple[Decoding, str | None, str]:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    causal_model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    cache_argument = _cache_argument(causal_model)
    if cache_argument is None:
        return "full_pass", None, "the model takes no cache of transformers"
    if hasattr(causal_model, "_setup_cache") or _has_internal_state(causal_model):
        return "full_pass", None, "layers keep their state inside the model"
    layer_kinds = _cache_layer_kinds(config)
    if layer_kinds is None:
        return "full_pass", None, "layers of a kind that transformers' cache does not know"
    if "recurrent" in layer_kinds:
        return "equal_length", cache_argument, "layers carry a recurrent state, which runs on over padding"
    if getattr(causal_model, "_is_stateful", False):
        return "full_pass", None, "layers carry a state that transformers' cache does not hold"
    return "static", cache_argument, "keys and values, but attention or positions of another kind"


def _cache_layer_kinds(config: Any) -> set[str] | None:
    """The kinds of layers that transformers' cache would have; None if it has no class for one of them."""
    from transformers import DynamicCache
    from transformers.cache_utils import DummyLayer, DynamicLayer, LinearAttentionCacheLayerMixin

    try:
        layers = DynamicCache(config=config).layers
    except (KeyError, AttributeError, TypeError):
        return None
    kinds = set()
    for layer in layers:
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            kinds.add("recurrent")
        elif isinstance(layer, DynamicLayer | DummyLayer):
            kinds.add("keys and values")
        else:
            return None
    return kinds


@lru_cache
def _cache_argument(causal_model: type) -> str | None:
    """The name of the cache among the arguments of the forward pass; None: it takes none."""
    parameters = inspect.signature(causal_model.forward).parameters  # type: ignore[attr-defined]
    return next((name for name in CACHE_ARGUMENTS if name in parameters), None)


@lru_cache
def _has_internal_state(causal_model: type) -> bool:
    """The model sets up states of its layers by itself, which no cache that is passed in replaces."""
    module = inspect.getmodule(causal_model)
    return any(
        hasattr(value, "_setup_cache")
        for value in vars(module).values()
        if inspect.isclass(value) and value.__module__ == causal_model.__module__
    )
