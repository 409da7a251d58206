"""The schema of a recipe: one frozen, strict section per concern. What is not here cannot be set."""

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, PrivateAttr, StringConstraints, Tag, model_validator

from paretune.config.data_schema import (
    DemonstrationSource,
    Dtype,
    LoraSection,
    Name,
    NonEmptyStr,
    PairSource,
    PathStr,
    PromptSource,
    RatingSource,
    RewardSection,
    Section,
    SftSection,
)
from paretune.core.types import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, UnitInterval
from paretune.data.chat import PromptFormat

RUN_NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
"""What a run may be called: its folder is called the same."""

_THRESHOLD_PATTERN = re.compile(
    r"^\s*([A-Za-z0-9][A-Za-z0-9_-]*)\s*>=\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*$"
)


def parse_threshold(expression: str | None) -> tuple[str, float] | None:
    """The objective and the least score that "safety >= 0.5" means; None where it means nothing."""
    found = _THRESHOLD_PATTERN.match(expression or "")
    try:
        return (found[1], float(found[2])) if found else None
    except ValueError:
        return None


SchedulePoint = Annotated[tuple[NonNegativeInt, float], Field(strict=False)]
"""A training step, and a weight."""


class WorldSection(Section):
    """The built-in help desk: its data is made, not read, and its true scores are known."""

    num_prompts: PositiveInt = 600
    num_test_prompts: PositiveInt = 240
    num_ratings: PositiveInt = 3000
    """Responses that the raters label."""
    num_demonstrations: PositiveInt = 4000
    """Responses that the starting policy learns from."""
    num_raters: PositiveInt = 4
    rater_noise: NonNegativeFloat = 0.08
    """Standard deviation of one rater's error."""
    length_bias: float = 0.1
    """How much higher raters mark a long answer than a short one."""
    missing_rate: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Share of labels that nobody gave."""
    confidence: bool = False
    """Requests ask for a confidence from 0 to 10, and the starting policy claims too much."""
    confidence_bias: float = 0.1
    """How much higher raters mark an answer that is certain of itself than one that guesses."""
    thinking: bool = False
    """The starting policy has learnt to think in tags first, where it is asked to."""

    @property
    def prompt_format(self) -> PromptFormat:
        """What the starting policy has learnt to be asked."""
        return "confidence" if self.confidence else "think" if self.thinking else ""


class StoredResponsesSection(Section):
    """Stored responses and what they are worth, in the units of the objectives."""

    ratings: dict[Name, RatingSource] = Field(default_factory=dict)
    """Those to the same prompt are compared with each other."""
    pairs: dict[Name, PairSource] = Field(default_factory=dict)
    """The chosen response has 1 and the rejected one 0 in the pair's objective."""


class DataSection(Section):
    """Where prompts come from: files, or the built-in world."""

    root: PathStr = "."
    """The folder that every `file` lies below."""
    world: WorldSection | None = None
    prompts: dict[Name, PromptSource] = Field(default_factory=dict)
    """What the policy is aligned on."""
    test_prompts: dict[Name, PromptSource] = Field(default_factory=dict)
    """What it is evaluated on, before and after."""
    stored_responses: StoredResponsesSection = StoredResponsesSection()
    """Responses that offline methods learn from, with `algorithm.response_source: stored`."""
    demonstrations: dict[Name, DemonstrationSource] = Field(default_factory=dict)
    """What a method with `algorithm.auxiliary_lm_coef` is to remember; left out: the demonstrations of policy.sft."""


class PolicySection(Section):
    """The language model to be aligned."""

    path: PathStr
    """A folder, a hub name, or "world": a small one trained from scratch in the built-in world."""
    revision: NonEmptyStr | None = None
    """Branch, tag or commit of a hub name."""
    dtype: Dtype = "float32"
    lora: LoraSection | None = None
    sft: SftSection | None = None


