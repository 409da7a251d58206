"""Training of a reward model on ratings and preference pairs with any subset of the labels each."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from paretune.core.errors import DataError, WiringError, format_issue, join_issues
from paretune.core.reductions import label_weights
from paretune.data.chat import encode_rows
from paretune.data.records import PreferencePair, Rating
from paretune.models.forward.length_batching import pad_sequences
from paretune.models.forward.logprobs import device_of
from paretune.reward.heads import HeadKind, LinearHead
from paretune.reward.losses import weighted_loss_sum
from paretune.reward.model import RewardModel
from paretune.training.supervised import (
    CheckpointConfig,
    FitStepCallback,
    MicrobatchLossFn,
    SupervisedConfig,
    check_lengths,
    fit,
)

LabelledRow = Rating | PreferencePair

CENTERING_SAMPLE_SIZE = 512
"""Training pairs whose mean score becomes 0 for a head without ratings."""

CONSTANT_RTOL, CONSTANT_ATOL = 1e-6, 1e-12
"""Spread of labels, relative to the largest or as it is, that is rounding: float32 means are below it."""


@dataclass(frozen=True, slots=True)
class EncodedRecord:
    """A record in tokens."""

    token_rows: list[list[int]]
    """One row of a rating; the chosen and the rejected row of a pair."""
    prompt_length: int
    """Tokens of the prompt, where the responses begin."""


def label_matrix(records: Sequence[LabelledRow], objectives: Sequence[str]) -> Float[Tensor, "B K"]:
    """The label of each record per objective; 0 for a pair, NaN = not labelled."""
    rows = []
    for record in records:
        if isinstance(record, Rating):
            rows.append([float(record.labels.get(name, math.nan)) for name in objectives])
        else:
            rows.append([0.0 if name == record.objective else math.nan for name in objectives])
    return torch.tensor(rows, dtype=torch.float64).reshape(len(records), len(objectives))


def label_scale_and_offset(
    records: Sequence[LabelledRow],
    objectives: Sequence[str],
    kinds: Mapping[str, HeadKind] | None = None,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Scale and offset per head, from standard units to label units.

    Args:
        records: The training records.
        objectives: Names of the heads.
        kinds: Objective -> kind of its head; without one, the standard deviation and the mean of its labels,
            and 1 and 0 without ratings.

    Raises:
        DataError: An objective has no data, or all its labels are equal but for rounding.
    """
    labels = label_matrix(records, objectives)
    is_rating = torch.tensor([isinstance(record, Rating) for record in records], dtype=torch.bool)
    scale, offset, issues = [], [], []
    for k, name in enumerate(objectives):
        known = labels[is_rating, k]
        known = known[~known.isnan()]
        location = f"objectives.{name}"
        if not len(known) and not (~labels[:, k].isnan()).any():
            fix = "add ratings or pairs with this objective"
            issues.append(format_issue(location, None, None, "", "no rating and no pair has it", fix=fix))
        elif len(known) and is_constant(known):
            rounding = "" if bool((known == known[0]).all()) else " but for rounding"
            problem = f"all {len(known)} labels are {known[0]:g}{rounding}, so there is nothing to learn"
            issues.append(format_issue(location, None, None, "", problem, fix="add data, or remove it"))
        head_scale, head_offset = (kinds or {}).get(name, LinearHead()).scale_and_offset(known)
        scale.append(head_scale)
        offset.append(head_offset)
    if issues:
        raise DataError(join_issues(issues))
    return tuple(scale), tuple(offset)


def kinds_from_labels(
    records: Sequence[LabelledRow], kinds: Mapping[str, HeadKind], test: Sequence[LabelledRow] = ()
) -> dict[str, HeadKind]:
    """The kinds with what they take from the training labels, such as levels.

    Args:
        records: The training records.
        kinds: Objective -> kind of its head.
        test: Held-out records, whose single votes must fit too.

    Raises:
        DataError: The labels of an objective do not fit its kind.
    """
    fitted, issues = {}, []
    for name, kind in kinds.items():
        column = label_matrix([record for record in records if isinstance(record, Rating)], (name,))[:, 0]
        labels, votes = column[~column.isnan()], label_votes(records, name).votes
        test_votes = label_votes(test, name).votes
        try:
            fitted[name] = kind.from_labels(labels, votes) if len(labels) else kind
            problem = fitted[name].label_problem(test_votes) if len(labels) and len(test_votes) else ""
        except DataError as error:
            problem = str(error)
        if problem:
            issues.append(f"objectives.{name}: {problem}")
    if issues:
        raise DataError(join_issues(issues))
    return fitted


@dataclass(frozen=True, slots=True)
class LabelVotes:
    """The single votes on one objective; a label of one rater is a vote itself."""

    votes: Float[Tensor, " m"]
    """In label units."""
    weights: Float[Tensor, " m"]
    """1 / votes on its response."""
    rows: Int[Tensor, " m"]
    """Index of its record."""


