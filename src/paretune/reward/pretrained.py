"""Ready-made reward models as scorers: each of their outputs can be an objective."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from paretune.core.errors import DataError, WiringError
from paretune.data.chat import encode_row
from paretune.data.chat_template import ChatTemplateError
from paretune.data.records import Prompt, Sample
from paretune.models.classifiers import KeyIssue, LabelError, StoredClassifier, read_classifier
from paretune.models.critic import require_score_head
from paretune.models.load import load_tokenizer
from paretune.models.save import parameter_hash
from paretune.reward.checkpoint import load_reward_model, provenance_hashes
from paretune.reward.classifier import NetworkScorer
from paretune.reward.classifier_inputs import (
    ClassifierRow,
    UnreadableTextError,
    conversation_problem,
    conversation_row,
    require_readable,
    score_readable,
    up_to_last_read,
)
from paretune.reward.model import RewardModel

OBJECTIVE_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""Names that an objective of a recipe may have."""


def output_indices(
    classifier: StoredClassifier, *, name: str, outputs: Mapping[str, str | int]
) -> dict[str, int]:
    """Objective -> index of the output of a reward model.

    Args:
        classifier: The reward model.
        name: Name of the scorer, which is the objective of a model with a single output.
        outputs: Objective -> label or index; empty: the labels are the objectives.

    Raises:
        LabelError: A label is missing, an output is named twice, or the labels cannot be objectives.
    """
    labels = classifier.labels
    indices = {objective: classifier.label_index(label) for objective, label in outputs.items()}
    if len(set(indices.values())) < len(indices):
        first = next(i for i in indices.values() if list(indices.values()).count(i) > 1)
        same = " and ".join(objective for objective, i in indices.items() if i == first)
        raise LabelError(f"{same} are the same output, {first}: {labels[first]}; fix: keep one of them")
    if indices:
        return indices
    if len(labels) == 1:
        return {name: 0}
    example = f"name the ones to use, such as {{helpfulness: 0}}, by an index from 0 to {len(labels) - 1}"
    if not classifier.has_names:
        problem = f"{classifier.path} does not name its {len(labels)} outputs"
        raise LabelError(f"{problem}; fix: {example}")
    for label in labels:
        if labels.count(label) > 1 or not OBJECTIVE_PATTERN.fullmatch(label):
            problem = f'{classifier.path}: the label "{label}" cannot be the name of an objective'
            raise LabelError(f"{problem}; fix: {example}")
    return {label: i for i, label in enumerate(labels)}


def reward_model_issues(
    path: str, *, name: str, outputs: Mapping[str, str | int], revision: str | None = None
) -> list[KeyIssue]:
    """What is wrong with the scorer of a ready-made reward model, by key, known without its weights.

    Raises:
        MissingDependencyError: A package that the model needs is missing.
    """
    try:
        classifier = read_classifier(path, revision=revision)
        return list(_issues(classifier, name, outputs, revision))
    except DataError as error:
        return [KeyIssue.from_error("path", error)]


def _issues(
    classifier: StoredClassifier, name: str, outputs: Mapping[str, str | int], revision: str | None
) -> Iterator[KeyIssue]:
    path, num_labels = classifier.path, classifier.config.num_labels
    if classifier.config.problem_type == "single_label_classification" and num_labels > 1:
        problem = f"{path} chooses one of {num_labels} classes (problem_type in config.json)"
        yield KeyIssue("type", f"{problem}; it is no reward model", "type: classifier")
        return
    try:
        require_score_head(classifier.network)
    except WiringError:
        problem = f"{path} is of the family {classifier.config.model_type}, which reads no conversations"
        yield KeyIssue(
            "type", problem, "type: classifier with output: logit and reads: prompt_and_response or response"
        )
        return
    tokenizer = load_tokenizer(path, revision=revision)
    if not classifier.from_paretune and (problem := conversation_problem(tokenizer)):
        fix = "add its chat_template.jinja, or type: classifier with reads: prompt_and_response"
        yield KeyIssue("path", f"{path}: {problem}", fix)
    try:
        output_indices(classifier, name=name, outputs=outputs)
    except LabelError as error:
        yield KeyIssue.from_error("outputs", error)


