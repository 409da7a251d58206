"""A critic: a transformer that says of every state what is still to come, one value for each head."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from paretune.core.errors import WiringError
from paretune.core.types import PreTrainedModel
from paretune.models.forward.logprobs import flat_hidden_states
from paretune.models.lora import LoraSpec, add_lora, unwrap_model_for_forward


class Critic(nn.Module):
    """A sequence classifier read at every token. `models.forward.aligned_values` is how it is asked.

    On disk it is what `AutoModelForSequenceClassification` loads, so that a critic can start from a reward
    model's network, and be one.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.eval()

    @property
    def num_heads(self) -> int:
        """Values it gives for each state."""
        with unwrap_model_for_forward(self.network) as base:
            return int(base.config.num_labels)

    def forward(
        self, input_ids: Int[Tensor, "B T"], attention_mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T H"]:
        """At [b, t] the values of the state after tokens[b, t]; float32 heads whatever the body is."""
        found = flat_hidden_states(self.network, input_ids, attention_mask)
        with unwrap_model_for_forward(self.network) as base:
            values = base.score(found.flat.to(torch.promote_types(found.flat.dtype, torch.float32)))
        assert isinstance(values, Tensor)
        return values[found.index]


def critic_from_policy(
    policy: nn.Module, num_heads: int, *, lora: LoraSpec | None = None, seed: int = 0
) -> Critic:
    """A critic with a copy of the policy's body and heads that start at 0.

    Args:
        policy: A causal model without an adapter.
        num_heads: Values for each state: one, or one for each objective that is credited apart.
        lora: Train an adapter of the body and the heads, instead of everything.
        seed: Draws the adapter.

    Raises:
        WiringError: No head, an adapted model, or a family that cannot classify sequences.
    """
    if num_heads < 1:
        raise WiringError(f"a critic needs at least one head; it got {num_heads}")
    network = classifier_from_lm(policy, [f"value {i}" for i in range(num_heads)])
    return Critic(network if lora is None else add_lora(network, lora, seed, "SEQ_CLS"))


def critic_from_classifier(
    network: nn.Module,
    head_weights: Float[Tensor, "H K"],
    *,
    lora: LoraSpec | None = None,
    seed: int = 0,
) -> Critic:
    """A critic with a copy of a sequence classifier's body, each head a mix of that one's K heads.

    Args:
        network: The classifier, without an adapter; it stays as it is.
        head_weights: Of each head of the critic, what it takes of each head of the classifier.
        lora: Train an adapter of the body and the heads, instead of everything.
        seed: Draws the adapter.

    Raises:
        WiringError: An adapted model, or a classifier whose head is not understood.

    Source: Ouyang et al. 2022, appendix C (arXiv:2203.02155). Differs: heads for several objectives are
    mixed; a constant is left for the critic to learn, since classifiers have no bias.
    """
    if not isinstance(network, PreTrainedModel):
        raise WiringError("the classifier to copy must be a plain model; fix: merge the adapter first")
    copied: Any = require_score_head(copy.deepcopy(network))
    weight = copied.score.weight.detach()
    copied.score = nn.Linear(weight.shape[1], len(head_weights), bias=False)
    copied.score.weight = nn.Parameter(head_weights.to(weight) @ weight)
    copied.config.num_labels = len(head_weights)
    copied.config.id2label = {i: f"value {i}" for i in range(len(head_weights))}
    copied.config.label2id = {name: i for i, name in copied.config.id2label.items()}
    copied.requires_grad_(True)
    return Critic(copied if lora is None else add_lora(copied, lora, seed, "SEQ_CLS"))


def classifier_from_lm(language_model: nn.Module, label_names: Sequence[str]) -> Any:
    """A sequence classifier with a copy of a causal model's body, and a float32 head of 0 for each name.

    Raises:
        WiringError: An adapted model, or a family that cannot classify sequences by the last token.
    """
    from transformers import AutoModelForSequenceClassification

    if not isinstance(language_model, PreTrainedModel):
        raise WiringError("the body to copy must be a plain model; fix: merge the adapter first")
    config: Any = copy.deepcopy(language_model.config)
    config.num_labels = len(label_names)
    config.id2label = dict(enumerate(label_names))
    config.label2id = {name: i for i, name in enumerate(label_names)}
    config.problem_type = "regression"
    try:
        with torch.random.fork_rng(devices=[]):
            network: Any = AutoModelForSequenceClassification.from_config(config, dtype=language_model.dtype)
    except ValueError as error:
        raise WiringError(f"models of type {config.model_type} cannot classify sequences") from error
    require_score_head(network).base_model.load_state_dict(language_model.base_model.state_dict())
    nn.init.zeros_(network.score.weight)
    network.score.float()
    return network.eval().to(language_model.device)


def require_score_head(network: Any) -> Any:
    """The network, if its head reads a causal model's hidden states.

    Raises:
        WiringError: It does not.
    """
    if not isinstance(getattr(network, "score", None), nn.Linear):
        family = network.config.model_type
        raise WiringError(
            f"classifiers of type {family} do not read a causal model's last token; fix: use another"
        )
    return network
