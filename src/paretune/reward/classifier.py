"""Any sequence classifier of transformers as a scorer: one of its labels is one objective."""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from paretune.core.errors import DataError, WiringError
from paretune.data.records import Message, Prompt, Sample
from paretune.models.classifiers import Activation, KeyIssue, LabelError, max_text_length, read_classifier
from paretune.models.critic import require_score_head
from paretune.models.dequantize import dense_linear, is_quantized, is_quantized_linear
from paretune.models.flops import forward_flops, shared_prefix_shape
from paretune.models.forward.length_batching import batches_by_length, pad_sequences
from paretune.models.load import is_local_folder, load_pretrained, load_tokenizer, resolve_device
from paretune.models.save import parameter_hash
from paretune.reward.classifier_inputs import (
    ClassifierEncoder,
    ClassifierRow,
    Reads,
    conversation_problem,
    require_readable,
    score_readable,
    up_to_last_read,
)
from paretune.reward.failures import CountedScorer
from paretune.reward.model import RewardModel

Output = Literal["probability", "logit", "log_odds"]
"""The number that is read off a label."""

_PADDING_TOLERANCE = 1e-5
"""Largest change of a float32 logit, relative to 1 + its size, that padding may cause."""
_PROBE_PROMPT = Prompt(messages=(Message("user", "a"),))
_PROBE_RESPONSES = ("b", "a longer text, so that the first one is padded")


def classifier_issues(
    path: str,
    *,
    label: str | int,
    output: Output = "probability",
    reads: Reads = "response",
    revision: str | None = None,
) -> list[KeyIssue]:
    """What is wrong with a classifier scorer, by key, known from configuration and tokenizer alone.

    Raises:
        MissingDependencyError: A package that the model needs is missing.
    """
    try:
        classifier = read_classifier(path, revision=revision)
        tokenizer = load_tokenizer(path, revision=revision)
    except DataError as error:
        return [KeyIssue.from_error("path", error)]
    issues = []
    if classifier.from_paretune:
        problem = f"{path} is a reward model that paretune fitted"
        issues.append(KeyIssue("type", problem, "type: reward_model, without label, output and reads"))
    try:
        classifier.label_index(label)
    except LabelError as error:
        issues.append(KeyIssue.from_error("label", error))
    if classifier.activation == "none" and output != "logit":
        problem = f"{path} is a regression (problem_type in config.json): it has no {output}"
        issues.append(KeyIssue("output", problem, "output: logit"))
    if reads == "conversation":
        issues += _conversation_issues(path, ClassifierEncoder(tokenizer, reads))
    return issues


def _conversation_issues(path: str, encode: ClassifierEncoder) -> list[KeyIssue]:
    fix = "reads: prompt_and_response or response, as in its training, or add its chat_template.jinja"
    problem = conversation_problem(encode.tokenizer)
    return [KeyIssue("reads", f"{path}: {problem}", fix)] if problem else []


def load_classifier_scorer(
    path: str,
    *,
    name: str,
    label: str | int,
    output: Output = "probability",
    invert: bool = False,
    reads: Reads = "response",
    revision: str | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: str = "cpu",
    max_failure_rate: float = 1.0,
    max_tokens_per_pass: int = 4096,
) -> "ClassifierScorer":
    """Load a classifier as the scorer of one objective.

    Args:
        path: Folder or hub name.
        name: The objective.
        label: Name or index of the label.
        output: probability; logit as the model gives it; log_odds: the logarithm of p / (1 - p).
        invert: Score 1 - probability, minus the logit or minus the log-odds.
        reads: What the classifier reads.
        revision: Revision on the hub.
        dtype: Precision of the body; the head is float32.
        device: Device of the model.
        max_failure_rate: Largest share of responses that may stay unscored before the run stops.
        max_tokens_per_pass: Maximum padded tokens per forward pass.

    Raises:
        DataError: Missing or damaged files.
        WiringError: A setting that does not fit the model; see `classifier_issues`.
        ResourceError: The device is not available.
    """
    issues = classifier_issues(path, label=label, output=output, reads=reads, revision=revision)
    if issues:
        raise WiringError(f"{issues[0].key}: {issues[0].problem}; fix: {issues[0].fix}")
    stored = read_classifier(path, revision=revision)
    tokenizer = load_tokenizer(path, revision=revision)
    encode = ClassifierEncoder(tokenizer, reads)
    return ClassifierScorer(
        name=name,
        model=SequenceClassifier(load_network(path, revision, dtype, device), encode),
        label=stored.label_index(label),
        activation=stored.activation,
        output=output,
        invert=invert,
        max_failure_rate=max_failure_rate,
        max_tokens_per_pass=max_tokens_per_pass,
        path=path,
        revision=revision,
    )