class ObjectiveSection(Section):
    """What one objective counts in the training signal."""

    weight: float = 1.0
    weight_schedule: Annotated[tuple[SchedulePoint, ...], Field(strict=False)] = ()
    """[[step, weight], ...]: the weight moves in straight lines, instead of `weight`."""
    by_category: dict[NonEmptyStr, float] = Field(default_factory=dict)
    """Weight for prompts of a kind; `weight` is for all others."""
    gate: str | None = None
    """A gate such as "safety >= 0.5": below it `gate_fallback` stands for the objective's score."""
    gate_fallback: float | None = None
    """The objective's worst score, in its own units; null: 0, the worst of a label from 0 to 1."""
    cap: float | None = None
    """A score that is good enough: more counts no more."""
    target: float | None = None
    """The best score: nearer is better."""
    at_least: float | None = None
    """A level that a constraint keeps, or from which the next objective of an order decides."""
    constraint: Literal["mean", "rate", "quantile"] = "mean"
    """What must reach `at_least`: the mean, the rate of responses with a score of `constraint_param`, the `constraint_param`-quantile."""
    constraint_param: float | None = None
    scored_text: Literal["answer", "trace"] = "answer"
    """Of a policy that thinks: "trace" scores its thoughts, which the other objectives are not shown."""
    scores_from: Name | None = None
    """With reads: trace, the head of the reward that scores them."""

    @property
    def parsed_gate(self) -> tuple[str, float] | None:
        """The objective the gate looks at and its threshold; none where there is no gate."""
        return parse_threshold(self.gate)


class AlgorithmSection(Section):
    """The algorithm by name; every further key is an argument of its function."""

    model_config = ConfigDict(extra="allow")

    name: NonEmptyStr

    @property
    def arguments(self) -> dict[str, Any]:
        """The further keys."""
        return dict(self.__pydantic_extra__ or {})


class AggregateSection(AlgorithmSection):
    """How the objectives become one; every further key is an argument of that way."""

    name: NonEmptyStr = "weighted"
    missing: Literal["drop", "renormalise", "group_mean"] | None = None
    """What a missing score means; null: a response that lacks one is not learnt from."""


class ThinkingSection(Section):
    """The policy thinks in tags before it answers, and the answer alone is judged."""

    invalid_format: Literal["worst", "drop"]
    """A response whose tags are missing or doubled: as bad as the worst so far, or not learnt from."""


class TrainingSection(Section):
    """How the policy moves."""

    learning_rate: PositiveFloat = 1e-5
    prompts_per_step: PositiveInt = 16
    """Prompts a step."""
    max_tokens_per_pass: PositiveInt | None = None
    """Tokens of a pass with gradients; changes memory and speed alone. Null: 1,024 on a CPU, else 16,384, and
    up to three times a prompt that responses share. A number is kept to, even if prompts are read again."""
    gradient_checkpointing: Literal["keep", "recompute", "offload"] = "keep"
    """What a pass of the alignment keeps for its gradient, works out again, or moves to main memory."""
    optim: Literal["float32", "int8"] = "float32"
    """What AdamW's two means a weight are held in; int8 takes a quarter and the package bitsandbytes."""
    warmup_ratio: UnitInterval = 0.03
    lr_scheduler_type: Literal["constant", "cosine"] = "constant"
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    """Largest norm of the gradient."""


BudgetResource = Literal["rollout_tokens", "trained_tokens", "reward_calls"]
"""What an alignment may be limited in: response tokens sampled, tokens trained on, responses scored."""


class BudgetSection(Section):
    """How much an alignment may spend, what it makes beforehand included."""

    resource: BudgetResource
    limit: PositiveInt


class RunSection(Section):
    """Where a run lies and how long it is."""

    output_dir: PathStr = "runs/run"
    """Left out: runs/NAME, and runs/NAME-seed-N for a seed other than 0."""
    max_steps: PositiveInt = 60
    budget: BudgetSection | None = None
    """End, even before `max_steps`, after the step that comes nearest to this amount."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    save_steps: PositiveInt = 10
    save_total_limit: PositiveInt = 2
    """Checkpoints to keep."""
    num_threads: PositiveInt | None = None
    """CPU threads; null: as many as torch takes by itself. Sums may differ in their last bits."""
    num_workers: PositiveInt = 1
    """Processes that try the candidates of a method without gradients; changes speed, never the result."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the models are put; auto: on the first CUDA device, where there is one."""


