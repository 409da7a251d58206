"""The critic (value head) of PPO: a transformer that estimates state values, one per head."""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from paretune.core.errors import WiringError
from paretune.core.types import PreTrainedModel
from paretune.models.dequantize import QUANTIZATION_ATTRIBUTES, is_quantized
from paretune.models.forward.logprobs import flat_hidden_states
from paretune.models.lora import LoraSpec, add_lora, unwrap_model_for_forward


class Critic(nn.Module):
    """A sequence classifier that is evaluated at every token; use it through `compute_values`.

    On disk it is a model that `AutoModelForSequenceClassification` loads, so a critic can be initialized from
    a reward model's network and be saved as one.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        # No dropout, so that values computed before and during an update are the same function.
        self.eval()

    @property
    def num_heads(self) -> int:
        """Number of values per state."""
        with unwrap_model_for_forward(self.network) as base:
            return int(base.config.num_labels)

    def forward(
        self, input_ids: Int[Tensor, "B T"], attention_mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T H"]:
        """Values of the state after input_ids[b, t] at [b, t]; the heads are float32 for any body dtype."""
        hidden = flat_hidden_states(self.network, input_ids, attention_mask)
        with unwrap_model_for_forward(self.network) as base:
            values = base.score(hidden.flat.to(torch.promote_types(hidden.flat.dtype, torch.float32)))
        assert isinstance(values, Tensor)
        return values[hidden.index]


def critic_from_policy(
    policy: nn.Module, num_heads: int, *, lora: LoraSpec | None = None, seed: int = 0
) -> Critic:
    """A critic with a copy of the policy's body and heads initialized to 0.

    Args:
        policy: A causal model without an adapter.
        num_heads: Values per state: one, or one per objective with separate credit.
        lora: Train an adapter of the body and the heads instead of all weights.
        seed: Seed of the adapter's initial weights.

    Raises:
        WiringError: No heads, a model with an adapter, or a family without sequence classification.
    """
    if num_heads < 1:
        raise WiringError(f"a critic needs at least one head, got {num_heads}; fix: num_heads=1")
    network = classifier_from_lm(policy, [f"value {i}" for i in range(num_heads)])
    return Critic(network if lora is None else add_lora(network, lora, seed, "SEQ_CLS"))


def critic_from_classifier(
    network: nn.Module,
    head_weights: Float[Tensor, "H K"],
    *,
    lora: LoraSpec | None = None,
    seed: int = 0,
) -> Critic:
    """A critic with a copy of a sequence classifier's body; each head is a linear mix of its K heads.

    Args:
        network: The classifier, without an adapter; it is not modified.
        head_weights: Weight of each classifier head (column) in each critic head (row).
        lora: Train an adapter of the body and the heads instead of all weights.
        seed: Seed of the adapter's initial weights.

    Raises:
        WiringError: A model with an adapter, or a classifier with an unsupported head.

    Source: Ouyang et al. 2022, appendix C (arXiv:2203.02155). Differs: heads of several objectives are mixed;
    the critic has to learn a constant offset, since classifiers have no bias.
    """
    if not isinstance(network, PreTrainedModel):
        raise WiringError("the classifier to copy has an adapter; fix: merge the adapter first")
    copied: Any = require_score_head(copy.deepcopy(network))
    weight = copied.score.weight.detach()
    copied.score = nn.Linear(weight.shape[1], len(head_weights), bias=False)
    copied.score.weight = nn.Parameter(head_weights.to(weight) @ weight)
    copied.config.num_labels = len(head_weights)
    copied.config.id2label = {i: f"value {i}" for i in range(len(head_weights))}
    copied.config.label2id = {name: i for i, name in copied.config.id2label.items()}
    if lora is None:  # with an adapter the body stays frozen; integer weights could not require gradients
        copied.requires_grad_(True)
    return Critic(copied if lora is None else add_lora(copied, lora, seed, "SEQ_CLS"))


def classifier_from_lm(language_model: nn.Module, label_names: Sequence[str]) -> Any:
    """A sequence classifier with a copy of a causal model's body and a zero float32 head per label.

    Raises:
        WiringError: A model with an adapter, or a family without classification of the last token.
    """
    from transformers import AutoModelForSequenceClassification

    if not isinstance(language_model, PreTrainedModel):
        raise WiringError("the model to copy has an adapter; fix: merge the adapter first")
    config: Any = copy.deepcopy(language_model.config)
    config.num_labels = len(label_names)
    config.id2label = dict(enumerate(label_names))
    config.label2id = {name: i for i, name in enumerate(label_names)}
    config.problem_type = "regression"
    quantized = is_quantized(language_model)
    try:
        # The random initialization is overwritten below; it must not advance the global generator.
        with torch.random.fork_rng(devices=[]), torch.device("meta") if quantized else nullcontext():
            network: Any = AutoModelForSequenceClassification.from_config(config, dtype=language_model.dtype)
    except ValueError as error:
        raise WiringError(
            f"transformers has no sequence classifier for {config.model_type} models; fix: use another family"
        ) from error
    if quantized:
        _copy_quantized_body(require_score_head(network), language_model)
    else:
        require_score_head(network).base_model.load_state_dict(language_model.base_model.state_dict())
    nn.init.zeros_(network.score.weight)
    network.score.float()
    return network.eval() if quantized else network.eval().to(language_model.device)


def _copy_quantized_body(network: Any, language_model: Any) -> None:
    """Give a classifier on the meta device a copy of a quantized body, whose packed weights fit no other."""
    setattr(network, network.base_model_prefix, copy.deepcopy(language_model.base_model))
    network.score.to_empty(device=language_model.device)
    # peft and transformers tell by these attributes that the linear layers are quantized, and how.
    for name in QUANTIZATION_ATTRIBUTES:
        if hasattr(language_model, name):
            setattr(network, name, getattr(language_model, name))


def require_score_head(network: Any) -> Any:
    """Return the network if its head `score` is a linear layer over a causal model's hidden states.

    Raises:
        WiringError: It is not.
    """
    if not isinstance(getattr(network, "score", None), nn.Linear):
        raise WiringError(
            f"sequence classifiers of {network.config.model_type} models have no linear head `score` on a "
            "causal model's hidden states; fix: use another family"
        )
    return network
