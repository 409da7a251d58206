"""Parts by name: a typed form of every credit step, loss and model pass, for algorithms written in a recipe.

A part is its class name and its fields, such as {type: GroupNormalize, scale_rewards: none}; one of one's own
is {type: python, function: file.py:NAME, arguments: {...}}.
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, create_model

from paretune.algorithms.docstrings import field_descriptions, summary
from paretune.algorithms.user_functions import user_part
from paretune.core.errors import ParetuneError, WiringError
from paretune.credit.aggregation import (
    Gate,
    Lexicographic,
    PerCategoryWeightedSum,
    PreferenceWeightedSum,
    ScheduledWeightedSum,
    WeightedSum,
)
from paretune.credit.base import CreditStep
from paretune.credit.constraints import Constraint, Lagrangian
from paretune.credit.importance_sampling import TopEntropyTokens, TruncatedImportanceSampling
from paretune.credit.normalization import (
    BatchNormalize,
    BroadcastToTokens,
    GroupNormalize,
    LeaveOneOut,
    RunningNormalize,
    Whiten,
)
from paretune.credit.returns import Gae, RedistributeTokenRewards, ReturnToGo
from paretune.credit.scalarization import Chebyshev, HypervolumeGuidedWeighting, MinObjective
from paretune.credit.score_transforms import (
    HandleMissingScores,
    InvalidFormatPenalty,
    MissingAsZero,
    OrientScores,
    Threshold,
)
from paretune.credit.selection import BestOfN, DropZeroVarianceGroups, MaskTruncated, ResampleByRank
from paretune.credit.shaping import (
    ClipReward,
    ConfidenceCalibratedReward,
    EosTrick,
    KlPenalty,
    OverlongPenalty,
    TerminalReward,
)
from paretune.loss.auxiliary import (
    BestOfNSft,
    ClippedValueLoss,
    EntropyBonus,
    SftLoss,
    SquaredValueLoss,
)
from paretune.loss.base import Loss, WeightedLoss
from paretune.loss.kl import FullKl, KlToReference
from paretune.loss.listwise import PreferenceRanking
from paretune.loss.pairwise import Dpo, Tdpo
from paretune.loss.policy import (
    ClippedIsWeight,
    ClippedSurrogate,
    GammaWeight,
    OffPolicyMask,
    PolicyLoss,
    SoftClip,
)
from paretune.models.model_passes import (
    CriticValues,
    ModelPass,
    OldLogprobs,
    PolicyEntropy,
    RefLogprobs,
)

CREDIT_STEPS: tuple[type[CreditStep], ...] = (
    BatchNormalize,
    BestOfN,
    BroadcastToTokens,
    Chebyshev,
    ClipReward,
    ConfidenceCalibratedReward,
    DropZeroVarianceGroups,
    EosTrick,
    Gae,
    Gate,
    GroupNormalize,
    HandleMissingScores,
    HypervolumeGuidedWeighting,
    InvalidFormatPenalty,
    KlPenalty,
    Lagrangian,
    LeaveOneOut,
    Lexicographic,
    MaskTruncated,
    MinObjective,
    MissingAsZero,
    OrientScores,
    OverlongPenalty,
    PerCategoryWeightedSum,
    PreferenceWeightedSum,
    RedistributeTokenRewards,
    ResampleByRank,
    ReturnToGo,
    RunningNormalize,
    ScheduledWeightedSum,
    TerminalReward,
    Threshold,
    TopEntropyTokens,
    TruncatedImportanceSampling,
    WeightedSum,
    Whiten,
)
LOSSES: tuple[type[Loss], ...] = (
    BestOfNSft,
    ClippedIsWeight,
    ClippedSurrogate,
    ClippedValueLoss,
    Dpo,
    EntropyBonus,
    FullKl,
    GammaWeight,
    KlToReference,
    OffPolicyMask,
    PreferenceRanking,
    SftLoss,
    SoftClip,
    SquaredValueLoss,
    Tdpo,
)
MODEL_PASSES: tuple[type, ...] = (CriticValues, OldLogprobs, PolicyEntropy, RefLogprobs)

OBJECTIVE_FIELDS = ("weights", "objectives", "constraints")
"""Fields that are taken from the section `objectives` where a part does not set them."""

NESTED_PARTS: tuple[type, ...] = (Constraint,)
"""Dataclasses that are values of fields of parts."""
HIDDEN_FIELDS: Mapping[type, tuple[str, ...]] = {Dpo: ("margin",)}
"""Fields that need models of an earlier phase, which a custom algorithm has none of."""
USER_PART = "python"
"""The `type` of a part of one's own."""

