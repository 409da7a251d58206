"""What a reward model was fitted on, in hashes few enough to be kept inside it.

They answer one question later: were the training reward and the judge of an evaluation fitted on common data?

Reward models made from language models, written to folders and read back.

On disk a reward model is an ordinary sequence classifier: `AutoModelForSequenceClassification` loads it, and
`id2label` names the objectives. Its heads are written at the size of the labels, so that differences of
logits are differences of labels. The heads have no bias in transformers, so that the rest stands in the
config's `paretune` entry: label = logit + offset. `scale` there is what the heads were multiplied by.
"""

import copy
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from paretune.core.errors import DataError, WiringError
from paretune.core.types import PreTrainedTokenizerBase
from paretune.data.chat import template_hash
from paretune.data.records import PreferencePair, Rating
from paretune.models.critic import classifier_from_lm, require_score_head
from paretune.models.load import (
    ModelSpec,
    PolicyModel,
    load_model_config,
    load_policy,
    load_pretrained,
    load_tokenizer,
    resolve_device,
    save_model,
)
from paretune.models.lora import LoraSpec, add_lora, unwrap_model_for_forward
from paretune.reward.model import RewardModel

MAX_RECORD_HASHES = 2048
"""Hashes kept of a model's records: the smallest ones.

Of two sets of records each side keeps those that hash lowest, so that common records are kept on both sides
or on neither. Up to so many records nothing is missed; of more, a common part far below one in `KEPT` may be.
"""
RECORD_HASH_DIGITS = 12
"""Of a record's hash; two different records among thousands do not meet by chance."""


def data_provenance(
    records: Iterable[Rating | PreferencePair], file_hashes: Iterable[str] = ()
) -> dict[str, list[str]]:
    """Hashes of the texts that were labelled, whatever the labels, and of the files they were read from.

    The same response under another rater counts as the same record: errors that hang on a text are then
    common to both models.

    Args:
        records: Those of the fit.
        file_hashes: Their SHA-256.
    """
    found = {_record_hash(record, text) for record in records for text in _responses(record)}
    return {"files": sorted(set(file_hashes)), "records": sorted(found)[:MAX_RECORD_HASHES]}


def provenance_hashes(provenance: Mapping[str, Sequence[str]]) -> frozenset[str] | None:
    """A stored lineage as one set, or None where nobody knows what the model was fitted on."""
    if not provenance.get("records"):
        return None
    return frozenset(f"{kind} {name}" for kind in ("files", "records") for name in provenance.get(kind, ()))


def _responses(record: Rating | PreferencePair) -> tuple[str, ...]:
    return (record.chosen, record.rejected) if isinstance(record, PreferencePair) else (record.response,)


def _record_hash(record: Rating | PreferencePair, response: str) -> str:
    """Of the conversation and the response; white space does not count."""
    turns = [part for message in record.prompt.messages for part in (message.role, message.content)]
    whole = "\x00".join(" ".join(part.split()) for part in (*turns, response))
    return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()[:RECORD_HASH_DIGITS]


SCHEMA = "paretune/reward/2"
"""Of the config's `paretune` entry."""
PAD_TOKEN = "<|padding|>"
"""Added to a tokenizer whose only padding token also ends responses."""


@dataclass(frozen=True, kw_only=True)
class RewardModelSpec:
    """What a reward model is made of before it is fitted."""

    path: str
    """Folder or hub name of a causal language model, whose body is taken over."""
    objectives: tuple[str, ...]
    dtype: Literal["float32", "bfloat16"] = "float32"
    lora: LoraSpec | None = None
    revision: str | None = None
    device: str = "cpu"


def new_reward_model(
    spec: RewardModelSpec, scale: Sequence[float], offset: Sequence[float], *, seed: int = 0
) -> RewardModel:
    """A reward model with the body of a stored causal language model and heads that start at 0.

    Raises:
        DataError: The model folder is missing or damaged.
        WiringError: No objective, or the model's family cannot classify sequences.
    """
    language = load_policy(
        ModelSpec(path=spec.path, dtype=spec.dtype, revision=spec.revision, device=spec.device)
    )
    return reward_model_from_lm(language, spec.objectives, scale, offset, lora=spec.lora, seed=seed)


