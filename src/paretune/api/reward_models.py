"""Reward models from Python: loading, fitting, scores."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from torch import Tensor

from paretune.api.arguments import check_arguments
from paretune.api.inputs import Rows, read_pairs, read_ratings, read_samples
from paretune.api.policies import PolicyLike, as_policy
from paretune.api.scores import score_table
from paretune.core.errors import ConfigError, DataError, WiringError
from paretune.data.loader import split_by_prompt
from paretune.data.records import PreferencePair, Rating, Sample
from paretune.evaluate.judge_quality import fitted_report
from paretune.experiment.learning_rates import default_learning_rate
from paretune.experiment.settings import resolve_max_tokens_per_pass
from paretune.models.classifiers import LabelError, read_classifier
from paretune.models.load import PolicyModel
from paretune.models.lora import LoraSpec
from paretune.models.save import parameter_hash
from paretune.reward.baselines import baseline_metrics
from paretune.reward.checkpoint import (
    data_provenance,
    provenance_hashes,
    reward_model_from_lm,
    save_reward_model,
)
from paretune.reward.evaluation import reward_report
from paretune.reward.failures import FallibleScorer, GuardedScorer
from paretune.reward.heads import HeadKind, bradley_terry, huber, mse
from paretune.reward.model import RewardModel, RewardModelScorer
from paretune.reward.ordinal import Ordinal
from paretune.reward.pretrained import load_pretrained_reward_scorer, output_indices
from paretune.reward.scorers import Scorer
from paretune.reward.training import (
    LabelledRow,
    kinds_from_labels,
    label_scale_and_offset,
)
from paretune.reward.training import (
    fit_reward_model as fit_in_place,
)
from paretune.training.optimizer import OptimizerConfig
from paretune.training.supervised import FitStepCallback, SupervisedConfig

HeadLoss = Literal["mse", "huber", "ordinal", "bradley_terry"]
_KINDS: Mapping[str, Any] = {
    "mse": mse,
    "huber": huber,
    "ordinal": Ordinal,
    "bradley_terry": bradley_terry,
}


@dataclass(frozen=True, kw_only=True)
class FittedRewardModel:
    """A reward model in memory. It is a scorer: `paretune.align` and `paretune.evaluate` take it as it is."""

    model: RewardModel
    scorer: Scorer
    """Scores samples by the model."""
    report: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Metrics on held-out rows, as in reward/report.json of a run; empty if they are not known."""

    @property
    def names(self) -> tuple[str, ...]:
        """The objectives of its columns."""
        return tuple(self.scorer.names)

    @property
    def data_hashes(self) -> frozenset[str] | None:
        """Hashes of its training data; None: unknown."""
        return provenance_hashes(self.model.provenance)

    def __call__(self, samples: Sequence[Sample]) -> Tensor:
        """Scores [B, k] of samples; NaN: not scored."""
        if isinstance(self.scorer, FallibleScorer):
            return GuardedScorer("reward model", self.scorer)(samples)
        return self.scorer(samples)

    def score(self, rows: Rows) -> pa.Table:
        """Score responses: one row per response, one column per objective; null: too long to be read.

        Args:
            rows: A file, or rows with a prompt and a response.

        Raises:
            DataError: A row has no prompt or no response, or there are none.
            ScoringError: Too many responses are too long.
        """
        return score_table([self], read_samples(rows))

    def save(self, folder: str | Path) -> None:
        """Save it as a sequence classifier that transformers loads; a folder that exists is replaced."""
        save_reward_model(self.model, Path(folder))

    def weights_hash(self) -> str:
        """Hash of its weights."""
        return parameter_hash(self.model)


