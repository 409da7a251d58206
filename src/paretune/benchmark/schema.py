"""Schema of a benchmark file: methods, seeds and weightings under one budget."""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from paretune.config.data_schema import Name, NonEmptyStr, PathStr, ScalarOrList, Section
from paretune.config.schema import RUN_NAME_PATTERN, BudgetResource
from paretune.core.types import PositiveInt

Seed = Annotated[int, Field(ge=0, lt=2**63)]


def _default_weightings() -> dict[str, dict[str, float]]:
    return {"recipe": {}}


class BenchmarkBudget(Section):
    """Budget of every run, preceding phases included."""

    resource: BudgetResource | Literal["steps"]
    """What is limited. steps: those of the alignment, with learning rates as in the recipe alone; for one
    method only, since a step of another method may cost more."""
    limit: PositiveInt


class TuningSection(Section):
    """Tuning trials: every method gets the same number before it is compared."""

    num_trials: PositiveInt
    seed: Seed = 100
    """Training seed of every trial; must not be one of `seeds`."""
    search_space: dict[NonEmptyStr, ScalarOrList] = Field(min_length=1)
    """Recipe key -> values to try. With more combinations than `num_trials`, a random subset is tried."""
    select_by: Literal["reward", "judge"] = "reward"
    """Scorer that selects the best trial, by its scores of responses to training prompts."""


class BenchmarkConfig(Section):
    """A benchmark file: the methods, the common recipe, the budget and the statistics."""

    name: Annotated[str, StringConstraints(pattern=RUN_NAME_PATTERN)]
    recipe: PathStr
    """Base recipe of every run: a shipped recipe or a file."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Changes to the recipe for every run: nested keys, or a list of a.b=c."""
    methods: dict[Name, dict[str, Any]] = Field(min_length=1)
    """Method -> changes to the recipe. `algorithm` replaces the recipe's, other sections are merged."""
    seeds: Annotated[tuple[Seed, ...], Field(strict=False, min_length=1)] = (0, 1, 2)
    weightings: dict[Name, dict[Name, float]] = Field(default_factory=_default_weightings, min_length=1)
    """Name -> weights of objectives that replace the recipe's."""
    budget: BenchmarkBudget
    tuning: TuningSection | None = None
    reference_point: dict[Name, float] = Field(default_factory=dict)
    """Reference point of the hypervolume, in the units of the judge."""
    baseline: Name | None = None
    """Method that the others are compared with; default: the first."""
    scatter_pairs: Annotated[
        tuple[Annotated[tuple[Name, Name], Field(strict=False)], ...], Field(strict=False)
    ] = ()
    """Pairs of objectives to plot; default: all pairs, at most the first six."""
    bootstrap_samples: Annotated[int, Field(ge=100)] = 2000
    confidence_level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Confidence level of every interval."""
    num_processes: PositiveInt = 1
    """Runs in parallel, each in its own process."""
    output_dir: PathStr = "runs/benchmark"
    """Default: runs/NAME."""

    @model_validator(mode="before")
    @classmethod
    def _default_output_dir(cls, values: Any) -> Any:
        if isinstance(values, dict) and "output_dir" not in values and isinstance(values.get("name"), str):
            return {**values, "output_dir": str(PurePosixPath("runs", values["name"]))}
        return values

    @property
    def baseline_method(self) -> str:
        """The method that the others are compared with."""
        return self.baseline or next(iter(self.methods))
