"""Fitting a reward model to ratings and preference pairs at once, whatever each of them was asked about."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from paretune.data.records import Preference, Prompt, Rating
from paretune.data.template import encode_prompt, encode_response
from paretune.errors import DataError, WiringError, complaint, joined
from paretune.learn.fit import Fitting, Keeping, OnStep, Part, fit, refuse_long
from paretune.models.forward import device_of
from paretune.objectives.reward_loss import BradleyTerry, HeadLoss, Regression, labelled_loss
from paretune.objectives.reward_model import RewardModel, pad_rows
from paretune.reduce import label_weights

Judgement = Rating | Preference

CENTRED_ON = 512
"""Training pairs whose mean score becomes the 0 of a head that only pairs speak of."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A record in tokens."""

    rows: list[list[int]]
    """Of a rating its row; of a pair the chosen row, then the rejected one."""
    start: int
    """Where the responses begin."""


def label_matrix(records: Sequence[Judgement], objectives: Sequence[str]) -> Float[Tensor, "B K"]:
    """What each record says of each objective: the label, 0 for a pair, NaN where nobody was asked."""
    rows = []
    for record in records:
        if isinstance(record, Rating):
            rows.append([float(record.labels.get(name, math.nan)) for name in objectives])
        else:
            rows.append([0.0 if name == record.objective else math.nan for name in objectives])
    return torch.tensor(rows, dtype=torch.float64).reshape(len(records), len(objectives))