_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)
_models: dict[type, type[BaseModel]] = {}


class PartError(WiringError):
    """A part refuses its fields; `path` is the argument of the algorithm and the index of the part in it."""

    def __init__(self, message: str, path: tuple[str | int, ...]) -> None:
        super().__init__(message)
        self.path = path


class UserPart(BaseModel):
    """A part of one's own: what a class, or a function, makes of the arguments."""

    model_config = _STRICT

    type: Literal["python"]
    function: str = Field(
        description="file.py:name with a path relative to the working directory, or package.module:name."
    )
    arguments: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="Its keyword arguments; weights and constraints come from the section objectives.",
    )


def _union(classes: Sequence[type], own: bool = False, **extra_fields: Any) -> Any:
    """The type of "one of these parts", told apart by `type`."""
    models = [_part_model(part, **extra_fields) for part in classes]
    if own:
        named: Any = UserPart
        models += [create_model("UserPart", __base__=named, **extra_fields) if extra_fields else named]
    return Annotated[Union[tuple(models)], Field(discriminator="type")]  # noqa: UP007  # built at run time


def _part_model(part: type, **extra_fields: Any) -> type[BaseModel]:
    """A strict model with the fields of a part; its JSON Schema documents them."""
    if part in _models and not extra_fields:
        return _models[part]
    hints, docs = get_type_hints(part), field_descriptions(part)
    declared: dict[str, Any] = {
        f.name: (
            Annotated[_field_type(hints[f.name]), Field(description=docs.get(f.name))],
            _default_of(f),
        )
        for f in fields(part)
        if f.name not in HIDDEN_FIELDS.get(part, ())
    }
    if part not in NESTED_PARTS:
        declared = {"type": (Literal[part.__name__], ...), **declared}
    model = create_model(
        part.__name__, __config__=_STRICT, __doc__=summary(part), **(declared | extra_fields)
    )
    if not extra_fields:
        _models[part] = model
    return model


def _field_type(hint: Any) -> Any:
    """The type that a recipe's value must have: nested parts as models, and lists for tuples."""
    if hint is PolicyLoss:
        return _union([loss for loss in LOSSES if issubclass(loss, PolicyLoss) and loss is not OffPolicyMask])
    if hint == tuple[Constraint, ...]:
        constraint: Any = _part_model(Constraint)
        return Annotated[tuple[constraint, ...], Field(strict=False)]
    if get_origin(hint) is tuple:
        inner = tuple(item if item is Ellipsis else _field_type(item) for item in get_args(hint))
        return Annotated[tuple.__class_getitem__(inner), Field(strict=False)]
    return hint


def _default_of(field: Any) -> Any:
    if field.default is not MISSING:
        return field.default
    if field.name in OBJECTIVE_FIELDS:
        return None
    return ... if field.default_factory is MISSING else Field(default_factory=field.default_factory)


@dataclass(frozen=True)
class PartsSchema:
    """Metadata of an annotated list of mappings, which says that they are parts of one kind."""

    kind: type
    """What they are: CreditStep, Loss or ModelPass."""
    classes: tuple[type, ...]
    """Those that a recipe can name."""
    has_coefficient: bool = False

    @property
    def list_type(self) -> Any:
        """The type of the list, for pydantic."""
        return _list_type(self)


@cache
def _list_type(schema: PartsSchema) -> Any:
    # Made on first use, since the models of all parts take a while.
    coefficient: dict[str, Any] = {"coefficient": (float, 1.0)} if schema.has_coefficient else {}
    part = _union(schema.classes, own=True, **coefficient)
    return list[part]  # type: ignore[valid-type]  # built at run time


