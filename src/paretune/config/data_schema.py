"""The sections of a recipe that name data: prompts, ratings, pairs, demonstrations; and reward models."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from paretune.core.types import NonNegativeFloat, PositiveFloat, PositiveInt, UnitInterval

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
NonEmptyStr = Annotated[str, StringConstraints(min_length=1)]
Dtype = Literal["float32", "bfloat16"]


def expand_home(path: str) -> str:
    """The path with a leading ~ written out; as it is where nobody's home is meant."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except (RuntimeError, ValueError):
        return path


PathStr = Annotated[NonEmptyStr, AfterValidator(expand_home)]
"""A file, a folder, or the name of something on a hub."""


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _none_to_dict(value: Any) -> Any:
    return {} if value is None else value


Scalar = str | int | float | bool
ScalarOrList = Annotated[tuple[Scalar, ...], Field(strict=False), BeforeValidator(_as_list)]
"""One value or a list of them."""


class Section(BaseModel):
    """A part of a recipe: frozen, strict in its types, closed to unknown keys."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ColumnsSection(Section):
    """What the columns of a file are called; one that is not named is looked for by its usual names."""

    prompt: str = ""
    """"-": there is none, the responses stand alone."""
    response: str = ""
    chosen: str = ""
    rejected: str = ""
    messages: str = ""
    scores: str = ""
    objective: str = ""
    id: str = ""
    category: str = ""
    preference_weights: str = ""
    """An object {objective: weight}: what each prompt asks for, under aggregate.name preference."""


class DataSource(Section):
    """One file of records, or of a part of its rows."""

    file: PathStr
    """Below `data.root`; or `hf:owner/name[:split]`, a data set of the Hugging Face hub."""
    where: dict[str, ScalarOrList] = {}
    """Column -> the value, or the values, that rows must have to be taken."""
    columns: ColumnsSection = ColumnsSection()
    max_rows: PositiveInt | None = None
    """Take at most this many rows, drawn by `run.seed`."""
    max_length: PositiveInt | None = None
    """Longest row in tokens of the model that reads it; null: what its context holds."""


class PromptSource(DataSource):
    """Prompts that responses are sampled for."""

    category: str = ""
    """A word for this class of prompts; "harmful" and "lookalike" have their refusals counted apart."""
    overlong: Literal["error", "drop"] = "error"
    """What to do with a prompt of more than `max_tokens` tokens."""
    sampling_weight: PositiveFloat = 1.0
    """Share of each step's prompts, relative to the other sources, whatever the sizes of the files."""


class LabelSection(Section):
    """Where the label of one objective comes from: scale times a rating plus offset."""

    source: NonEmptyStr = Field(alias="from")
    """Column of the file, or aspect of its scores."""
    scale: float = 1.0
    offset: float = 0.0


def _parse_label(value: Any) -> Any:
    return {"from": value} if isinstance(value, str) else value


class RatingSource(DataSource):
    """Responses with labels of one or more objectives."""

    labels: dict[Name, Annotated[LabelSection, BeforeValidator(_parse_label)]] = Field(min_length=1)
    """Objective -> column or aspect, or {from, scale, offset}."""
    overlong: Literal["drop", "error", "cut"] = "drop"
    """What to do with a row of more than `max_tokens` tokens; cut: leave out its oldest turns."""


class PairSource(DataSource):
    """Pairs of responses of which one was chosen."""

    objective: Name | None = None
    """The objective by which the chosen response is the better one; null: a column names it row by row."""
    overlong: Literal["drop", "error", "cut"] = "drop"


class DemonstrationSource(DataSource):
    """Responses to be learnt by imitation."""

    overlong: Literal["drop", "error"] = "drop"


class SupervisedTrainingSection(Section):
    """How supervised fitting goes."""

    num_train_epochs: PositiveInt = 2
    learning_rate: PositiveFloat = 3e-4
    batch_size: PositiveInt = 32
    """Rows an optimiser step."""
    warmup_ratio: UnitInterval = 0.05
    """Share of the steps over which the rate rises from 0."""
    lr_scheduler_type: Literal["constant", "cosine"] = "cosine"
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    """Largest norm of the gradient."""
    max_tokens_per_pass: PositiveInt | None = None
    """Tokens a forward pass; changes memory and speed alone. Null: 1,024 on a CPU, else 16,384."""


class SftSection(SupervisedTrainingSection):
    """Supervised fitting of the policy before anything else."""

    demonstrations: dict[Name, DemonstrationSource] = {}
    """Left out in the built-in world, which brings its own."""


class LoraSection(Section):
    """A low-rank adapter; the weights under it stay as they are."""

    r: PositiveInt = 16
    alpha: PositiveInt = 32
    target_modules: NonEmptyStr | Annotated[tuple[NonEmptyStr, ...], Field(strict=False)] = "all-linear"


class RewardHeadSection(Section):
    """One named output of a reward model."""

    loss: Literal["mse", "huber", "bradley_terry", "calibrated"] = "mse"
    """mse and huber learn from ratings, bradley_terry from pairs; calibrated from either, and besides that a
    stated confidence raises the score of what is right and lowers that of what is wrong."""
    huber_delta: PositiveFloat = 1.0
    """Where huber turns from square to straight, in standard deviations of the labels."""
    correct_threshold: float | None = None
    """For calibrated: the label from which a rated response is right; null: the median of all."""


class RewardSection(Section):
    """A reward model: a ready-made one (`path`), or one to be fitted."""

    path: PathStr | None = None
    """Folder or hub name of a fitted model with one named label per objective."""
    init_from: PathStr = "policy"
    """"policy": start from the starting policy's weights; else a folder or hub name."""
    revision: NonEmptyStr | None = None
    """Branch, tag or commit, where `path` or `init_from` is a hub name."""
    dtype: Dtype = "float32"
    lora: LoraSection | None = None
    objectives: dict[Name, Annotated[RewardHeadSection, BeforeValidator(_none_to_dict)]] = {}
    """The heads to fit."""
    ratings: dict[Name, RatingSource] = {}
    pairs: dict[Name, PairSource] = {}
    test_ratings: dict[Name, RatingSource] = {}
    test_pairs: dict[Name, PairSource] = {}
    holdout_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the prompts kept apart for the report where no test files are named."""
    training: SupervisedTrainingSection = SupervisedTrainingSection()
