"""Sizes of a model from its configuration alone: parameters, operations and cache, without weights."""

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from paretune.core.errors import ParetuneError
from paretune.core.types import PreTrainedModel
from paretune.data.prompt_formats import PromptFormat
from paretune.models.flops import ModelFlops
from paretune.models.load import load_model_config
from paretune.models.lora import TaskType, shared_network
from paretune.worlds import get_world

LORA_MODULES_PER_LAYER = 7
"""Linear layers of a decoder layer that an adapter adds to."""


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """What time and memory depend on."""

    num_params: int
    num_trainable: int
    width: int
    ffn_width: int
    num_layers: int
    vocab_size: int
    kv_numbers_per_token: int
    """Numbers in the key-value cache per token, over all layers."""
    flops: ModelFlops
    is_causal: bool = True
    """Each token attends to those before it alone, so that rows can share their prompt."""

    def with_lora(self, rank: int | None) -> "ModelSize":
        """The model with all linear layers frozen under an adapter; None: all are trained."""
        body = self.flops.trainable_params + self.flops.frozen_params
        if rank is None:
            flops = replace(self.flops, trainable_params=body, frozen_params=0, head_trainable=True)
            return replace(self, num_trainable=self.num_params, flops=flops)
        adapter = rank * self.num_layers * LORA_MODULES_PER_LAYER * 2 * self.width
        flops = replace(self.flops, trainable_params=adapter, frozen_params=body, head_trainable=False)
        return replace(self, num_trainable=adapter, flops=flops)

    def as_classifier(self) -> "ModelSize":
        """The model with a score head, whose cost is nothing."""
        return replace(self, flops=replace(self.flops, head_params=0))


def world_model_size(prompt_format: PromptFormat = "") -> ModelSize:
    """Size of the built-in world's policy; does not load transformers."""
    shape = get_world().policy_shape(prompt_format)
    width, ffn, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    body = layers * (4 * width**2 + 3 * width * ffn)
    head = shape["vocab_size"] * width
    return ModelSize(
        num_params=body + head,
        num_trainable=body + head,
        width=width,
        ffn_width=ffn,
        num_layers=layers,
        vocab_size=shape["vocab_size"],
        kv_numbers_per_token=2 * layers * width,
        flops=ModelFlops(
            trainable_params=body,
            frozen_params=0,
            attention_width=width,
            layers_by_window={None: layers},
            head_params=head,
            head_trainable=True,
        ),
    )


def folder_model_size(path: str, revision: str | None, task: TaskType = "CAUSAL_LM") -> ModelSize | None:
    """Size of a pretrained model; None if its family is not one that is counted.

    Args:
        path: Folder or hub name.
        revision: Revision on the hub.
        task: CAUSAL_LM: the language model; SEQ_CLS: the sequence classifier, encoders included.
    """
    try:
        config = load_model_config(path, revision=revision)
        model = shared_network(config, task)
        flops = ModelFlops.from_model(model)
        if flops is None and task == "SEQ_CLS":
            return replace(_size_of(model, config, _encoder_flops(model)), is_causal=False)
        return None if flops is None else _size_of(model, config, flops)
    except (ParetuneError, ValueError, AttributeError):  # other families name their sizes otherwise
        return None


def _encoder_flops(model: PreTrainedModel) -> ModelFlops:
    """Operations of an encoder, in which every token attends to all others."""
    config = model.config
    body = sum(m.weight.numel() for m in model.base_model.modules() if isinstance(m, nn.Linear))
    return ModelFlops(
        trainable_params=body,
        frozen_params=0,
        attention_width=2 * config.hidden_size,  # twice the pairs of causal attention
        layers_by_window={None: config.num_hidden_layers},
        head_params=0,
        head_trainable=True,
    )


def _size_of(model: PreTrainedModel, config: Any, flops: ModelFlops) -> ModelSize:
    num_params = sum(parameter.numel() for parameter in model.parameters())
    num_layers = sum(flops.layers_by_window.values())
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return ModelSize(
        num_params=num_params,
        num_trainable=num_params,
        width=config.hidden_size,
        ffn_width=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        num_layers=num_layers,
        vocab_size=config.vocab_size,
        kv_numbers_per_token=2 * num_layers * flops.attention_width * kv_heads // heads,
        flops=flops,
    )