def label_votes(records: Sequence[LabelledRow], objective: str) -> LabelVotes:
    """The votes of all ratings of an objective."""
    votes: list[float] = []
    weights: list[float] = []
    rows: list[int] = []
    for row, record in enumerate(records):
        if isinstance(record, Rating) and not math.isnan(label := record.labels.get(objective, math.nan)):
            own = record.votes.get(objective, (label,))
            votes += own
            weights += [1 / len(own)] * len(own)
            rows += [row] * len(own)
    as_tensor = torch.tensor
    return LabelVotes(
        as_tensor(votes, dtype=torch.float64),
        as_tensor(weights, dtype=torch.float64),
        as_tensor(rows, dtype=torch.long),
    )


def is_constant(labels: Float[Tensor, " B"]) -> bool:
    """Whether the labels are equal, or differ by no more than rounding: means of equal votes, say."""
    largest = float(labels.abs().max())
    return float(labels.max() - labels.min()) <= max(CONSTANT_RTOL * largest, CONSTANT_ATOL)


def data_hash(records: Sequence[LabelledRow]) -> str:
    """SHA-256 over the whole content of the records, in their order."""
    digest = hashlib.sha256()
    for record in records:
        turns = [[m.role, m.content, *m.extra] for m in record.prompt.messages]
        if isinstance(record, Rating):
            content: list[object] = [record.response, sorted((k, str(v)) for k, v in record.labels.items())]
        else:
            content = [record.chosen, record.rejected, record.objective]
        digest.update(json.dumps([turns, *content]).encode() + b"\n")
    return digest.hexdigest()


def fit_reward_model(
    model: RewardModel,
    records: Sequence[LabelledRow],
    config: SupervisedConfig,
    *,
    seed: int,
    checkpoint_config: CheckpointConfig | None = None,
    on_step: FitStepCallback | None = None,
) -> None:
    """Train the model in place; the same call again resumes from the last checkpoint.

    Args:
        model: A new reward model with the scale and offset of `label_scale_and_offset`, and the kinds of
            `kinds_from_labels`; by default a head has the squared error on ratings and the Bradley-Terry loss
            on pairs.
        records: Ratings and pairs, mixed; a rating without any of the model's objectives is ignored.
        config: Epochs, batch size and optimizer.
        seed: Seed of the data order.
        checkpoint_config: Where and how often to write checkpoints.
        on_step: Called after each step.

    Raises:
        WiringError: A kind does not fit its objective's data, or a pair has an unknown objective.
        DataError: A sequence is longer than the model's context.
        NonFiniteError: A loss or a gradient is not finite.
        RunInterrupted: SIGTERM; a checkpoint was written first.
    """
    task = RewardTask(model, records)
    fit(task, config, seed=seed, checkpoint_config=checkpoint_config, on_step=on_step)
    _center_scores(model, task)
    model.provenance = {"sha256": data_hash(task.records), "num_records": str(len(task.records))}