def load_pretrained_reward_scorer(
    path: str,
    *,
    name: str,
    outputs: Mapping[str, str | int] | None = None,
    revision: str | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: str = "cpu",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    max_failure_rate: float = 1.0,
    max_tokens_per_pass: int = 4096,
) -> "PretrainedRewardScorer":
    """Load a ready-made reward model as a scorer.

    Args:
        path: Folder or hub name.
        name: Name of the scorer, which is the objective of a model with a single output.
        outputs: Objective -> label or index of its output; empty: the labels are the objectives.
        revision: Revision on the hub.
        dtype: Precision of the body; the heads are float32.
        device: Device of the model.
        chat_template_kwargs: Arguments of every rendering of the chat template.
        max_failure_rate: Largest share of responses that may stay unscored before the run stops.
        max_tokens_per_pass: Maximum tokens per forward pass.

    Raises:
        DataError: Missing or damaged files.
        WiringError: A setting that does not fit the model; see `reward_model_issues`.
        ResourceError: The device is not available.
    """
    issues = reward_model_issues(path, name=name, outputs=outputs or {}, revision=revision)
    if issues:
        raise WiringError(f"{issues[0].key}: {issues[0].problem}; fix: {issues[0].fix}")
    classifier = read_classifier(path, revision=revision)
    model = load_reward_model(
        path, dtype=dtype, revision=revision, device=device, chat_template_kwargs=chat_template_kwargs
    )
    pad_id = getattr(classifier.config.get_text_config(), "pad_token_id", None)
    return PretrainedRewardScorer(
        model=model,
        outputs=output_indices(classifier, name=name, outputs=outputs or {}),
        from_paretune=classifier.from_paretune,
        pad_id=pad_id,
        path=path,
        max_failure_rate=max_failure_rate,
        max_tokens_per_pass=max_tokens_per_pass,
    )


@dataclass
class PretrainedRewardScorer(NetworkScorer):
    """Outputs of a reward model as objectives; NaN where a text cannot be read, with a reason.

    Our own models read a response as in their training: up to the token that ends the turn. Others read the
    whole rendering of their chat template, as their authors and TRL do.
    """

    model: RewardModel
    outputs: Mapping[str, int]
    """Objective -> index of the output."""
    from_paretune: bool
    pad_id: int | None
    """Padding token of the configuration, which transformers does not read at the end of a row."""

    @property
    def names(self) -> tuple[str, ...]:
        """The objectives of its columns."""
        return tuple(self.outputs)

    @property
    def max_length(self) -> int:
        """Longest conversation in tokens."""
        return self.model.max_length

    @property
    def data_hashes(self) -> frozenset[str] | None:
        """Hashes of the training data of a model of ours; None: unknown."""
        return provenance_hashes(self.model.provenance)

    def __call__(self, samples: Sequence[Sample]) -> Float[Tensor, "B k"]:
        """One column per objective, in label units; a truncated response is scored as it stands."""
        return score_readable(
            samples,
            len(self.outputs),
            self.failures,
            lambda sample: self.row(sample.prompt, sample.response),
            self._score,
        )

    def row(self, prompt: Prompt, response: str) -> ClassifierRow:
        """The row of a response.

        Raises:
            UnreadableTextError: The chat template rejects the conversation, or the model cannot read it.
        """
        if self.from_paretune:
            try:
                ids = encode_row(self.model.tokenizer, prompt, response, eos_id=self.model.eos_id).input_ids
            except ChatTemplateError as error:
                raise UnreadableTextError(error.problem) from error
        else:
            conversation = conversation_row(self.model.tokenizer, prompt, response)
            ids = up_to_last_read(conversation.input_ids, self.pad_id)
        row = ClassifierRow(ids, [0] * len(ids))
        return require_readable(
            row, max_length=self.model.max_length, num_embeddings=self.model.num_embeddings
        )

    def _score(self, rows: Sequence[ClassifierRow]) -> Float[Tensor, "b k"]:
        self.count_flops(self.model.network, rows)
        scores = self.model.score_sequences(
            [row.input_ids for row in rows], max_tokens_per_pass=self.max_tokens_per_pass
        )
        return scores[:, list(self.outputs.values())]

    def weights_hash(self) -> str:
        """Hash of its weights."""
        return parameter_hash(self.model)
