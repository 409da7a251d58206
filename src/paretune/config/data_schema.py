"""Schema of the data sources (prompts, ratings, pairs, demonstrations) and of the reward model."""

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
)
from pydantic_core import PydanticCustomError

from paretune.config.unknown import UnknownValueError
from paretune.core.types import NonNegativeFloat, PositiveFloat, PositiveInt, UnitInterval
from paretune.data.labels import value_spelling

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
NonEmptyStr = Annotated[str, StringConstraints(min_length=1)]
Dtype = Literal["float32", "bfloat16"]


def expand_home(path: str) -> str:
    """The path with a leading ~ expanded; unchanged if there is no such home directory."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except (RuntimeError, ValueError):  # no such user; a NUL in the name
        return path


PathStr = Annotated[NonEmptyStr, AfterValidator(expand_home)]
"""A file, a folder, or a name on the Hugging Face hub."""


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _none_to_dict(value: Any) -> Any:
    return {} if value is None else value


def _keys_as_text(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {value_spelling(key): number for key, number in value.items()}


ExportFormat = Literal[
    "argilla",
    "distilabel",
    "helpsteer2",
    "helpsteer3",
    "label_studio",
    "nectar",
    "pku_saferlhf",
    "sharegpt",
    "ultrafeedback",
]
Scalar = str | int | float | bool
ScalarOrList = Annotated[
    tuple[Scalar, ...],
    Field(strict=False),
    BeforeValidator(_as_list, json_schema_input_type=Scalar | list[Scalar]),
]
"""One value or a list of values."""


class Section(BaseModel):
    """A section of a recipe: frozen, strict types, no unknown keys.

    The docstring of each field is its entry in docs/recipe.md.
    """

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    if not TYPE_CHECKING:  # mypy would accept every name

        def __getattr__(self, name: str) -> Any:
            """Called for what is not there: a field that is invalid, or no attribute at all."""
            if name in type(self).model_fields:
                raise UnknownValueError
            return super().__getattr__(name)


class ColumnsSection(Section):
    """Column names of a file; a column that is not named is looked up under its usual names.

    A dotted path leads into an object or list: `fields.prompt`, `metadata.scores.0.value`.
    """

    prompt: str = ""
    """"-": no prompt, the responses stand alone."""
    response: str = ""
    chosen: str = ""
    rejected: str = ""
    messages: str = ""
    scores: str = ""
    objective: str = ""
    id: str = ""
    category: str = ""
    preference_weights: str = ""
    """An object {objective: weight} per prompt, for aggregate.name preference_weighted_sum."""
    rater: str = ""
    """Who rated, if each row is one rater's; the rows of a response are then joined, see `raters`."""


class DataSource(Section):
    """One file of records, or a subset of its rows."""

    file: PathStr
    """Relative to `data.root`; or `hf:owner/name[:split]`, a dataset on the Hugging Face hub."""
    format: ExportFormat | None = None
    """The tool or data set whose export the file is, where columns alone cannot express it, such as a row
    with several responses; null: the rows are as `columns` says."""
    where: dict[str, ScalarOrList] = {}
    """Row filter: column -> the value, or list of values, that a row must have."""
    columns: ColumnsSection = ColumnsSection()
    max_rows: PositiveInt | None = None
    """Use at most this many rows, sampled with `run.seed`; rows of several raters on one response count as
    one."""
    max_length: PositiveInt | None = None
    """Maximum length of a row in tokens of the model that reads it; null: its context length."""


class PromptSource(DataSource):
    """Prompts to sample responses for."""

    category: str = ""
    """Prompt category; results are broken down by it, see `evaluate.refusal_categories`."""
    overlong: Literal["error", "drop"] = "error"
    """How to handle a prompt of more than `max_length` tokens."""
    sampling_weight: PositiveFloat = 1.0
    """Fraction of each step's prompts relative to the other sources, whatever the file sizes."""


class LabelSection(Section):
    """Source of one objective's labels: scale times the rating plus offset."""

    source: NonEmptyStr | Annotated[tuple[NonEmptyStr, ...], Field(strict=False, min_length=2)] = Field(
        alias="from"
    )
    """Column of the file, or key of its scores object; a list of columns is one rater each. A cell may hold
    a list of votes."""
    scale: float = 1.0
    offset: float = 0.0
    missing: ScalarOrList = ()
    """Values that mean "not rated", such as "N/A" or -1."""
    keep: ScalarOrList = ()
    """Values that are labels although they do not fit the others, such as 0 among 1 to 5."""
    map: Annotated[dict[str, float], BeforeValidator(_keys_as_text)] = {}
    """Value of a cell -> the number that it stands for, such as {"4 - good": 4}."""


def _parse_label(value: Any) -> Any:
    return {"from": value} if isinstance(value, str | list | tuple) else value


def _default_sources(labels: Any) -> Any:
    """The labels; those without `from` get the column of their own name."""
    if not isinstance(labels, dict):
        return labels
    return {
        name: {"from": name, **(label or {})} if label is None or isinstance(label, dict) else label
        for name, label in labels.items()
    }