def reward_model_from_lm(
    lm: PolicyModel,
    objectives: Sequence[str],
    scale: Sequence[float],
    offset: Sequence[float],
    *,
    lora: LoraSpec | None = None,
    seed: int = 0,
) -> RewardModel:
    """A new reward model whose body is a copy of this language model's, and whose heads are 0.

    Heads of 0 predict the mean label everywhere, so that a fit starts from the constant baseline.

    Args:
        lm: A causal model without an adapter, and its tokenizer.
        objectives: Names of the heads.
        scale: Of each head, from logits to label units.
        offset: Of each head, in label units.
        lora: Train an adapter of the body and the heads, instead of everything.
        seed: Draws the adapter.

    Raises:
        WiringError: No objective, an adapted model, or a family that cannot classify sequences.
    """
    if not objectives or len(set(objectives)) < len(objectives):
        raise WiringError(
            f"a reward model needs one or more different objectives; it got {tuple(objectives)}"
        )
    network = classifier_from_lm(lm.model, objectives)
    tokenizer, stop = copy.deepcopy(lm.tokenizer), lm.eos_ids[0]
    _ensure_pad_token(network, tokenizer, stop)
    whole: nn.Module = network if lora is None else add_lora(network, lora, seed, "SEQ_CLS")
    return RewardModel(whole, tokenizer, eos_id=stop, scale=scale, offset=offset)


def _ensure_pad_token(network: Any, tokenizer: PreTrainedTokenizerBase, eos_id: int) -> None:
    """Make sure that padding never looks like the end of a response, for those who load the model plainly.

    transformers reads a classifier at the last token that is not the padding token.
    """
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == eos_id:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    known = network.get_input_embeddings().num_embeddings
    if len(tokenizer) > known:
        device = network.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            network.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():
            network.get_input_embeddings().weight[known:] = 0
    network.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def save_reward_model(model: RewardModel, folder: Path) -> None:
    """Write the model as a sequence classifier that other tools load; an adapter is merged into it."""
    with unwrap_model_for_forward(model.network) as base:
        base.config.paretune = {
            "schema": SCHEMA,
            "scale": list(model.scale),
            "offset": list(model.offset),
            "stop": model.eos_id,
            "template": template_hash(model.tokenizer),
            "data": model.provenance,
        }
    with _heads_in_label_units(model):
        save_model(model.network, model.tokenizer, folder)


@contextmanager
def _heads_in_label_units(model: RewardModel) -> Iterator[None]:
    """The heads times their scales, and afterwards as they were to the last bit."""
    with unwrap_model_for_forward(model.network) as base:
        weights = list(base.score.parameters())
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight in weights:
            _scale_heads(weight, model.scale)
        try:
            yield
        finally:
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)


def _scale_heads(weight: Tensor, factors: Sequence[float]) -> None:
    """Each head's row times its factor, in place; [K, H], or [K] of a classifier that has a bias."""
    weight.mul_(weight.new_tensor(factors).reshape(-1, *[1] * (weight.ndim - 1)))


def load_reward_model(
    path: str,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    revision: str | None = None,
    device: str = "cpu",
) -> RewardModel:
    """A stored reward model: one of ours, or any classifier that reads a causal model's last token.

    A foreign one has no scale: its logits are its scores.

    Raises:
        DataError: Nothing there, damaged files, or a chat template other than the one it was fitted with.
        WiringError: A family of classifiers that is not understood.
        ResourceError: The machine lacks the device.
    """
    from transformers import AutoModelForSequenceClassification

    place = resolve_device(device)
    tokenizer = load_tokenizer(path, revision=revision)
    precision = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    network: Any = load_pretrained(
        AutoModelForSequenceClassification, path, dtype=precision, revision=revision
    )
    require_score_head(network).score.float()
    network.to(place)
    count, stop = network.config.num_labels, tokenizer.eos_token_id
    ours = getattr(network.config, "paretune", None) or {}
    if ours:
        _check_metadata(path, ours, tokenizer)
    if "stop" not in ours and stop is None:
        raise DataError(f"{path}: no token ends a response; fix: set eos_token in tokenizer_config.json")
    scale = ours.get("scale", [1.0] * count)
    with torch.no_grad():
        for weight in network.score.parameters():
            _scale_heads(weight, [1 / factor for factor in scale])
    return RewardModel(
        network,
        tokenizer,
        eos_id=ours.get("stop", stop),
        scale=scale,
        offset=ours.get("offset", [0.0] * count),
        provenance=ours.get("data", {}),
    )


def _check_metadata(path: str, metadata: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    if metadata["schema"] != SCHEMA:
        raise DataError(
            f"{path}: config.json: paretune.schema is {metadata['schema']}, and {SCHEMA} is read; "
            "fix: fit it again"
        )
    if metadata["template"] != template_hash(tokenizer):
        raise DataError(
            f"{path}: its chat template is not the one it was fitted with, so its scores would mean nothing; "
            "fix: put the old tokenizer back, or fit it again"
        )


def read_objectives(path: str, *, revision: str | None = None) -> tuple[str, ...]:
    """The heads of a stored reward model, without reading its weights.

    Raises:
        DataError: There is no configuration, or it cannot be read.
    """
    config = load_model_config(path, revision=revision)
    return tuple(config.id2label[i] for i in range(config.num_labels))