def load_network(path: str, revision: str | None, dtype: str, device: str) -> Any:
    """A sequence classifier of transformers on its device, with a float32 head for any dtype of the body."""
    from transformers import AutoModelForSequenceClassification

    torch_device = resolve_device(device)
    precision = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    network: Any = load_pretrained(
        AutoModelForSequenceClassification, path, dtype=precision, revision=revision, device=torch_device
    )
    for name, module in list(network.named_children()):
        if name == network.base_model_prefix:
            continue
        if is_quantized_linear(module):
            setattr(network, name, dense_linear(module, precision))
        # bfloat16 logits have 8 significant bits: different responses would tie.
        getattr(network, name).float().register_forward_pre_hook(_inputs_as_float32)
    # Quantized weights are on their device already.
    return network if is_quantized(network) else network.to(torch_device)


def _inputs_as_float32(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
        for value in inputs
    )


class SequenceClassifier:
    """Logits of texts; a logit does not depend on its batch and equals that of a single text in transformers.

    Families with causal attention and a linear head read packed rows with shared prompts. Others read padded
    rows, or rows of equal length where padding changes their logits; which is tried on loading.
    """

    def __init__(self, network: Any, encode: ClassifierEncoder) -> None:
        self.network, self.encode = network, encode
        self.max_length = max_text_length(network)
        """Longest text in tokens, special tokens included."""
        self.num_embeddings: int = network.get_input_embeddings().weight.shape[0]
        pad_id = getattr(network.config.get_text_config(), "pad_token_id", None)
        self._ignored_end_id = pad_id
        self._pad_id = next(i for i in (pad_id, encode.tokenizer.pad_token_id, 0) if i is not None)
        self._reads_types = (
            "token_type_ids" in encode.tokenizer.model_input_names
            and "token_type_ids" in inspect.signature(network.forward).parameters
        )
        self._causal = self._as_causal()
        self._pads = self._causal is None and self._padding_keeps_logits()

    def row(self, prompt: Prompt, response: str) -> ClassifierRow:
        """The row of a response.

        Raises:
            UnreadableTextError: The response cannot be encoded or read.
        """
        row = self.encode(prompt, response)
        return require_readable(row, max_length=self.max_length, num_embeddings=self.num_embeddings)

    @torch.inference_mode()
    def logits(
        self, rows: Sequence[ClassifierRow], *, max_tokens_per_pass: int = 4096
    ) -> Float[Tensor, "B L"]:
        """Float32 logits of readable rows, on the CPU."""
        if self._causal is not None:
            ids = [up_to_last_read(row.input_ids, self._ignored_end_id) for row in rows]
            return self._causal.score_sequences(ids, max_tokens_per_pass=max_tokens_per_pass)
        logits = torch.full((len(rows), self.network.config.num_labels), torch.nan)
        for batch in self._batches(rows, max_tokens_per_pass):
            logits[batch] = self._forward([rows[i] for i in batch])
        return logits

    def _batches(self, rows: Sequence[ClassifierRow], max_tokens_per_pass: int) -> Iterator[list[int]]:
        by_length: dict[int, list[int]] = {}
        for i, row in enumerate(rows):
            by_length.setdefault(0 if self._pads else len(row.input_ids), []).append(i)
        for group in by_length.values():
            for batch in batches_by_length([len(rows[i].input_ids) for i in group], max_tokens_per_pass):
                yield [group[i] for i in batch]

    def _forward(self, rows: Sequence[ClassifierRow]) -> Float[Tensor, "b L"]:
        device = self.network.get_input_embeddings().weight.device
        ids, mask = pad_sequences([row.input_ids for row in rows], device=device)
        # RoBERTa counts positions by the padding token, so its own id is needed.
        inputs = {"input_ids": ids.masked_fill(~mask, self._pad_id), "attention_mask": mask.long()}
        if self._reads_types:
            inputs["token_type_ids"] = pad_sequences([row.token_type_ids for row in rows], device=device)[0]
        logits = self.network(**inputs).logits
        assert isinstance(logits, Tensor)
        return logits.float().cpu()

    def _probe_rows(self) -> list[ClassifierRow]:
        return [self.encode(_PROBE_PROMPT, response) for response in _PROBE_RESPONSES]

    @torch.inference_mode()
    def _as_causal(self) -> RewardModel | None:
        """The network read at the last token of packed rows; None if that is not how its head is read."""
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

        if type(self.network.config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            return None
        try:
            require_score_head(self.network)
        except WiringError:
            return None
        num_labels = self.network.config.num_labels
        eos_id = self.encode.tokenizer.eos_token_id or 0  # its rows are encoded here, so it is never used
        model = RewardModel(
            self.network,
            self.encode.tokenizer,
            eos_id=eos_id,
            scale=[1.0] * num_labels,
            offset=[0.0] * num_labels,
        )
        rows = self._probe_rows()
        packed = model.score_sequences([up_to_last_read(row.input_ids, self._ignored_end_id) for row in rows])
        return model if self._equal(packed, torch.cat([self._forward([row]) for row in rows])) else None

    @torch.inference_mode()
    def _padding_keeps_logits(self) -> bool:
        rows = self._probe_rows()
        return self._equal(self._forward(rows), torch.cat([self._forward([row]) for row in rows]))

    def _equal(self, first: Tensor, second: Tensor) -> bool:
        # A body in bfloat16 rounds its hidden states differently in other shapes.
        is_float32 = self.network.get_input_embeddings().weight.dtype == torch.float32
        tolerance = _PADDING_TOLERANCE if is_float32 else 0.05
        return bool(((first - second).abs() <= tolerance * (1 + second.abs())).all())


def label_scores(
    logits: Float[Tensor, "B L"], label: int, activation: Activation, output: Output, *, invert: bool
) -> Float[Tensor, " B"]:
    """The output of one label of a classifier.

    The inverted probability is computed from the log-odds: 1 - p would round small ones to 0.
    """
    logits = logits.double()  # the log-odds of a softmax are a small difference of large numbers
    score = logits[:, label]
    if output != "logit" and activation == "softmax":
        others = [i for i in range(logits.shape[1]) if i != label]
        score = score - logits[:, others].logsumexp(-1)
    score = -score if invert else score
    return (score.sigmoid() if output == "probability" else score).float()


@dataclass(kw_only=True)
class NetworkScorer(CountedScorer):
    """Base of scorers that read responses by a sequence classifier of transformers."""

    path: str = ""
    """Folder or hub name."""
    max_failure_rate: float = 1.0
    """Largest share of responses that may stay unscored before the run stops."""
    max_tokens_per_pass: int = 4096
    """Maximum tokens per forward pass, padding included."""
    total_flops: float = field(default=0.0, init=False, repr=False, compare=False)
    """Floating-point operations of all calls so far; NaN if unknown for the architecture."""

    def count_flops(self, network: nn.Module, rows: Sequence[ClassifierRow]) -> None:
        """Add the operations of reading these rows."""
        shape = shared_prefix_shape([], [(0, len(row.input_ids)) for row in rows])
        self.total_flops += forward_flops(network, shape)

    def provenance_files(self) -> tuple[Path, ...]:
        """The files that it rests on; none of a hub name, whose revision is its identity."""
        if not self.path or not is_local_folder(self.path):
            return ()
        return tuple(sorted(file for file in Path(self.path).iterdir() if file.is_file()))


@dataclass
class ClassifierScorer(NetworkScorer):
    """One label of a sequence classifier as an objective; NaN where a text cannot be read, with a reason."""

    name: str
    """The objective."""
    model: SequenceClassifier
    label: int
    activation: Activation
    output: Output = "probability"
    invert: bool = False
    revision: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The objective of its column."""
        return (self.name,)

    @property
    def max_length(self) -> int:
        """Longest text in tokens of the classifier, special tokens included."""
        return self.model.max_length

    def __call__(self, samples: Sequence[Sample]) -> Float[Tensor, "B k"]:
        """One column; a truncated response is scored as it stands."""
        return score_readable(
            samples,
            1,
            self.failures,
            lambda sample: self.model.row(sample.prompt, sample.response),
            self._score,
        )

    def _score(self, rows: Sequence[ClassifierRow]) -> Float[Tensor, "b 1"]:
        self.count_flops(self.model.network, rows)
        logits = self.model.logits(rows, max_tokens_per_pass=self.max_tokens_per_pass)
        return label_scores(logits, self.label, self.activation, self.output, invert=self.invert)[:, None]

    def weights_hash(self) -> str:
        """Hash of its weights."""
        return parameter_hash(self.model.network)