@check_arguments
def load_reward_model(
    path: str | Path,
    *,
    name: str = "reward",
    outputs: Mapping[str, str | int] | None = None,
    revision: str | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: str = "auto",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    max_failure_rate: float = 0.2,
) -> FittedRewardModel:
    """Load a reward model: one that this package fitted, or a ready-made one.

    Args:
        path: A model folder, a run folder (the reward model fitted in it) or a hub name.
        name: The objective of a model with a single output without a name.
        outputs: Objective -> label or index of the output; None: the labels are the objectives.
        revision: Revision on the hub.
        dtype: Precision of the body.
        device: auto, cpu or cuda.
        chat_template_kwargs: Arguments of the chat template.
        max_failure_rate: Largest share of responses that may be too long to be read.

    Raises:
        DataError: There is no such model, or its files cannot be read.
        WiringError: It is no reward model, or `outputs` do not fit it.
        ResourceError: The device is not available.
    """
    folder = Path(path)
    if (folder / "run.json").exists():
        folder = folder / "reward" / "model"
        if not folder.exists():
            fix = "resume the run, or load the reward model that its recipe names"
            raise ConfigError(f"{path}: no reward model was fitted in this run; fix: {fix}")
    location = str(folder if folder.exists() else path)
    classifier = read_classifier(location, revision=revision)
    if not outputs and classifier.from_paretune and len(classifier.labels) == 1:
        name = classifier.labels[0]
    try:
        output_indices(classifier, name=name, outputs=outputs or {})
    except LabelError as error:
        raise WiringError(f"outputs: {error}") from error
    scorer = load_pretrained_reward_scorer(
        location,
        name=name,
        outputs=outputs,
        revision=revision,
        dtype=dtype,
        device=device,
        chat_template_kwargs=chat_template_kwargs,
        max_failure_rate=max_failure_rate,
    )
    return FittedRewardModel(model=scorer.model, scorer=scorer, report=fitted_report(location))


@check_arguments
def fit_reward_model(
    ratings: Rows | None = None,
    *,
    pairs: Rows | Mapping[str, Rows] | None = None,
    init_from: PolicyLike,
    objectives: Mapping[str, HeadLoss] | Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    num_train_epochs: int = 2,
    batch_size: int = 32,
    learning_rate: float | None = None,
    lora: LoraSpec | None = None,
    max_tokens_per_pass: int | None = None,
    holdout_fraction: float = 0.1,
    seed: int = 0,
    device: str = "auto",
    on_step: FitStepCallback | None = None,
) -> FittedRewardModel:
    """Fit a reward model with one head per objective to ratings or pairs, and test it on held-out prompts.

    Args:
        ratings: A file, or rows with a prompt, a response and labels, such as scores: {"polite": 0.7}; labels
            may be missing.
        pairs: A mapping of objectives to preference pairs: files, or rows with a prompt, a chosen and a
            rejected response; or such rows with a column `objective`.
        init_from: Policy whose body it gets; it is not changed.
        objectives: Objective -> loss of its head: mse, huber or ordinal on ratings, bradley_terry on pairs
            alone; names alone: mse, or bradley_terry without ratings; empty: all labels and pairs.
        labels: Objective -> its column; None: the keys of the column `scores`.
        num_train_epochs: Passes over the rows.
        batch_size: Rows per optimizer step.
        learning_rate: None: the default for the size of the model.
        lora: Train an adapter and the heads instead of all weights.
        max_tokens_per_pass: Tokens per forward pass; None: the default of the device.
        holdout_fraction: Fraction of the prompts that are held out for the report.
        seed: Seed of the split, the adapter and the order of the rows.
        device: auto, cpu or cuda.
        on_step: Called after each step.

    Raises:
        DataError: A row is malformed, an objective has no labels, or a row is too long for the model.
        ConfigError: An unknown loss, or neither ratings nor pairs.
        WiringError: The family has no sequence classifier, or a loss does not fit its data.
    """
    records = _read_records(ratings, pairs, labels or {})
    losses = _head_losses(records, objectives)
    policy = as_policy(init_from, device)
    rate = learning_rate or _default_rate(policy, lora)
    config = SupervisedConfig(
        num_train_epochs=num_train_epochs,
        batch_size=batch_size,
        max_tokens_per_pass=resolve_max_tokens_per_pass(max_tokens_per_pass, device),
        optim_config=OptimizerConfig(learning_rate=rate, warmup_ratio=0.05, lr_scheduler_type="cosine"),
    )
    return _fit(policy, records, losses, config, lora, holdout_fraction, seed, on_step)


