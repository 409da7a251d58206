"""Sizes of a model from its configuration alone: parameters, operations and cache, without weights."""

from dataclasses import dataclass, replace
from typing import Any

from paretune.core.types import PreTrainedModel
from paretune.models.flops import ModelFlops
from paretune.models.lora import TaskType, shared_network


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """What time and memory depend on."""

    num_params: int
    num_trainable: int
    width: int
    ffn_width: int
    gated: bool
    """The feed-forward layer is gate, up and down, not up and down only."""
    num_layers: int
    vocab_size: int
    kv_numbers_per_token: int
    """Numbers in the key-value cache per token, over all layers."""
    adapter_params_per_rank: int
    """Weights of a LoRA adapter of rank 1 on all linear layers of the body."""
    flops: ModelFlops
    is_causal: bool = True
    """Each token attends to those before it alone, so that rows can share their prompt."""

    @property
    def kv_width(self) -> int:
        """Key heads times head dimension."""
        return self.kv_numbers_per_token // (2 * self.num_layers)

    @property
    def largest_unit(self) -> int:
        """Weights of the largest part that is gathered at one time: a layer, or the head."""
        body = self.flops.trainable_params + self.flops.frozen_params
        return max(body // self.num_layers, self.vocab_size * self.width)

    def with_lora(self, rank: int | None) -> "ModelSize":
        """The model with all linear layers frozen under an adapter; None: all are trained."""
        body = self.flops.trainable_params + self.flops.frozen_params
        if rank is None:
            flops = replace(self.flops, trainable_params=body, frozen_params=0, head_trainable=True)
            return replace(self, num_trainable=self.num_params, flops=flops)
        adapter = rank * self.adapter_params_per_rank
        flops = replace(self.flops, trainable_params=adapter, frozen_params=body, head_trainable=False)
        return replace(self, num_trainable=adapter, flops=flops)

    def as_classifier(self) -> "ModelSize":
        """The model with a score head, whose cost is nothing."""
        return replace(self, flops=replace(self.flops, head_params=0))


def config_model_size(config: Any, task: TaskType = "CAUSAL_LM") -> ModelSize | None:
    """Size of the model of a configuration; None if its family is not one that is counted.

    Args:
        config: A configuration of transformers.
        task: CAUSAL_LM: the language model; SEQ_CLS: the sequence classifier, encoders included.

    Raises:
        ValueError: transformers has no model of this family for the task.
        AttributeError: The family names its sizes otherwise.
    """
    model = shared_network(config, task)
    flops = ModelFlops.from_model(model)
    if flops is None and task == "SEQ_CLS":
        return replace(_size_of(model, config, _encoder_flops(model)), is_causal=False)
    return None if flops is None else _size_of(model, config, flops)


def _encoder_flops(model: PreTrainedModel) -> ModelFlops:
    """Operations of an encoder, in which every token attends to all others."""
    from torch import nn

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
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    num_params = sum(parameter.numel() for parameter in model.parameters())
    num_layers = sum(flops.layers_by_window.values())
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    kv_width = flops.attention_width * kv_heads // heads
    width = config.hidden_size
    ffn_width = getattr(config, "intermediate_size", None) or 4 * width
    layers = [m for m in model.base_model.modules() if isinstance(m, nn.Linear | Conv1D)]
    attention = 2 * width * (flops.attention_width + kv_width)
    ffn = (flops.trainable_params + flops.frozen_params) / num_layers - attention
    return ModelSize(
        num_params=num_params,
        num_trainable=num_params,
        width=width,
        ffn_width=ffn_width,
        gated=ffn > 2.5 * width * ffn_width,
        num_layers=num_layers,
        vocab_size=config.vocab_size,
        kv_numbers_per_token=2 * num_layers * kv_width,
        adapter_params_per_rank=sum(sum(layer.weight.shape) for layer in layers),
        flops=flops,
    )
