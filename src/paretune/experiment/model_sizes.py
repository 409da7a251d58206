"""Sizes of the models that a recipe names: of a folder, of a hub name, or of the built-in world."""

from paretune.core.errors import ParetuneError
from paretune.data.prompt_formats import PromptFormat
from paretune.models.flops import ModelFlops
from paretune.models.load import load_model_config
from paretune.models.lora import TaskType
from paretune.models.model_size import ModelSize, config_model_size
from paretune.worlds import get_world


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
        gated=True,
        num_layers=layers,
        vocab_size=shape["vocab_size"],
        kv_numbers_per_token=2 * layers * width,
        adapter_params_per_rank=layers * (8 * width + 3 * (width + ffn)),
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
        return config_model_size(load_model_config(path, revision=revision), task)
    except (ParetuneError, ValueError, AttributeError):  # other families name their sizes otherwise
        return None