def _fit(
    policy: PolicyModel,
    records: Sequence[LabelledRow],
    losses: Mapping[str, str],
    config: SupervisedConfig,
    lora: LoraSpec | None,
    holdout_fraction: float,
    seed: int,
    on_step: FitStepCallback | None,
) -> FittedRewardModel:
    train, test = split_by_prompt(records, holdout_fraction, seed)
    if not train or not test:
        side = "hold out" if not test else "train on"
        fix = "add rows, or choose another holdout_fraction or seed"
        raise DataError(f"no prompts are left to {side}, of {len(records)} rows; fix: {fix}")
    kinds: dict[str, HeadKind] = {name: _KINDS[loss]() for name, loss in losses.items()}
    scale, offset = label_scale_and_offset(train, tuple(losses), kinds)
    kinds = kinds_from_labels(train, kinds, test)

    def new_model() -> RewardModel:
        return reward_model_from_lm(policy, tuple(losses), scale, offset, kinds=kinds, lora=lora, seed=seed)

    model = new_model()
    fit_in_place(model, train, config, seed=seed, on_step=on_step)
    model.provenance = data_provenance(train)
    baselines = baseline_metrics(new_model(), train, test, seed=seed)
    report = reward_report(model, test, train=train, baselines=baselines)
    return FittedRewardModel(model=model, scorer=RewardModelScorer(model), report=report)


def _read_records(
    ratings: Rows | None, pairs: Rows | Mapping[str, Rows] | None, labels: Mapping[str, str]
) -> tuple[LabelledRow, ...]:
    if ratings is None and pairs is None:
        raise ConfigError(
            "paretune.fit_reward_model: neither ratings nor pairs; fix: pass one of them, or both"
        )
    records: list[LabelledRow] = [] if ratings is None else [*read_ratings(ratings, labels)]
    if ratings is None and labels:
        raise ConfigError("paretune.fit_reward_model: labels: pairs have none; fix: leave it out")
    if isinstance(pairs, Mapping) and "chosen" in pairs:
        raise ConfigError("paretune.fit_reward_model: pairs: are one row; fix: pass a list of rows")
    if isinstance(pairs, Mapping):
        for name, rows in pairs.items():
            if not isinstance(name, str) or not name.strip() or isinstance(rows, Mapping):
                fix = 'pairs={"polite": [{"prompt": ..., "chosen": ..., "rejected": ...}]}'
                raise ConfigError(
                    f"paretune.fit_reward_model: pairs: {name!r} names no list of pairs; fix: {fix}"
                )
            records += read_pairs(rows, name)
    elif pairs is not None:
        records += read_pairs(pairs)
    return tuple(records)


def _head_losses(
    records: Sequence[LabelledRow], objectives: Mapping[str, HeadLoss] | Sequence[str]
) -> dict[str, str]:
    rated = dict.fromkeys(name for record in records if isinstance(record, Rating) for name in record.labels)
    paired = dict.fromkeys(record.objective for record in records if isinstance(record, PreferencePair))
    names: Iterable[str] = objectives or [*rated, *(name for name in paired if name not in rated)]
    losses = {name: "bradley_terry" if name in paired and name not in rated else "mse" for name in names}
    if isinstance(objectives, Mapping):
        losses.update(objectives)
    for name, loss in losses.items():
        if loss not in _KINDS:
            raise ConfigError(
                f"objectives.{name}: {loss!r} is none of {', '.join(_KINDS)}; fix: write one of these"
            )
    return losses


def _default_rate(policy: PolicyModel, lora: LoraSpec | None) -> float:
    size = sum(parameter.numel() for parameter in policy.model.parameters())
    return default_learning_rate("supervised", size, lora=lora is not None)