class EvaluateSection(Section):
    """How before and after are compared."""

    num_generations: PositiveInt = 1
    """Responses a test prompt."""
    max_prompts: PositiveInt | None = None
    """At most this many test prompts."""
    max_new_tokens: PositiveInt | None = None
    """Longest response; null: as in training."""
    temperature: PositiveFloat = 1.0
    bootstrap_samples: Annotated[int, Field(ge=100)] = 10_000
    """Bootstrap draws."""
    non_inferiority_margin: dict[Name, NonNegativeFloat] = Field(default_factory=dict)
    """Smallest change that matters, by objective."""
    correct_if: str | None = None
    """What makes an answer right, such as "quality >= 0.5": stated confidence is held against it."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1000


def _judge_tag(value: Any) -> str:
    return "truth" if isinstance(value, str) else "section"


Judge = Annotated[
    Annotated[RewardSection, Tag("section")] | Annotated[Literal["truth"], Tag("truth")],
    Discriminator(_judge_tag),
]


class Config(Section):
    """One recipe, checked and complete: everything a run depends on."""

    name: Annotated[str, StringConstraints(pattern=RUN_NAME_PATTERN)]
    data: DataSection
    policy: PolicySection
    reward: RewardSection
    judge: Judge | None = None
    """Scores the evaluation: a model fitted on other data, or the world's truth; null: the reward itself."""
    objectives: dict[Name, ObjectiveSection] = Field(min_length=1)
    algorithm: AlgorithmSection
    aggregate: AggregateSection = AggregateSection()
    thinking: ThinkingSection | None = None
    training: TrainingSection = TrainingSection()
    run: RunSection = RunSection()
    evaluate: EvaluateSection = EvaluateSection()
    _origins: dict[tuple[str | int, ...], str] = PrivateAttr(default_factory=dict)
    _source_text: str = PrivateAttr(default="")

    @model_validator(mode="before")
    @classmethod
    def _default_output_dir(cls, values: Any) -> Any:
        """Give the run folder its default, which depends on the name and the seed."""
        run = values.get("run") or {} if isinstance(values, dict) else None
        if not isinstance(run, dict) or "folder" in run or not isinstance(values.get("name"), str):
            return values
        seed = run.get("seed", 0)
        folder = PurePosixPath(
            "runs", values["name"] if seed in {0, None} else f"{values['name']}-seed-{seed}"
        )
        return {**values, "run": {**run, "output_dir": str(folder)}}

    @property
    def weights(self) -> dict[str, float]:
        """Objective -> its weight."""
        return {name: objective.weight for name, objective in self.objectives.items()}

    @property
    def initial_weights(self) -> dict[str, float]:
        """Objective -> its weight in the first step, where a schedule moves it later."""
        return self._weights_at(0)

    @property
    def final_weights(self) -> dict[str, float]:
        """Objective -> its weight in the end, where a schedule moves it."""
        return self._weights_at(-1)

    def _weights_at(self, point: int) -> dict[str, float]:
        return {
            n: o.weight_schedule[point][1] if o.weight_schedule else o.weight
            for n, o in self.objectives.items()
        }

    @property
    def thinking_objectives(self) -> dict[str, str]:
        """Objective of the thoughts -> the head that scores it."""
        return {
            name: o.scores_from
            for name, o in self.objectives.items()
            if o.scored_text == "trace" and o.scores_from is not None
        }

    @property
    def correctness_threshold(self) -> tuple[str, float] | None:
        """What makes an answer right: an objective and its least score; None where nobody says."""
        known = self.judge == "truth" or "meaningfulness" in self.objectives
        world = self.data.world is not None and self.data.world.confidence and known
        return parse_threshold(self.evaluate.correct_if or ("meaningfulness >= 0.7" if world else None))

    @property
    def gates(self) -> tuple[tuple[str, str, float, float], ...]:
        """(objective, the one its gate looks at, threshold, worth below it) for each that has a gate."""
        found = ((name, o.parsed_gate, o.gate_fallback or 0.0) for name, o in self.objectives.items())
        return tuple((name, *gate, otherwise) for name, gate, otherwise in found if gate is not None)
