"""A critic: a transformer that says of every state what is still to come, one value for each head."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from paretune.elsewhere import PreTrainedModel
from paretune.errors import WiringError
from paretune.models.adapt import Lora, add_lora, bare
from paretune.models.forward import states


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
    def heads(self) -> int:
        """Values it gives for each state."""
        with bare(self.network) as base:
            return int(base.config.num_labels)

    def forward(self, tokens: Int[Tensor, "B T"], attend: Bool[Tensor, "B T"]) -> Float[Tensor, "B T H"]:
        """At [b, t] the values of the state after tokens[b, t]; float32 heads whatever the body is."""
        found = states(self.network, tokens, attend)
        with bare(self.network) as base:
            values = base.score(found.flat.to(torch.promote_types(found.flat.dtype, torch.float32)))
        assert isinstance(values, Tensor)
        return values[found.place]


def new_critic(policy: nn.Module, heads: int, *, lora: Lora | None = None, seed: int = 0) -> Critic:
    """A critic with a copy of the policy's body and heads that start at 0.

    Args:
        policy: A causal model without an adapter.
        heads: Values for each state: one, or one for each objective that is credited apart.
        lora: Train an adapter of the body and the heads, instead of everything.
        seed: Draws the adapter.

    Raises:
        WiringError: No head, an adapted model, or a family that cannot classify sequences.
    """
    if heads < 1:
        raise WiringError(f"a critic needs at least one head; it got {heads}")
    network = classifier(policy, [f"value {i}" for i in range(heads)])
    return Critic(network if lora is None else add_lora(network, lora, seed, "SEQ_CLS"))


def critic_like(
    network: nn.Module,
    heads: Float[Tensor, "H K"],
    *,
    lora: Lora | None = None,
    seed: int = 0,
) -> Critic:
    """A critic with a copy of a sequence classifier's body, each head a mix of that one's K heads.

    Args:
        network: The classifier, without an adapter; it stays as it is.
        heads: Of each head of the critic, what it takes of each head of the classifier.
        lora: Train an adapter of the body and the heads, instead of everything.
        seed: Draws the adapter.

    Raises:
        WiringError: An adapted model, or a classifier whose head is not understood.

    Source: Ouyang et al. 2022, appendix C (arXiv:2203.02155). Differs: heads for several objectives are
    mixed; a constant is left for the critic to learn, since classifiers have no bias.
    """
    if not isinstance(network, PreTrainedModel):
        raise WiringError("the classifier to copy must be a plain model; fix: merge the adapter first")
    copied: Any = with_score(copy.deepcopy(network))
    weight = copied.score.weight.detach()
    copied.score = nn.Linear(weight.shape[1], len(heads), bias=False)
    copied.score.weight = nn.Parameter(heads.to(weight) @ weight)
    copied.config.num_labels = len(heads)
    copied.config.id2label = {i: f"value {i}" for i in range(len(heads))}
    copied.config.label2id = {name: i for i, name in copied.config.id2label.items()}
    copied.requires_grad_(True)
    return Critic(copied if lora is None else add_lora(copied, lora, seed, "SEQ_CLS"))


def classifier(source: nn.Module, names: Sequence[str]) -> Any:
    """A sequence classifier with a copy of a causal model's body, and a float32 head of 0 for each name.

    Raises:
        WiringError: An adapted model, or a family that cannot classify sequences by the last token.
    """
    from transformers import AutoModelForSequenceClassification

    if not isinstance(source, PreTrainedModel):
        raise WiringError("the body to copy must be a plain model; fix: merge the adapter first")
    config: Any = copy.deepcopy(source.config)
    config.num_labels = len(names)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}
    config.problem_type = "regression"
    try:
        with torch.random.fork_rng(devices=[]):
            network: Any = AutoModelForSequenceClassification.from_config(config, dtype=source.dtype)
    except ValueError as error:
        raise WiringError(f"models of type {config.model_type} cannot classify sequences") from error
    with_score(network).base_model.load_state_dict(source.base_model.state_dict())
    nn.init.zeros_(network.score.weight)
    network.score.float()
    return network.eval().to(source.device)


def with_score(network: Any) -> Any:
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
