"""Reward models on disk: creation from a language model, saving, loading, provenance of the training data.

On disk a reward model is an ordinary sequence classifier: `AutoModelForSequenceClassification` loads it, and
`id2label` holds the objectives. Its heads are saved in label units, so that differences of logits are
differences of labels. The heads of transformers have no bias, so the offset is in the entry `paretune` of
config.json: label = logit + offset. `scale` there is the factor that the heads were multiplied by. `heads`
there says how the logits of the other heads, such as ordinal ones, become scores.

`data_provenance` hashes the training data into the checkpoint, few enough hashes to keep, so that an
evaluation can tell whether the training reward and a judge were fitted on common data.
"""

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from paretune.core.errors import DataError, WiringError, first_line
from paretune.core.types import PreTrainedTokenizerBase
from paretune.data.chat import template_hash
from paretune.data.records import PreferencePair, Rating
from paretune.models.critic import classifier_from_lm, require_score_head
from paretune.models.dequantize import dense_linear, is_quantized, is_quantized_linear
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
from paretune.reward.heads import HeadKind
from paretune.reward.model import RewardModel
from paretune.reward.ordinal import Ordinal

SAVED_KINDS: Mapping[str, Callable[[Mapping[str, Any]], HeadKind]] = {"ordinal": Ordinal.from_metadata}
"""Kind -> constructor from its entry in config.json, of the kinds that have one."""
SCHEMA = "paretune/reward/3"
"""Format identifier of the entry `paretune` of config.json."""
PAD_TOKEN = "<|padding|>"
"""Added to a tokenizer whose padding token is missing or is the EOS token."""
MAX_RECORD_HASHES = 2048
"""Record hashes kept per model: the smallest ones (min-hash).

Two models keep their lowest hashes each, so a common record is kept by both or by neither. Up to this number
of records nothing is missed; of more, a common fraction far below 1 / `MAX_RECORD_HASHES` may be.
"""
RECORD_HASH_DIGITS = 12
"""Hexadecimal digits per record hash: 48 bits, so that thousands of records do not collide."""


def data_provenance(
    records: Iterable[Rating | PreferencePair], file_hashes: Iterable[str] = ()
) -> dict[str, list[str]]:
    """Hashes of the labelled texts, without their labels, and of the files they were read from.

    The same response with the label of another rater counts as the same record: both models then share the
    errors that depend on the text.

    Args:
        records: Training records.
        file_hashes: SHA-256 of the files.
    """
    hashes = {_record_hash(record, text) for record in records for text in _responses(record)}
    return {"file_hashes": sorted(set(file_hashes)), "record_hashes": sorted(hashes)[:MAX_RECORD_HASHES]}


def provenance_hashes(provenance: Mapping[str, Sequence[str]]) -> frozenset[str] | None:
    """All hashes of a stored provenance as one set; None if the training data is unknown."""
    if not provenance.get("record_hashes"):
        return None
    return frozenset(
        f"{key} {value}" for key in ("file_hashes", "record_hashes") for value in provenance.get(key, ())
    )


def _responses(record: Rating | PreferencePair) -> tuple[str, ...]:
    return (record.chosen, record.rejected) if isinstance(record, PreferencePair) else (record.response,)


def _record_hash(record: Rating | PreferencePair, response: str) -> str:
    """Hash of the conversation and the response, ignoring white space."""
    turns = [part for m in record.prompt.messages for part in (m.role, m.content, *chain(*m.extra))]
    text = "\x00".join(" ".join(part.split()) for part in (*turns, response))
    # Sampled text may hold lone surrogates, which strict UTF-8 refuses.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:RECORD_HASH_DIGITS]