class RatingSource(DataSource):
    """Responses with labels of one or more objectives."""

    labels: Annotated[
        dict[Name, Annotated[LabelSection, BeforeValidator(_parse_label)]],
        BeforeValidator(
            _default_sources, json_schema_input_type=dict[Name, LabelSection | str | list[str] | None]
        ),
    ] = Field(min_length=1)
    """Objective -> column or key of the scores object, or {from, scale, offset, missing, keep, map}; without
    `from` the column has the objective's name, as in safety: {missing: [-1]}."""
    missing: ScalarOrList = ()
    """Values that mean "not rated" in every label of the file."""
    raters: Literal["mean", "median", "separate"] | None = None
    """How several votes on one response become its label; separate: each vote is learned from, with weight
    1 / votes. Null: mean."""
    group_by: Annotated[tuple[NonEmptyStr, ...], Field(strict=False)] = ()
    """Columns that tell responses apart if each row is one rater's, such as [task]; by default
    [prompt, response] if `columns.rater` is set."""
    overlong: Literal["drop", "error", "truncate"] = "drop"
    """How to handle a row of more than `max_length` tokens; truncate: drop its oldest turns."""


class PairSource(DataSource):
    """Preference pairs: a chosen and a rejected response."""

    objective: Name | None = None
    """The objective the preference is about; null: a column names it per row."""
    overlong: Literal["drop", "error", "truncate"] = "drop"


class DemonstrationSource(DataSource):
    """Responses for supervised fine-tuning."""

    overlong: Literal["drop", "error"] = "drop"


class SupervisedTrainingSection(Section):
    """Supervised training of the policy, the reward model or the judge."""

    num_train_epochs: PositiveInt = 2
    learning_rate: PositiveFloat | None = None
    """Null: the default for the size of the model, from 3e-4 below 100 million parameters to 1e-5 from 4
    billion on, and ten times as high with LoRA; `paretune check` shows it."""
    batch_size: PositiveInt = 32
    """Rows per optimizer step."""
    warmup_ratio: UnitInterval = 0.05
    """Fraction of the steps over which the learning rate rises linearly from 0."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "cosine"
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    """Gradient clipping: maximum norm."""
    max_tokens_per_pass: PositiveInt | None = None
    """Tokens per forward pass; affects memory and speed only. Null: 1,024 on a CPU, else 16,384."""


class SftSection(SupervisedTrainingSection):
    """Supervised fine-tuning of the policy before all other stages."""

    demonstrations: dict[Name, DemonstrationSource] = {}
    """Empty: the demonstrations of the built-in world."""


class LoraSection(Section):
    """A LoRA adapter; the base weights are frozen."""

    r: PositiveInt = 16
    alpha: PositiveInt = 32
    target_modules: NonEmptyStr | Annotated[tuple[NonEmptyStr, ...], Field(strict=False)] = "all-linear"


MAX_LEVELS = 20
"""Levels of an ordinal head; more are a number scale."""


def _check_levels(levels: tuple[float, ...]) -> tuple[float, ...]:
    if len(levels) < 2:
        raise PydanticCustomError("levels", "an ordinal head has two or more; fix: write all of them")
    if len(levels) > MAX_LEVELS:
        raise PydanticCustomError("levels", "more than 20 levels are a number scale; fix: write loss: mse")
    if any(a >= b for a, b in pairwise(levels)):
        raise PydanticCustomError("levels", "they do not increase; fix: write the lowest first, each once")
    return levels


class RewardHeadSection(Section):
    """One named output of a reward model."""

    loss: Literal["mse", "huber", "bradley_terry", "calibrated", "ordinal"] = "mse"
    """mse, huber and ordinal are fitted to ratings, bradley_terry to pairs; calibrated to either, and to
    pairs in which a stated confidence raises the score of a correct response and lowers that of an incorrect
    one. Ordinal gives ratings on a few levels, such as 1 to 5, their probabilities; its score is the expected
    level."""
    levels: Annotated[tuple[float, ...], Field(strict=False), AfterValidator(_check_levels)] | None = None
    """For ordinal: all labels that a response can have, lowest first; null: those of the training rows."""
    huber_delta: PositiveFloat = 1.0
    """Where the Huber loss becomes linear, in standard deviations of the labels."""
    correct_threshold: float | None = None
    """For calibrated: the minimum label of a correct response; null: the median label."""


_HeadOrNull = Annotated[
    RewardHeadSection, BeforeValidator(_none_to_dict, json_schema_input_type=RewardHeadSection | None)
]


class RewardSection(Section):
    """A reward model: pretrained (`path`), or fitted in the run."""

    path: PathStr | None = None
    """Folder or hub name of a fitted model whose labels name the objectives."""
    init_from: PathStr = "policy"
    """Initial weights: "policy", those of the initial policy; else a folder or hub name."""
    revision: NonEmptyStr | None = None
    """Branch, tag or commit, if `path` or `init_from` is a hub name."""
    chat_template_kwargs: dict[NonEmptyStr, JsonValue] = {}
    """Arguments of the chat template of `path` or `init_from`; with init_from: policy see policy."""
    dtype: Dtype = "float32"
    lora: LoraSection | None = None
    objectives: dict[Name, _HeadOrNull] = {}
    """The heads to fit."""
    ratings: dict[Name, RatingSource] = {}
    pairs: dict[Name, PairSource] = {}
    test_ratings: dict[Name, RatingSource] = {}
    test_pairs: dict[Name, PairSource] = {}
    holdout_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Fraction of the prompts held out for the report if there are no test files."""
    allow_weak_heads: bool = False
    """Go on with a head that ranks held-out responses no better than a constant; else the run stops after the
    fit. Such a head: the 95 % interval of its rank correlation contains 0 and ends below 0.3, on 20 or more
    rows; on pairs, that of its accuracy contains 50 % and ends below 60 %."""
    training: SupervisedTrainingSection = SupervisedTrainingSection()

    @property
    def pretrained_model(self) -> tuple[str, str] | None:
        """Key and name of the model that the section names; None if it starts from the policy."""
        if self.path is not None:
            return "path", self.path
        return None if self.init_from == "policy" else ("init_from", self.init_from)
