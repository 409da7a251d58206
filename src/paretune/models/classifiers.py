"""Stored sequence classifiers: labels, outputs and limits, read from config.json without loading weights."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

from torch import nn

from paretune.core.errors import DataError
from paretune.models.load import load_model_config
from paretune.models.loading_report import SAME_CHECKPOINT_FIX, incompleteness, loading_report
from paretune.models.lora import shared_network
from paretune.models.model_limits import NO_LIMIT, max_sequence_length
from paretune.models.quantized_checkpoint import quantization_method
from paretune.models.weight_files import require_safetensors, stored_shapes

MAX_LISTED_LABELS = 30
"""Labels that an error message shows."""
Activation = Literal["softmax", "sigmoid", "none"]
"""From logits to probabilities; none: the model is a regression, and its logits are its outputs."""


class KeyIssue(NamedTuple):
    """What is wrong with a key of a recipe's section."""

    key: str
    problem: str
    fix: str

    @classmethod
    def from_error(cls, key: str, error: Exception) -> "KeyIssue":
        """The issue that an error message of the form `problem; fix: ...` describes."""
        problem, _, fix = str(error).partition("; fix: ")
        return cls(key, problem, fix)


class LabelError(DataError):
    """A classifier has no label of this name or index."""


@dataclass(frozen=True)
class StoredClassifier:
    """A sequence classifier in a folder or on the hub, as far as it is known without its weights."""

    path: str
    config: Any
    """The model configuration."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the outputs, in their order."""
        return tuple(str(self.config.id2label.get(i, f"LABEL_{i}")) for i in range(self.config.num_labels))

    @property
    def has_names(self) -> bool:
        """False if the labels are the placeholders LABEL_0, LABEL_1, ... of transformers."""
        return any(label != f"LABEL_{i}" for i, label in enumerate(self.labels))

    @property
    def activation(self) -> Activation:
        """As in the text-classification pipeline of transformers."""
        problem_type = self.config.problem_type
        if problem_type == "regression":
            return "none"
        if problem_type == "multi_label_classification" or self.config.num_labels == 1:
            return "sigmoid"
        return "softmax"

    @property
    def from_paretune(self) -> bool:
        """A reward model that paretune saved."""
        return bool(getattr(self.config, "paretune", None))

    @cached_property
    def network(self) -> nn.Module:
        """The network without weights."""
        return shared_network(self.config, "SEQ_CLS")

    @property
    def max_length(self) -> int:
        """Longest text in tokens, special tokens included."""
        return max_text_length(self.network)

    def label_index(self, label: str | int) -> int:
        """Index of a label, given by its name or index.

        Raises:
            LabelError: There is none, or several labels have this name.
        """
        shown = [f"{i}: {' '.join(name.split())}" for i, name in enumerate(self.labels)]
        more = len(shown) - MAX_LISTED_LABELS
        names = ", ".join([*shown[:MAX_LISTED_LABELS], *([f"and {more:,} more"] if more > 0 else [])])
        if isinstance(label, int):
            if 0 <= label < len(self.labels):
                return label
            problem = f"{self.path} has no output {label}"
            raise LabelError(f"{problem}; fix: one of {names}")
        if self.labels.count(label) > 1:
            raise LabelError(f'several labels of {self.path} are named "{label}"; fix: an index of {names}')
        if label not in self.labels:
            raise LabelError(f'{self.path} has no label "{label}"; fix: one of {names}')
        return self.labels.index(label)


def read_classifier(path: str, *, revision: str | None = None) -> StoredClassifier:
    """A stored sequence classifier, checked without loading its weights.

    Raises:
        DataError: No such model, not a sequence classifier, modeling code of its own, pickle files, or a head
            that does not fit the weights in the file.
        MissingDependencyError: A package that it needs is missing.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    config = load_model_config(path, revision=revision)
    expected = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(config.model_type)
    architectures = config.architectures or [expected]
    if expected not in architectures and getattr(config, "auto_map", None):
        raise _custom_code_error(path, architectures[0])
    if expected is None:
        problem = f"transformers has no sequence classifier for {config.model_type} models"
        raise DataError(f"{path}: {problem}; fix: use another model")
    if expected not in architectures:
        problem = f"not a sequence classifier: architectures in config.json is {', '.join(architectures)}"
        raise DataError(f"{path}: {problem}; fix: name a folder whose config.json says {expected}")
    require_safetensors(path)
    classifier = StoredClassifier(path, config)
    problem, fix = _weight_problem(classifier)
    if problem:
        raise DataError(f"{path}: {problem}; fix: {fix}")
    return classifier


def _custom_code_error(path: str, architecture: str) -> DataError:
    """The error for a model that is loaded by code of its own repository, which would run here unseen."""
    problem = f"{architecture} is code of the model's own repository, which is never run"
    fix = (
        "use a model that transformers has itself; a linear head on a known body, as that of ArmoRM, can be "
        "saved as a classifier of its family (docs/scorers.md, Models with code of their own)"
    )
    return DataError(f"{path}: {problem}; fix: {fix}")


def _weight_problem(classifier: StoredClassifier) -> tuple[str, str]:
    """What is wrong with the stored weights by their headers, and its fix; ("", "") if nothing is."""
    shapes = stored_shapes(classifier.path)
    if not shapes or quantization_method(classifier.config):
        return "", ""
    network: Any = classifier.network
    report = loading_report(network, shapes)
    if report.mismatched:
        name, *pair = report.mismatched[0]
        sizes = ["x".join(map(str, shape)) for shape in pair]
        return f"{name} is {sizes[0]} in the file and {sizes[1]} by config.json", SAME_CHECKPOINT_FIX
    # A head with further weights, such as a bias, gives other logits without them.
    heads = {name for name, _ in network.named_children()} - {network.base_model_prefix}
    for name in report.unused_heads:
        if name.partition(".")[0] in heads:
            problem = f"the file has {name}, which {type(network).__name__} has no place for"
            return problem, "use a classifier that transformers has itself"
    return incompleteness(report, classifier.config)


def max_text_length(network: Any) -> int:
    """Longest text in tokens that a network has positions for, special tokens included.

    Raises:
        DataError: The configuration has a length that no model can have.
    """
    config = network.config.get_text_config()
    # XLNet says so that it has no limit.
    is_unlimited = getattr(config, "max_position_embeddings", None) == -1
    limit = NO_LIMIT if is_unlimited else max_sequence_length(network.config)
    for name, module in network.named_modules():
        # RoBERTa and its relatives count positions from the one after their padding token.
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            limit = min(limit, module.num_embeddings - first)
    return limit