@dataclass(frozen=True, kw_only=True)
class RewardModelSpec:
    """Settings of a new reward model."""

    path: str
    """Folder or hub name of a causal language model, whose body is copied."""
    objectives: tuple[str, ...]
    dtype: Literal["float32", "bfloat16"] = "float32"
    lora: LoraSpec | None = None
    revision: str | None = None
    device: str = "cpu"
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of every rendering of the chat template, if they are not stored with the tokenizer."""


def new_reward_model(
    spec: RewardModelSpec,
    scale: Sequence[float],
    offset: Sequence[float],
    *,
    kinds: Mapping[str, HeadKind] | None = None,
    seed: int = 0,
) -> RewardModel:
    """A reward model with the body of a stored causal language model and zero-initialized heads.

    Args:
        spec: Path, objectives, dtype, adapter and device.
        scale: Per head, from standard units to label units.
        offset: Per head, in label units.
        kinds: Objective -> kind of its head.
        seed: Seed of the adapter's initialization.

    Raises:
        DataError: The model folder is missing or damaged.
        WiringError: No objective, or an architecture without a sequence classifier.
    """
    policy = load_policy(
        ModelSpec(
            path=spec.path,
            dtype=spec.dtype,
            revision=spec.revision,
            device=spec.device,
            chat_template_kwargs=spec.chat_template_kwargs,
        )
    )
    return reward_model_from_lm(
        policy, spec.objectives, scale, offset, kinds=kinds, lora=spec.lora, seed=seed
    )


def reward_model_from_lm(
    lm: PolicyModel,
    objectives: Sequence[str],
    scale: Sequence[float],
    offset: Sequence[float],
    *,
    kinds: Mapping[str, HeadKind] | None = None,
    lora: LoraSpec | None = None,
    seed: int = 0,
) -> RewardModel:
    """A new reward model with a copy of the language model's body and zero-initialized heads.

    Zero heads predict the mean label everywhere, an ordinal one the frequencies of its levels, so that
    training starts from the constant baseline.

    Args:
        lm: A causal model without an adapter, and its tokenizer.
        objectives: Names of the heads.
        scale: Per head, from standard units to label units.
        offset: Per head, in label units.
        kinds: Objective -> kind of its head.
        lora: Train an adapter of the body and the heads, instead of all parameters.
        seed: Seed of the adapter's initialization.

    Raises:
        WiringError: No objective, a model with an adapter, or an architecture without a sequence classifier.
    """
    if not objectives or len(set(objectives)) < len(objectives):
        raise WiringError(
            f"reward model: objectives are {tuple(objectives)}; fix: name one or more different objectives"
        )
    network = classifier_from_lm(lm.model, objectives)
    # A padding token may be added below; the tokenizer of the policy must not change.
    tokenizer, eos_id = copy.deepcopy(lm.tokenizer), lm.eos_ids[0]
    _ensure_pad_token(network, tokenizer, eos_id)
    model: nn.Module = network if lora is None else add_lora(network, lora, seed, "SEQ_CLS")
    return RewardModel(model, tokenizer, eos_id=eos_id, scale=scale, offset=offset, kinds=kinds)


def _ensure_pad_token(network: Any, tokenizer: PreTrainedTokenizerBase, eos_id: int) -> None:
    """Give the tokenizer a padding token other than EOS, and the model an embedding for it.

    transformers reads a classifier at the last token that is not padding: with padding = EOS, one token
    early.
    """
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == eos_id:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    old_size = network.get_input_embeddings().num_embeddings
    if len(tokenizer) > old_size:
        device = network.device
        # Resizing draws the new rows from the global generator, whose state the caller relies on.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            network.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():
            network.get_input_embeddings().weight[old_size:] = 0
    network.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def save_reward_model(model: RewardModel, folder: Path) -> None:
    """Save the model as a sequence classifier that transformers loads; an adapter is merged."""
    with unwrap_model_for_forward(model.network) as base:
        base.config.paretune = {
            "schema": SCHEMA,
            "scale": list(model.scale),
            "offset": list(model.offset),
            **_head_metadata(model),
            "eos_token_id": model.eos_id,
            "chat_template_hash": template_hash(model.tokenizer),
            "provenance": model.provenance,
        }
    with _heads_in_label_units(model):
        save_model(model.network, model.tokenizer, folder)


def _head_metadata(model: RewardModel) -> dict[str, Any]:
    """The entry `heads`, of the heads whose score is not linear in the logit; empty without any."""
    heads = {}
    for k, (name, kind) in enumerate(zip(model.objectives, model.kinds, strict=True)):
        if (metadata := kind.metadata(model.head_parameters(k).detach().cpu())) is not None:
            heads[name] = {"kind": kind.name, **metadata}
    return {"heads": heads} if heads else {}


@contextmanager
def _heads_in_label_units(model: RewardModel) -> Iterator[None]:
    """Multiply the heads by their scales; on exit restore the old weights, bit for bit."""
    with unwrap_model_for_forward(model.network) as base:
        weights = list(base.score.parameters())
    # Dividing by the scale again would not restore the last bit.
    originals = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight in weights:
            _scale_heads(weight, model.scale)
        try:
            yield
        finally:
            for weight, original in zip(weights, originals, strict=True):
                weight.copy_(original)


def _scale_heads(weight: Tensor, factors: Sequence[float]) -> None:
    """Multiply each head by its factor, in place; [K, H] weights, or the [K] bias of a foreign classifier."""
    weight.mul_(weight.new_tensor(factors).reshape(-1, *[1] * (weight.ndim - 1)))


@torch.no_grad()
def _scale_all(network: Any, factors: Sequence[float]) -> None:
    for weight in network.score.parameters():
        _scale_heads(weight, factors)


def load_reward_model(
    path: str,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    revision: str | None = None,
    device: str = "cpu",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    kinds: Mapping[str, Callable[[Mapping[str, Any]], HeadKind]] | None = None,
) -> RewardModel:
    """Load a reward model: one of ours, or a sequence classifier that reads a causal model's last token.

    A foreign classifier has no scale: its logits are its scores.

    Args:
        path: Folder or hub name.
        dtype: Precision of the body; the heads are float32.
        revision: Revision on the hub.
        device: Device of the model.
        chat_template_kwargs: Arguments of every rendering of the chat template.
        kinds: Name -> constructor of a kind of one's own from its metadata.

    Raises:
        DataError: Missing or damaged files, an unknown kind of head, or a chat template other than the one it
            was fitted with.
        WiringError: An unsupported classifier architecture.
        ResourceError: The device is not available.
    """
    from transformers import AutoModelForSequenceClassification

    torch_device = resolve_device(device)
    tokenizer = load_tokenizer(path, revision=revision, chat_template_kwargs=chat_template_kwargs)
    precision = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    network: Any = load_pretrained(
        AutoModelForSequenceClassification, path, dtype=precision, revision=revision, device=torch_device
    )
    # The heads stay float32 in a bfloat16 model; see `RewardModel.forward`.
    if is_quantized_linear(require_score_head(network).score):
        network.score = dense_linear(network.score, precision)
    network.score.float()
    if not is_quantized(network):  # quantized weights are on their device already
        network.to(torch_device)
    num_labels, eos_id = network.config.num_labels, tokenizer.eos_token_id
    metadata = getattr(network.config, "paretune", None) or {}
    if metadata:
        _check_metadata(path, metadata, tokenizer)
    if "eos_token_id" not in metadata and eos_id is None:
        raise DataError(
            f"{path}: the tokenizer has no EOS token; fix: set eos_token in tokenizer_config.json"
        )
    scale = metadata.get("scale", [1.0] * num_labels)
    _scale_all(network, [1 / factor for factor in scale])
    return RewardModel(
        network,
        tokenizer,
        eos_id=metadata.get("eos_token_id", eos_id),
        scale=scale,
        offset=metadata.get("offset", [0.0] * num_labels),
        kinds=_saved_kinds(path, metadata.get("heads", {}), {**SAVED_KINDS, **(kinds or {})}),
        provenance=metadata.get("provenance", {}),
    )


def _saved_kinds(
    path: str,
    heads: Mapping[str, Mapping[str, Any]],
    constructors: Mapping[str, Callable[[Mapping[str, Any]], HeadKind]],
) -> dict[str, HeadKind]:
    kinds = {}
    for name, head in heads.items():
        location = f"{path}: config.json: paretune.heads.{name}"
        if head.get("kind") not in constructors:
            raise DataError(
                f"{location}: the kind {head.get('kind')} is none of {', '.join(constructors)}; "
                "fix: pass its class to load_reward_model(kinds=...)"
            )
        try:
            kinds[name] = constructors[head["kind"]](head)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{location}: is damaged ({first_line(error)}); fix: train the reward model again"
            ) from error
    return kinds


def _check_metadata(path: str, metadata: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    if metadata["schema"] != SCHEMA:
        raise DataError(
            f"{path}: config.json: paretune.schema is {metadata['schema']}; expected {SCHEMA}; "
            "fix: train the reward model again"
        )
    if metadata["chat_template_hash"] != template_hash(tokenizer):
        raise DataError(
            f"{path}: the chat template differs from the one in training, so scores would be meaningless; "
            "fix: restore the tokenizer, or train the reward model again"
        )


def read_objectives(path: str, *, revision: str | None = None) -> tuple[str, ...]:
    """The objectives of a stored reward model, without loading its weights.

    Raises:
        DataError: A missing or unreadable config.json.
    """
    config = load_model_config(path, revision=revision)
    return tuple(config.id2label[i] for i in range(config.num_labels))