def value_type(hint: Any) -> Any:
    """The type that pydantic checks a recipe's value of an argument with."""
    schema = next((each for each in getattr(hint, "__metadata__", ()) if isinstance(each, PartsSchema)), None)
    return hint if schema is None else schema.list_type


CREDIT = PartsSchema(CreditStep, CREDIT_STEPS)
LOSS = PartsSchema(Loss, LOSSES, has_coefficient=True)
MODEL_PASS = PartsSchema(ModelPass, MODEL_PASSES)
Parts = Sequence[Mapping[str, Any]]
"""Parts as a recipe has them: a `type`, and the fields of that class."""
_PARTS: dict[str, type] = {part.__name__: part for part in (*CREDIT_STEPS, *LOSSES, *MODEL_PASSES)}


def build_parts(
    schema: PartsSchema, values: Parts, defaults: Mapping[str, Any], argument: str = "parts"
) -> tuple[Any, ...]:
    """The parts that the values describe.

    Args:
        schema: `CREDIT`, `LOSS` or `MODEL_PASS`.
        values: One mapping per part: its `type` and its fields.
        defaults: Values of `OBJECTIVE_FIELDS`, for parts that do not set them.
        argument: Name of the argument that the values were given as.

    Raises:
        PartError: A part refuses its fields.
        pydantic.ValidationError: A value is not a part.
    """
    adapter: TypeAdapter[Any] = TypeAdapter(schema.list_type)
    parts: list[Any] = []
    for index, model in enumerate(adapter.validate_python(list(values))):
        try:
            parts.append(_build(model, defaults, schema.kind))
        except ParetuneError as error:
            raise PartError(str(error), (argument, index)) from error
    return tuple(parts)


def _build(value: Any, defaults: Mapping[str, Any], kind: type) -> Any:
    """A model as the part that it describes, nested ones included; any other value as it is."""
    if isinstance(value, tuple):
        return tuple(_build(item, defaults, kind) for item in value)
    if not isinstance(value, BaseModel):
        return value
    values = {name: _build(getattr(value, name), defaults, kind) for name in type(value).model_fields}
    name, coefficient = values.pop("type", ""), values.pop("coefficient", None)
    if name == USER_PART:
        built = user_part(values["function"], values["arguments"], defaults, kind)
    else:
        values |= {key: defaults[key] for key in OBJECTIVE_FIELDS if key in values and values[key] is None}
        built = _PARTS.get(name, Constraint)(**values)
    return built if coefficient is None else WeightedLoss(coefficient, built)


def describe_parts(parts: Sequence[Any], defaults: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The inverse of `build_parts`: the type and the fields of each part that are not their defaults.

    Raises:
        WiringError: A part is none that can be named, or needs a model that a custom algorithm has not.
    """
    values = []
    for part in parts:
        loss, coefficient = (part.loss, part.coefficient) if isinstance(part, WeightedLoss) else (part, 1.0)
        described = _described(loss, defaults)
        values.append(described if coefficient == 1.0 else {**described, "coefficient": coefficient})
    return values


def _described(part: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    name, hidden = type(part).__name__, HIDDEN_FIELDS.get(type(part), ())
    if type(part) not in NESTED_PARTS and _PARTS.get(name) is not type(part):
        raise WiringError(f"{name} is none of the parts that a recipe can name")
    described: dict[str, Any] = {} if type(part) in NESTED_PARTS else {"type": name}
    for field in fields(part):
        value = getattr(part, field.name)
        if field.name in hidden and value != field.default:
            raise WiringError(f"{name}.{field.name} needs a further model, which a custom algorithm has not")
        from_objectives = field.name in OBJECTIVE_FIELDS and value == defaults[field.name]
        if value != field.default and not from_objectives:
            described[field.name] = _plain(value, defaults)
    return described


def _plain(value: Any, defaults: Mapping[str, Any]) -> Any:
    if isinstance(value, tuple):
        return [_plain(item, defaults) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item, defaults) for key, item in value.items()}
    return _described(value, defaults) if is_dataclass(value) else value
