"""Parts by name: a typed form of every credit step, loss and model pass, for algorithms written in a recipe.

A part is its class name and its fields, such as {type: GroupNormalize, scale_rewards: none}.
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, create_model

from paretune.core.errors import WiringError
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
    DistanceToTarget,
    HandleMissingScores,
    InvalidFormatPenalty,
    MissingAsZero,
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
    DistanceToTarget,
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

OBJECTIVE_FIELDS = ("weights", "objectives")
"""Fields that are taken from the section `objectives` where a part does not set them."""

NESTED_PARTS: tuple[type, ...] = (Constraint,)
"""Dataclasses that are values of fields of parts."""
HIDDEN_FIELDS: Mapping[type, tuple[str, ...]] = {Dpo: ("margin",)}
"""Fields that need models of an earlier phase, which a custom algorithm has none of."""

_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)
_models: dict[type, type[BaseModel]] = {}


def _union(classes: Sequence[type], **extra_fields: Any) -> Any:
    """The type of "one of these parts", told apart by `type`."""
    models = tuple(_part_model(part, **extra_fields) for part in classes)
    return Annotated[Union[models], Field(discriminator="type")]  # noqa: UP007  # built at run time


def _part_model(part: type, **extra_fields: Any) -> type[BaseModel]:
    """A strict model with the fields of a part; its JSON Schema documents them."""
    if part in _models and not extra_fields:
        return _models[part]
    hints = get_type_hints(part)
    declared: dict[str, Any] = {
        f.name: (_field_type(hints[f.name]), _default_of(f))
        for f in fields(part)
        if f.name not in HIDDEN_FIELDS.get(part, ())
    }
    if part not in NESTED_PARTS:
        declared = {"type": (Literal[part.__name__], ...), **declared}
    summary = (part.__doc__ or "").strip().partition("\n\n")[0]
    model = create_model(part.__name__, __config__=_STRICT, __doc__=summary, **(declared | extra_fields))
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


def _sequence_of(item: Any) -> Any:
    return Sequence.__class_getitem__(item)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class PartsSchema:
    """Metadata of an annotated list of mappings: pydantic reads them as parts of one kind."""

    kind: Any
    """The union of the models of the parts."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """The schema of a list of parts, in place of that of the mappings."""
        return handler.generate_schema(Annotated[_sequence_of(self.kind), Field(strict=False)])


CREDIT = PartsSchema(_union(CREDIT_STEPS))
LOSS = PartsSchema(_union(LOSSES, coefficient=(float, 1.0)))
"""Each with its coefficient."""
MODEL_PASS = PartsSchema(_union(MODEL_PASSES))
Parts = Sequence[Mapping[str, Any]]
"""Parts as a recipe has them: a `type`, and the fields of that class."""
_PARTS: dict[str, type] = {part.__name__: part for part in (*CREDIT_STEPS, *LOSSES, *MODEL_PASSES)}


def build_parts(schema: PartsSchema, values: Parts, weights: Mapping[str, float]) -> tuple[Any, ...]:
    """The parts that the values describe.

    Args:
        schema: `CREDIT`, `LOSS` or `MODEL_PASS`.
        values: One mapping per part: its `type` and its fields.
        weights: Weights of the objectives, for parts that do not set `weights` or `objectives`.

    Raises:
        WiringError: A part refuses its fields.
        pydantic.ValidationError: A value is not a part.
    """
    adapter: TypeAdapter[Any] = TypeAdapter(_sequence_of(schema.kind))
    models = adapter.validate_python(list(values))
    return tuple(_build(model, weights) for model in models)


def _build(value: Any, weights: Mapping[str, float]) -> Any:
    """A model as the part that it describes, nested ones included; any other value as it is."""
    if isinstance(value, tuple):
        return tuple(_build(item, weights) for item in value)
    if not isinstance(value, BaseModel):
        return value
    values = {name: _build(getattr(value, name), weights) for name in type(value).model_fields}
    part = _PARTS.get(values.pop("type", ""), Constraint)
    coefficient = values.pop("coefficient", None)
    if "weights" in values and values["weights"] is None:
        values["weights"] = dict(weights)
    if "objectives" in values and values["objectives"] is None:
        values["objectives"] = tuple(weights)
    built = part(**values)
    return built if coefficient is None else WeightedLoss(coefficient, built)


def describe_parts(parts: Sequence[Any], weights: Mapping[str, float]) -> list[dict[str, Any]]:
    """The inverse of `build_parts`: the type and the fields of each part that are not their defaults.

    Raises:
        WiringError: A part needs a model that a custom algorithm has not.
    """
    values = []
    for part in parts:
        loss, coefficient = (part.loss, part.coefficient) if isinstance(part, WeightedLoss) else (part, 1.0)
        described = _described(loss, weights)
        values.append(described if coefficient == 1.0 else {**described, "coefficient": coefficient})
    return values


def _described(part: Any, weights: Mapping[str, float]) -> dict[str, Any]:
    name, hidden = type(part).__name__, HIDDEN_FIELDS.get(type(part), ())
    if type(part) not in NESTED_PARTS and name not in _PARTS:
        raise WiringError(f"{name} is no part of a custom algorithm")
    described: dict[str, Any] = {} if type(part) in NESTED_PARTS else {"type": name}
    for field in fields(part):
        value, default = getattr(part, field.name), field.default
        if field.name in hidden and value != default:
            raise WiringError(f"{name}.{field.name} needs a further model, which a custom algorithm has not")
        from_objectives = (field.name == "weights" and value == dict(weights)) or (
            field.name == "objectives" and value == tuple(weights)
        )
        if value != default and not from_objectives:
            described[field.name] = _plain(value, weights)
    return described


def _plain(value: Any, weights: Mapping[str, float]) -> Any:
    if isinstance(value, tuple):
        return [_plain(item, weights) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item, weights) for key, item in value.items()}
    return _described(value, weights) if is_dataclass(value) else value
