"""The sections of a recipe that name data: prompts, ratings, pairs, demonstrations; and reward models."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from paretune.bounds import Count, NotNegative, Positive, Share

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
Text = Annotated[str, StringConstraints(min_length=1)]
Dtype = Literal["float32", "bfloat16"]


def at_home(path: str) -> str:
    """The path with a leading ~ written out; as it is where nobody's home is meant."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except (RuntimeError, ValueError):
        return path


Place = Annotated[Text, AfterValidator(at_home)]
"""A file, a folder, or the name of something on a hub."""


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _empty(value: Any) -> Any:
    return {} if value is None else value


Scalar = str | int | float | bool
Values = Annotated[tuple[Scalar, ...], Field(strict=False), BeforeValidator(_listed)]
"""One value or a list of them."""


class Section(BaseModel):
    """A part of a recipe: frozen, strict in its types, closed to unknown keys."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Columns(Section):
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
    kind: str = ""
    preference: str = ""
    """An object {objective: weight}: what each prompt asks for, under aggregate.name preference."""


class Source(Section):
    """One file of records, or of a part of its rows."""

    file: Place
    """Below `data.root`; or `hf:owner/name[:split]`, a data set of the Hugging Face hub."""
    where: dict[str, Values] = {}
    """Column -> the value, or the values, that rows must have to be taken."""
    columns: Columns = Columns()
    most: Count | None = None
    """Take at most this many rows, drawn by `run.seed`."""
    max_tokens: Count | None = None
    """Longest row in tokens of the model that reads it; null: what its context holds."""


class PromptSource(Source):
    """Prompts that responses are sampled for."""

    kind: str = ""
    """A word for this class of prompts; "harmful" and "lookalike" have their refusals counted apart."""
    longer: Literal["error", "drop"] = "error"
    """What to do with a prompt of more than `max_tokens` tokens."""
    share: Positive = 1.0
    """Share of each step's prompts, relative to the other sources, whatever the sizes of the files."""


class Label(Section):
    """Where the label of one objective comes from: scale times a rating plus offset."""

    source: Text = Field(alias="from")
    """Column of the file, or aspect of its scores."""
    scale: float = 1.0
    offset: float = 0.0


def _label(value: Any) -> Any:
    return {"from": value} if isinstance(value, str) else value


class RatingSource(Source):
    """Responses with labels of one or more objectives."""

    labels: dict[Name, Annotated[Label, BeforeValidator(_label)]] = Field(min_length=1)
    """Objective -> column or aspect, or {from, scale, offset}."""
    longer: Literal["drop", "error", "cut"] = "drop"
    """What to do with a row of more than `max_tokens` tokens; cut: leave out its oldest turns."""


class PairSource(Source):
    """Pairs of responses of which one was chosen."""

    objective: Name | None = None
    """The objective by which the chosen response is the better one; null: a column names it row by row."""
    longer: Literal["drop", "error", "cut"] = "drop"


class DemonstrationSource(Source):
    """Responses to be learnt by imitation."""

    longer: Literal["drop", "error"] = "drop"


class Fit(Section):
    """How supervised fitting goes."""

    epochs: Count = 2
    lr: Positive = 3e-4
    batch: Count = 32
    """Rows an optimiser step."""
    warmup: Share = 0.05
    """Share of the steps over which the rate rises from 0."""
    schedule: Literal["constant", "cosine"] = "cosine"
    weight_decay: NotNegative = 0.0
    clip: Positive = 1.0
    """Largest norm of the gradient."""
    micro_tokens: Count | None = None
    """Tokens a forward pass; changes memory and speed alone. Null: 1,024 on a CPU, else 16,384."""


class Sft(Fit):
    """Supervised fitting of the policy before anything else."""

    demonstrations: dict[Name, DemonstrationSource] = {}
    """Left out in the built-in world, which brings its own."""


class Lora(Section):
    """A low-rank adapter; the weights under it stay as they are."""

    r: Count = 16
    alpha: Count = 32
    targets: Text | Annotated[tuple[Text, ...], Field(strict=False)] = "all-linear"


class Head(Section):
    """One named output of a reward model."""

    loss: Literal["mse", "huber", "bradley_terry", "calibrated"] = "mse"
    """mse and huber learn from ratings, bradley_terry from pairs; calibrated from either, and besides that a
    stated confidence raises the score of what is right and lowers that of what is wrong."""
    delta: Positive = 1.0
    """Where huber turns from square to straight, in standard deviations of the labels."""
    right: float | None = None
    """For calibrated: the label from which a rated response is right; null: the median of all."""


class RewardSection(Section):
    """A reward model: a ready-made one (`path`), or one to be fitted."""

    path: Place | None = None
    """Folder or hub name of a fitted model with one named label per objective."""
    body: Place = "policy"
    """"policy": start from the starting policy's weights; else a folder or hub name."""
    revision: Text | None = None
    """Branch, tag or commit, where `path` or `body` is a hub name."""
    dtype: Dtype = "float32"
    lora: Lora | None = None
    objectives: dict[Name, Annotated[Head, BeforeValidator(_empty)]] = {}
    """The heads to fit."""
    ratings: dict[Name, RatingSource] = {}
    pairs: dict[Name, PairSource] = {}
    test_ratings: dict[Name, RatingSource] = {}
    test_pairs: dict[Name, PairSource] = {}
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the prompts kept apart for the report where no test files are named."""
    fit: Fit = Fit()
