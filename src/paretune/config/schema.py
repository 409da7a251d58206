"""The schema of a recipe: one frozen, strict section per concern. What is not here cannot be set."""

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, PrivateAttr, StringConstraints, Tag, model_validator

from paretune.config.sources import (
    Count,
    Dtype,
    Lora,
    Name,
    Place,
    Positive,
    PromptSource,
    RewardSection,
    Section,
    Sft,
    Share,
    Text,
)

_WHEN = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9_-]*)\s*>=\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*$")


Point = Annotated[tuple[Annotated[int, Field(ge=0)], float], Field(strict=False)]
"""A training step, and a weight."""


class WorldSection(Section):
    """The built-in help desk: its data is made, not read, and its true scores are known."""

    prompts: Count = 600
    test_prompts: Count = 240
    rated: Count = 3000
    """Responses that the raters label."""
    demonstrations: Count = 4000
    """Responses that the starting policy learns from."""
    raters: Count = 4
    noise: Annotated[float, Field(ge=0)] = 0.08
    """Standard deviation of one rater's error."""
    length_bias: float = 0.1
    """How much higher raters mark a long answer than a short one."""
    missing: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Share of labels that nobody gave."""


class DataSection(Section):
    """Where prompts come from: files, or the built-in world."""

    root: Place = "."
    """The folder that every `file` lies below."""
    world: WorldSection | None = None
    prompts: dict[Name, PromptSource] = Field(default_factory=dict)
    """What the policy is aligned on."""
    test: dict[Name, PromptSource] = Field(default_factory=dict)
    """What it is evaluated on, before and after."""


class PolicySection(Section):
    """The language model to be aligned."""

    path: Place
    """A folder, a hub name, or "world": a small one trained from scratch in the built-in world."""
    revision: Text | None = None
    """Branch, tag or commit of a hub name."""
    dtype: Dtype = "float32"
    lora: Lora | None = None
    sft: Sft | None = None


class ObjectiveSection(Section):
    """What one objective counts in the training signal."""

    weight: float = 1.0
    schedule: Annotated[tuple[Point, ...], Field(strict=False)] = ()
    """[[step, weight], ...]: the weight moves in straight lines, instead of `weight`."""
    by_kind: dict[Text, float] = Field(default_factory=dict)
    """Weight for prompts of a kind; `weight` is for all others."""
    when: str | None = None
    """A gate such as "safety >= 0.5": below it `otherwise` stands for the objective's score."""
    otherwise: float | None = None
    """The objective's worst score, in its own units; null: 0, the worst of a label from 0 to 1."""
    cap: float | None = None
    """A score that is good enough: more counts no more."""
    target: float | None = None
    """The best score: nearer is better."""
    at_least: float | None = None
    """A level that a constraint keeps, or from which the next objective of an order decides."""
    constraint: Literal["mean", "rate", "quantile"] = "mean"
    """What must reach `at_least`: the mean, the rate of responses with a score of `at`, the `at`-quantile."""
    at: float | None = None

    @property
    def gate(self) -> tuple[str, float] | None:
        """The objective the gate looks at and its threshold; none where there is no gate."""
        found = _WHEN.match(self.when or "")
        try:
            return (found[1], float(found[2])) if found else None
        except ValueError:
            return None


class AlgorithmSection(Section):
    """The algorithm by name; every further key is an argument of its function."""

    model_config = ConfigDict(extra="allow")

    name: Text

    @property
    def arguments(self) -> dict[str, Any]:
        """The further keys."""
        return dict(self.__pydantic_extra__ or {})


class AggregateSection(AlgorithmSection):
    """How the objectives become one; every further key is an argument of that way."""

    name: Text = "weighted"
    missing: Literal["drop", "renormalise", "group_mean"] | None = None
    """What a missing score means; null: a response that lacks one is not learnt from."""


class LearnSection(Section):
    """How the policy moves."""

    lr: Positive = 1e-5
    prompts: Count = 16
    """Prompts a step."""
    micro_tokens: Count = 8192
    """Tokens a forward pass; changes memory and speed, never the result."""
    warmup: Share = 0.03
    schedule: Literal["constant", "cosine"] = "constant"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: Positive = 1.0
    """Largest norm of the gradient."""


class RunSection(Section):
    """Where a run lies and how long it is."""

    folder: Place = "runs/run"
    """Left out: runs/NAME, and runs/NAME-seed-N for a seed other than 0."""
    steps: Count = 60
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    checkpoint_every: Count = 10
    keep: Count = 2
    """Checkpoints to keep."""
    threads: Count | None = None
    """CPU threads; null: as many as torch takes by itself."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the models are put; auto: on the first CUDA device, where there is one."""


class EvaluateSection(Section):
    """How before and after are compared."""

    n: Count = 1
    """Responses a test prompt."""
    most: Count | None = None
    """At most this many test prompts."""
    max_new: Count | None = None
    """Longest response; null: as in training."""
    temperature: Positive = 1.0
    draws: Annotated[int, Field(ge=100)] = 10_000
    """Bootstrap draws."""
    margin: dict[Name, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Smallest change that matters, by objective."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1000


def _judge_tag(value: Any) -> str:
    return "truth" if isinstance(value, str) else "section"


Judge = Annotated[
    Annotated[RewardSection, Tag("section")] | Annotated[Literal["truth"], Tag("truth")],
    Discriminator(_judge_tag),
]


class Experiment(Section):
    """One recipe, checked and complete: everything a run depends on."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    data: DataSection
    policy: PolicySection
    reward: RewardSection
    judge: Judge | None = None
    """Scores the evaluation: a model fitted on other data, or the world's truth; null: the reward itself."""
    objectives: dict[Name, ObjectiveSection] = Field(min_length=1)
    algorithm: AlgorithmSection
    aggregate: AggregateSection = AggregateSection()
    learn: LearnSection = LearnSection()
    run: RunSection = RunSection()
    evaluate: EvaluateSection = EvaluateSection()
    _origins: dict[tuple[str | int, ...], str] = PrivateAttr(default_factory=dict)
    _given: str = PrivateAttr(default="")

    @model_validator(mode="before")
    @classmethod
    def _default_folder(cls, values: Any) -> Any:
        """Give the run folder its default, which depends on the name and the seed."""
        run = values.get("run") or {} if isinstance(values, dict) else None
        if not isinstance(run, dict) or "folder" in run or not isinstance(values.get("name"), str):
            return values
        seed = run.get("seed", 0)
        folder = PurePosixPath(
            "runs", values["name"] if seed in {0, None} else f"{values['name']}-seed-{seed}"
        )
        return {**values, "run": {**run, "folder": str(folder)}}

    @property
    def weights(self) -> dict[str, float]:
        """Objective -> its weight."""
        return {name: objective.weight for name, objective in self.objectives.items()}

    @property
    def gates(self) -> tuple[tuple[str, str, float, float], ...]:
        """(objective, the one its gate looks at, threshold, worth below it) for each that has a gate."""
        found = ((name, o.gate, o.otherwise or 0.0) for name, o in self.objectives.items())
        return tuple((name, *gate, otherwise) for name, gate, otherwise in found if gate is not None)