class RewardTask:
    """The loss of a reward model on ratings and pairs; all objectives have equal weight over the whole data.

    A label has its weight among all labels of its objective, not among those of its optimizer step: otherwise
    the only label of a rare objective would dominate the gradient of a step.
    """

    def __init__(self, model: RewardModel, records: Sequence[LabelledRow]) -> None:
        self.model: nn.Module = model
        self.network, self.kinds, self.head_parameters = model.network, model.kinds, model.head_parameters
        self.objectives = model.objectives
        labels = label_matrix(records, self.objectives)
        is_labelled = (~labels.isnan()).any(1).tolist()
        self.records = [record for record, labelled in zip(records, is_labelled, strict=True) if labelled]
        _check_pair_objectives(records, self.objectives)
        self.is_pair = torch.tensor([isinstance(r, PreferencePair) for r in self.records], dtype=torch.bool)
        self.labels = labels[torch.tensor(is_labelled, dtype=torch.bool)]
        _check_kinds(model, self.labels, self.is_pair)
        # In float64 throughout: a float32 offset differs from it by more than a small spread of labels.
        offset = torch.tensor(model.offset, dtype=torch.float64)
        self.standardized_labels = (self.labels - offset) / torch.tensor(model.scale, dtype=torch.float64)
        # Times the number of examples, so that the mean over all examples has the weights of `label_weights`.
        self.weights_per_label = label_weights(self.standardized_labels) * len(self.standardized_labels)
        if any(isinstance(record, Rating) and record.label_weights for record in self.records):
            self.weights_per_label = weight_labels(self.weights_per_label, self.records, self.objectives)
        self.token_rows = [encoded.token_rows for encoded in encode_records(model, self.records)]
        self.lengths: Sequence[Sequence[int]] = [[len(row) for row in rows] for rows in self.token_rows]
        check_lengths(self, model.max_length)

    def example_name(self, index: int) -> str:
        """The id of the prompt, or the start of the response."""
        record = self.records[index]
        return record.prompt.id or repr(
            (record.response if isinstance(record, Rating) else record.chosen)[:40]
        )

    def make_loss_fn(self, indices: Sequence[int]) -> MicrobatchLossFn:
        """The loss of one optimizer step, micro-batch by micro-batch, with weights from the whole data."""
        index = torch.tensor(list(indices))
        is_pair, labels = self.is_pair[index], self.standardized_labels[index]
        # A mean over random examples estimates the loss over the whole data without bias.
        weights = self.weights_per_label[index] / len(indices)
        total_weights = weights.sum(0).tolist()

        def microbatch_loss(positions: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
            rows = [self.token_rows[indices[i]] for i in positions]
            device = device_of(self.network)
            logits = self.model(*pad_sequences([row for both in rows for row in both], device=device))
            first = torch.tensor([0, *[len(both) for both in rows[:-1]]]).cumsum(0)
            at = torch.tensor(list(positions))
            losses = self._example_losses(
                logits, first.to(device), is_pair[at].to(device), labels[at].to(logits)
            )
            by_objective = [
                weighted_loss_sum(losses[:, k], weights[at, k].to(logits)) for k in range(losses.shape[1])
            ]
            # Micro-batches add up, so each reports its share of the step's weighted mean.
            metrics = {
                f"fit/{name}/loss": float(loss.detach()) / total
                for name, loss, total in zip(self.objectives, by_objective, total_weights, strict=True)
                if total > 0
            }
            return torch.stack(by_objective).sum(), metrics

        return microbatch_loss

    def _example_losses(
        self,
        logits: Float[Tensor, "N K"],
        first_rows: Int[Tensor, " B"],
        is_pair: Bool[Tensor, " B"],
        labels: Tensor,
    ) -> Float[Tensor, "B K"]:
        """Unweighted loss per example and objective; 0 where it is not labelled."""
        chosen = logits[first_rows]
        rejected = logits[torch.where(is_pair, first_rows + 1, first_rows)]
        columns = []
        for k, kind in enumerate(self.kinds):
            # The label 0 of a pair only marks it; without the mask it would count as a rating.
            ratings = labels[:, k].masked_fill(is_pair, torch.nan)
            on_ratings = kind.rating_loss(chosen[:, k], ratings, self.head_parameters(k).to(logits))
            on_pairs = kind.pair_loss(chosen[:, k], rejected[:, k])
            columns.append(torch.where(is_pair & ~labels[:, k].isnan(), on_pairs, on_ratings))
        return torch.stack(columns, -1)


def encode_records(model: RewardModel, records: Sequence[LabelledRow]) -> list[EncodedRecord]:
    """The token rows of all records."""
    texts = [
        (record.response,) if isinstance(record, Rating) else (record.chosen, record.rejected)
        for record in records
    ]
    pairs = [(record.prompt, text) for record, own in zip(records, texts, strict=True) for text in own]
    rows = iter(encode_rows(model.tokenizer, pairs, eos_id=model.eos_id))
    groups = [list(islice(rows, len(own))) for own in texts]
    return [
        EncodedRecord([row.input_ids for row in group], min(len(row.prompt_ids) for row in group))
        for group in groups
    ]


def weight_labels(
    weights: Float[Tensor, "B K"], records: Sequence[LabelledRow], objectives: Sequence[str]
) -> Float[Tensor, "B K"]:
    """The weights times the `label_weights` of the ratings; the total of each objective stays the same."""
    factors = [
        [record.label_weights.get(name, 1.0) if isinstance(record, Rating) else 1.0 for name in objectives]
        for record in records
    ]
    weighted = weights * torch.tensor(factors, dtype=weights.dtype)
    totals = weighted.sum(0)
    return weighted * torch.where(totals > 0, weights.sum(0) / totals, 1.0)


def _check_kinds(model: RewardModel, labels: Float[Tensor, "B K"], is_pair: Bool[Tensor, " B"]) -> None:
    for k, (name, kind) in enumerate(zip(model.objectives, model.kinds, strict=True)):
        has_ratings = bool((~labels[:, k].isnan() & ~is_pair).any())
        if kind.needs == "pairs" and has_ratings:
            raise WiringError(
                f'objective "{name}": {kind.name} is a loss of pairs, and the data has ratings; '
                "fix: use mse, huber or ordinal, which pairs may accompany"
            )
        if kind.needs == "ratings" and not has_ratings:
            raise WiringError(
                f'objective "{name}": {kind.name} needs ratings, and the data has only pairs; '
                "fix: use bradley_terry"
            )


def _check_pair_objectives(records: Sequence[LabelledRow], objectives: Sequence[str]) -> None:
    for record in records:
        if isinstance(record, PreferencePair) and record.objective not in objectives:
            raise WiringError(
                f'preference pair with the unknown objective "{record.objective}"; the objectives are '
                f"{', '.join(objectives)}; fix: add it to the reward model's objectives"
            )


def _center_scores(model: RewardModel, task: RewardTask) -> None:
    """Shift every head without ratings to mean score 0: the loss of pairs does not determine the mean."""
    pairs_only = [
        k for k in range(len(model.objectives)) if not (~task.labels[~task.is_pair, k].isnan()).any()
    ]
    offset = list(model.offset)
    for k in pairs_only:
        examples = (~task.labels[:, k].isnan()).nonzero().squeeze(-1)[:CENTERING_SAMPLE_SIZE].tolist()
        scores = model.score_sequences([row for i in examples for row in task.token_rows[i]])[:, k]
        offset[k] -= float(scores.mean())
    model.set_label_scaling(model.scale, offset)
