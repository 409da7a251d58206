"""Fitting a reward model to ratings and preference pairs at once, whatever each of them was asked about."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from paretune.core.errors import DataError, WiringError, format_issue, join_issues
from paretune.core.reductions import label_weights
from paretune.data.chat import encode_prompt, encode_response
from paretune.data.records import PreferencePair, Prompt, Rating
from paretune.models.forward.length_batching import pad_sequences
from paretune.models.forward.logprobs import device_of
from paretune.reward.losses import BradleyTerryLoss, HeadLoss, RegressionLoss, weighted_loss_sum
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
"""Training pairs whose mean score becomes the 0 of a head that only pairs speak of."""


@dataclass(frozen=True, slots=True)
class EncodedRecord:
    """A record in tokens."""

    token_rows: list[list[int]]
    """Of a rating its row; of a pair the chosen row, then the rejected one."""
    prompt_length: int
    """Where the responses begin."""


def label_matrix(records: Sequence[LabelledRow], objectives: Sequence[str]) -> Float[Tensor, "B K"]:
    """What each record says of each objective: the label, 0 for a pair, NaN where nobody was asked."""
    rows = []
    for record in records:
        if isinstance(record, Rating):
            rows.append([float(record.labels.get(name, math.nan)) for name in objectives])
        else:
            rows.append([0.0 if name == record.objective else math.nan for name in objectives])
    return torch.tensor(rows, dtype=torch.float64).reshape(len(records), len(objectives))


def label_scale_and_offset(
    records: Sequence[LabelledRow], objectives: Sequence[str]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Scale and offset of each head: standard deviation and mean of its labels; 1 and 0 with pairs alone.

    Raises:
        DataError: An objective has no data, or all its labels are equal.
    """
    labels = label_matrix(records, objectives)
    rated = torch.tensor([isinstance(record, Rating) for record in records], dtype=torch.bool)
    scale, offset, wrong = [], [], []
    for k, name in enumerate(objectives):
        known = labels[rated, k]
        known = known[~known.isnan()]
        where = f"objectives.{name}"
        if not len(known) and not (~labels[:, k].isnan()).any():
            fix = "give ratings or pairs that speak of it"
            wrong.append(format_issue(where, None, None, "", "no rating and no pair speaks of it", fix=fix))
        elif len(known) and float(known.max() - known.min()) == 0:
            said = f"all its {len(known)} labels are {known[0]:g}, so there is nothing to learn"
            wrong.append(format_issue(where, None, None, "", said, fix="add data, or remove it"))
        scale.append(float(known.std(correction=0)) if len(known) else 1.0)
        offset.append(float(known.mean()) if len(known) else 0.0)
    if wrong:
        raise DataError(join_issues(wrong))
    return tuple(scale), tuple(offset)


def data_hash(records: Sequence[LabelledRow]) -> str:
    """SHA-256 over everything the records say, in their order."""
    digest = hashlib.sha256()
    for record in records:
        turns = [[m.role, m.content] for m in record.prompt.messages]
        if isinstance(record, Rating):
            said: list[object] = [record.response, sorted((k, str(v)) for k, v in record.labels.items())]
        else:
            said = [record.chosen, record.rejected, record.objective]
        digest.update(json.dumps([turns, *said]).encode() + b"\n")
    return digest.hexdigest()


def fit_reward_model(
    model: RewardModel,
    records: Sequence[LabelledRow],
    config: SupervisedConfig,
    *,
    losses: Mapping[str, HeadLoss] | None = None,
    seed: int,
    checkpoint_config: CheckpointConfig | None = None,
    on_step: FitStepCallback | None = None,
) -> None:
    """Fit the model in place; the same call again goes on from the last checkpoint.

    Args:
        model: A new reward model whose scale and offset came from `label_scale`.
        records: Ratings and pairs, mixed; a rating that says nothing of the model's objectives is left out.
        config: Epochs, batch and optimiser.
        losses: For each objective, what its ratings are fitted by; mean squared error where it is not named.
            Pairs are always fitted by Bradley-Terry.
        seed: Orders the data.
        checkpoint_config: Checkpoints.
        on_step: Hears of each step.

    Raises:
        WiringError: A loss does not fit its objective's data, or a pair speaks of an unknown objective.
        DataError: A row is longer than the model can read.
        TrainingGuard: A loss or a gradient is not finite.
        Stopped: SIGTERM came; a checkpoint was written first.
    """
    task = RewardTask(model, records, losses or {})
    fit(task, config, seed=seed, checkpoint_config=checkpoint_config, on_step=on_step)
    _center_scores(model, task)
    model.provenance = {"sha256": data_hash(task.records), "records": str(len(task.records))}


