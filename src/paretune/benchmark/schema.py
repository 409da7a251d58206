"""The schema of a comparison: methods, seeds and weightings under one budget, declared beforehand."""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from paretune.config.data_schema import Name, NonEmptyStr, PathStr, ScalarOrList, Section
from paretune.config.schema import RUN_NAME_PATTERN, BudgetSection
from paretune.core.types import PositiveInt

Seed = Annotated[int, Field(ge=0, lt=2**63)]


def _default_weightings() -> dict[str, dict[str, float]]:
    return {"recipe": {}}


class TuningSection(Section):
    """Trials that choose a method's settings before it is compared; as many for every method."""

    num_trials: PositiveInt
    seed: Seed = 100
    """Of every trial; none of `seeds`."""
    search_space: dict[NonEmptyStr, ScalarOrList] = Field(min_length=1)
    """Key of a recipe -> the values to be tried; of more combinations than `num_trials` the seed draws."""
    select_by: Literal["reward", "judge"] = "reward"
    """Whose scores of answers to training prompts choose: the training reward's, or the judge's."""

    def declaration(self) -> dict[str, Any]:
        """What is written down beforehand; a choice by reward is not named, as before there was another."""
        return self.model_dump(mode="json", exclude={"by"} if self.select_by == "reward" else None)


class BenchmarkConfig(Section):
    """What is compared, on what, for how much, and how it will be judged."""

    name: Annotated[str, StringConstraints(pattern=RUN_NAME_PATTERN)]
    recipe: PathStr
    """A shipped recipe, or a file, that every run starts from."""
    overrides: dict[str, Any] = Field(default_factory=dict, alias="set")
    """What every run has otherwise than the recipe: nested keys, or a list of a.b=c."""
    methods: dict[Name, dict[str, Any]] = Field(min_length=1)
    """What each method has otherwise; its `algorithm` replaces the recipe's, other sections are laid over."""
    seeds: Annotated[tuple[Seed, ...], Field(strict=False, min_length=1)] = (0, 1, 2)
    weightings: dict[Name, dict[Name, float]] = Field(default_factory=_default_weightings, min_length=1)
    """Name -> weights of objectives that are laid over the recipe's."""
    budget: BudgetSection
    tuning: TuningSection | None = None
    reference_point: dict[Name, float] = Field(default_factory=dict)
    """The corner that hypervolumes are measured from, in the units of the judge."""
    baseline: Name | None = None
    """The method that all others are compared with; null: the first."""
    scatter_pairs: Annotated[
        tuple[Annotated[tuple[Name, Name], Field(strict=False)], ...], Field(strict=False)
    ] = ()
    """Pairs of objectives to be drawn; none: all, or the first six."""
    bootstrap_samples: Annotated[int, Field(ge=100)] = 2000
    """Of the bootstrap."""
    confidence_level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Of every interval."""
    num_processes: PositiveInt = 1
    """Runs at one time, each a process of its own."""
    output_dir: PathStr = "runs/comparison"
    """Left out: runs/NAME."""

    @model_validator(mode="before")
    @classmethod
    def _default_output_dir(cls, values: Any) -> Any:
        if isinstance(values, dict) and "folder" not in values and isinstance(values.get("name"), str):
            return {**values, "folder": str(PurePosixPath("runs", values["name"]))}
        return values

    @property
    def baseline_method(self) -> str:
        """The method that all others are compared with."""
        return self.baseline or next(iter(self.methods))