def label_scale(
    records: Sequence[Judgement], objectives: Sequence[str]
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
            wrong.append(complaint(where, None, None, "", "no rating and no pair speaks of it", fix=fix))
        elif len(known) and float(known.max() - known.min()) == 0:
            said = f"all its {len(known)} labels are {known[0]:g}, so there is nothing to learn"
            wrong.append(complaint(where, None, None, "", said, fix="add data, or remove it"))
        scale.append(float(known.std(correction=0)) if len(known) else 1.0)
        offset.append(float(known.mean()) if len(known) else 0.0)
    if wrong:
        raise DataError(joined(wrong))
    return tuple(scale), tuple(offset)


def data_hash(records: Sequence[Judgement]) -> str:
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


def fit_reward(
    model: RewardModel,
    records: Sequence[Judgement],
    how: Fitting,
    *,
    losses: Mapping[str, HeadLoss] | None = None,
    seed: int,
    keeping: Keeping | None = None,
    on_step: OnStep | None = None,
) -> None:
    """Fit the model in place; the same call again goes on from the last checkpoint.

    Args:
        model: A new reward model whose scale and offset came from `label_scale`.
        records: Ratings and pairs, mixed; a rating that says nothing of the model's objectives is left out.
        how: Epochs, batch and optimiser.
        losses: For each objective, what its ratings are fitted by; mean squared error where it is not named.
            Pairs are always fitted by Bradley-Terry.
        seed: Orders the data.
        keeping: Checkpoints.
        on_step: Hears of each step.

    Raises:
        WiringError: A loss does not fit its objective's data, or a pair speaks of an unknown objective.
        DataError: A row is longer than the model can read.
        TrainingGuard: A loss or a gradient is not finite.
        Stopped: SIGTERM came; a checkpoint was written first.
    """
    task = Judging(model, records, losses or {})
    fit(task, how, seed=seed, keeping=keeping, on_step=on_step)
    _centre(model, task)
    model.data = {"sha256": data_hash(task.records), "records": str(len(task.records))}


class Judging:
    """A reward model on ratings and pairs; over the whole data all objectives count the same.

    A label weighs what it weighs among all labels of its objective, not among those that happen to share its
    optimiser step: else a lone label of a rare objective would carry a whole share of a step's gradient.
    """

    def __init__(
        self, model: RewardModel, records: Sequence[Judgement], losses: Mapping[str, HeadLoss]
    ) -> None:
        self.model: nn.Module = model
        self.network = model.network
        self.objectives = model.objectives
        labels = label_matrix(records, self.objectives)
        speaks = (~labels.isnan()).any(1).tolist()
        self.records = [record for record, said in zip(records, speaks, strict=True) if said]
        _check_pairs(records, self.objectives)
        self.pair = torch.tensor([isinstance(r, Preference) for r in self.records], dtype=torch.bool)
        self.labels = labels[torch.tensor(speaks, dtype=torch.bool)]
        self.losses = head_losses(self.objectives, self.labels, self.pair, losses)
        self.standard = (self.labels - torch.tensor(model.offset).double()) / torch.tensor(
            model.scale
        ).double()
        self.weight = label_weights(self.standard) * len(self.standard)
        self.rows = [encoded.rows for encoded in encode_records(model, self.records)]
        self.lengths: Sequence[Sequence[int]] = [[len(row) for row in rows] for rows in self.rows]
        refuse_long(self, model.longest)

    def name(self, unit: int) -> str:
        """The id of the prompt, or the start of the response."""
        record = self.records[unit]
        return record.prompt.id or repr(
            (record.response if isinstance(record, Rating) else record.chosen)[:40]
        )

    def open(self, units: Sequence[int]) -> Part:
        """The units' labels and pairs at the weights they have in the whole data."""
        index = torch.tensor(list(units))
        pair, labels = self.pair[index], self.standard[index]
        weight = self.weight[index] / len(units)
        whole = weight.sum(0).tolist()

        def part(positions: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
            rows = [self.rows[units[i]] for i in positions]
            device = device_of(self.network)
            logits = self.model(*pad_rows([row for both in rows for row in both], device=device))
            first = torch.tensor([0, *[len(both) for both in rows[:-1]]]).cumsum(0)
            here = torch.tensor(list(positions))
            errors = self._errors(logits, first.to(device), pair[here].to(device), labels[here].to(logits))
            parts = [labelled_loss(errors[:, k], weight[here, k].to(logits)) for k in range(errors.shape[1])]
            named = zip(self.objectives, parts, whole, strict=True)
            shares = {f"fit/{name}/loss": float(value.detach()) / w for name, value, w in named if w > 0}
            return torch.stack(parts).sum(), shares

        return part

    def _errors(
        self, logits: Float[Tensor, "N K"], first: Int[Tensor, " B"], pair: Bool[Tensor, " B"], label: Tensor
    ) -> Float[Tensor, "B K"]:
        """Loss of every unit under every objective, before weights; 0 where it says nothing."""
        mine = logits[first]
        other = logits[torch.where(pair, first + 1, first)]
        columns = []
        for k, (rating, comparison) in enumerate(self.losses):
            rated = rating(mine[:, k], label[:, k].masked_fill(pair, torch.nan))
            compared = comparison(mine[:, k], other[:, k])
            columns.append(torch.where(pair & ~label[:, k].isnan(), compared, rated))
        return torch.stack(columns, -1)


def encode_records(model: RewardModel, records: Sequence[Judgement]) -> list[Encoded]:
    """The token rows of all records."""
    prompts: dict[Prompt, list[int]] = {}
    result = []
    for record in records:
        if record.prompt not in prompts:
            prompts[record.prompt] = encode_prompt(model.tokenizer, record.prompt)
        prompt = prompts[record.prompt]
        texts = (record.response,) if isinstance(record, Rating) else (record.chosen, record.rejected)
        ends = [encode_response(model.tokenizer, text, stop=model.stop) for text in texts]
        result.append(Encoded([prompt + end for end in ends], len(prompt)))
    return result


def head_losses(
    objectives: Sequence[str],
    labels: Float[Tensor, "B K"],
    pair: Bool[Tensor, " B"],
    chosen: Mapping[str, HeadLoss],
) -> list[tuple[Regression, BradleyTerry]]:
    """For each objective, the loss of its ratings and the loss of its pairs.

    Raises:
        WiringError: A chosen loss does not fit the objective's data, or names an unknown objective.
    """
    unknown = sorted(set(chosen) - set(objectives))
    if unknown:
        raise WiringError(f'a loss is chosen for "{unknown[0]}"; the objectives are {", ".join(objectives)}')
    result = []
    for k, name in enumerate(objectives):
        known = ~labels[:, k].isnan()
        loss = chosen.get(name)
        if isinstance(loss, BradleyTerry) and (known & ~pair).any():
            raise WiringError(
                f'objective "{name}": bradley_terry compares pairs, and its data holds ratings; '
                "fix: use mse or huber; pairs may stand beside ratings under either"
            )
        if isinstance(loss, Regression) and not (known & ~pair).any():
            raise WiringError(
                f'objective "{name}": {loss.kind} needs ratings, and its data holds only pairs; '
                "fix: use bradley_terry"
            )
        rating = loss if isinstance(loss, Regression) else Regression()
        result.append((rating, loss if isinstance(loss, BradleyTerry) else BradleyTerry()))
    return result


def _check_pairs(records: Sequence[Judgement], objectives: Sequence[str]) -> None:
    for record in records:
        if isinstance(record, Preference) and record.objective not in objectives:
            raise WiringError(
                f'a pair speaks of "{record.objective}"; the objectives are {", ".join(objectives)}; '
                "fix: name it among the reward model's objectives"
            )


def _centre(model: RewardModel, task: Judging) -> None:
    """Let 0 be the average response wherever only pairs speak: their loss does not see a shift."""
    only = [k for k in range(len(model.objectives)) if not (~task.labels[~task.pair, k].isnan()).any()]
    offset = list(model.offset)
    for k in only:
        units = (~task.labels[:, k].isnan()).nonzero().squeeze(-1)[:CENTRED_ON].tolist()
        scores = model.scores([row for unit in units for row in task.rows[unit]])[:, k]
        offset[k] -= float(scores.mean())
    model.affine(model.scale, offset)