class RewardTask:
    """A reward model on ratings and pairs; over the whole data all objectives count the same.

    A label weighs what it weighs among all labels of its objective, not among those that happen to share its
    optimiser step: else a lone label of a rare objective would carry a whole share of a step's gradient.
    """

    def __init__(
        self, model: RewardModel, records: Sequence[LabelledRow], losses: Mapping[str, HeadLoss]
    ) -> None:
        self.model: nn.Module = model
        self.network = model.network
        self.objectives = model.objectives
        labels = label_matrix(records, self.objectives)
        speaks = (~labels.isnan()).any(1).tolist()
        self.records = [record for record, said in zip(records, speaks, strict=True) if said]
        _check_pair_objectives(records, self.objectives)
        self.is_pair = torch.tensor([isinstance(r, PreferencePair) for r in self.records], dtype=torch.bool)
        self.labels = labels[torch.tensor(speaks, dtype=torch.bool)]
        self.losses = head_losses(self.objectives, self.labels, self.is_pair, losses)
        self.standardized_labels = (self.labels - torch.tensor(model.offset).double()) / torch.tensor(
            model.scale
        ).double()
        self.weights_per_label = label_weights(self.standardized_labels) * len(self.standardized_labels)
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
        """The units' labels and pairs at the weights they have in the whole data."""
        index = torch.tensor(list(indices))
        pair, labels = self.is_pair[index], self.standardized_labels[index]
        weight = self.weights_per_label[index] / len(indices)
        whole = weight.sum(0).tolist()

        def part(positions: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
            rows = [self.token_rows[indices[i]] for i in positions]
            device = device_of(self.network)
            logits = self.model(*pad_sequences([row for both in rows for row in both], device=device))
            first = torch.tensor([0, *[len(both) for both in rows[:-1]]]).cumsum(0)
            here = torch.tensor(list(positions))
            errors = self._example_losses(
                logits, first.to(device), pair[here].to(device), labels[here].to(logits)
            )
            parts = [
                weighted_loss_sum(errors[:, k], weight[here, k].to(logits)) for k in range(errors.shape[1])
            ]
            named = zip(self.objectives, parts, whole, strict=True)
            shares = {f"fit/{name}/loss": float(value.detach()) / w for name, value, w in named if w > 0}
            return torch.stack(parts).sum(), shares

        return part

    def _example_losses(
        self,
        logits: Float[Tensor, "N K"],
        first_rows: Int[Tensor, " B"],
        is_pair: Bool[Tensor, " B"],
        labels: Tensor,
    ) -> Float[Tensor, "B K"]:
        """Loss of every unit under every objective, before weights; 0 where it says nothing."""
        mine = logits[first_rows]
        other = logits[torch.where(is_pair, first_rows + 1, first_rows)]
        columns = []
        for k, (rating, comparison) in enumerate(self.losses):
            rated = rating(mine[:, k], labels[:, k].masked_fill(is_pair, torch.nan))
            compared = comparison(mine[:, k], other[:, k])
            columns.append(torch.where(is_pair & ~labels[:, k].isnan(), compared, rated))
        return torch.stack(columns, -1)


def encode_records(model: RewardModel, records: Sequence[LabelledRow]) -> list[EncodedRecord]:
    """The token rows of all records."""
    prompts: dict[Prompt, list[int]] = {}
    result = []
    for record in records:
        if record.prompt not in prompts:
            prompts[record.prompt] = encode_prompt(model.tokenizer, record.prompt)
        prompt = prompts[record.prompt]
        texts = (record.response,) if isinstance(record, Rating) else (record.chosen, record.rejected)
        ends = [encode_response(model.tokenizer, text, eos_id=model.eos_id) for text in texts]
        result.append(EncodedRecord([prompt + end for end in ends], len(prompt)))
    return result


def head_losses(
    objectives: Sequence[str],
    labels: Float[Tensor, "B K"],
    is_pair: Bool[Tensor, " B"],
    losses: Mapping[str, HeadLoss],
) -> list[tuple[RegressionLoss, BradleyTerryLoss]]:
    """For each objective, the loss of its ratings and the loss of its pairs.

    Raises:
        WiringError: A chosen loss does not fit the objective's data, or names an unknown objective.
    """
    unknown = sorted(set(losses) - set(objectives))
    if unknown:
        raise WiringError(f'a loss is chosen for "{unknown[0]}"; the objectives are {", ".join(objectives)}')
    result = []
    for k, name in enumerate(objectives):
        known = ~labels[:, k].isnan()
        loss = losses.get(name)
        if isinstance(loss, BradleyTerryLoss) and (known & ~is_pair).any():
            raise WiringError(
                f'objective "{name}": bradley_terry compares pairs, and its data holds ratings; '
                "fix: use mse or huber; pairs may stand beside ratings under either"
            )
        if isinstance(loss, RegressionLoss) and not (known & ~is_pair).any():
            raise WiringError(
                f'objective "{name}": {loss.loss_type} needs ratings, and its data holds only pairs; '
                "fix: use bradley_terry"
            )
        rating = loss if isinstance(loss, RegressionLoss) else RegressionLoss()
        result.append((rating, loss if isinstance(loss, BradleyTerryLoss) else BradleyTerryLoss()))
    return result


def _check_pair_objectives(records: Sequence[LabelledRow], objectives: Sequence[str]) -> None:
    for record in records:
        if isinstance(record, PreferencePair) and record.objective not in objectives:
            raise WiringError(
                f'a pair speaks of "{record.objective}"; the objectives are {", ".join(objectives)}; '
                "fix: name it among the reward model's objectives"
            )


def _center_scores(model: RewardModel, task: RewardTask) -> None:
    """Let 0 be the average response wherever only pairs speak: their loss does not see a shift."""
    only = [k for k in range(len(model.objectives)) if not (~task.labels[~task.is_pair, k].isnan()).any()]
    offset = list(model.offset)
    for k in only:
        units = (~task.labels[:, k].isnan()).nonzero().squeeze(-1)[:CENTERING_SAMPLE_SIZE].tolist()
        scores = model.score_sequences([row for unit in units for row in task.token_rows[unit]])[:, k]
        offset[k] -= float(scores.mean())
    model.set_label_scaling(model.scale, offset)
