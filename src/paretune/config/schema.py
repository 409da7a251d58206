"""Schema of a recipe: one frozen, strict section per concern. A key that is not declared here is an error."""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    PrivateAttr,
    StringConstraints,
    Tag,
    model_validator,
)

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
    RewardHeadSection,
    RewardSection,
    Section,
    SftSection,
)
from paretune.config.objective_schema import (
    GateFields,
    ObjectiveSection,
    parse_correctness_threshold,
)
from paretune.config.rollout_schema import LocalRolloutSection, RolloutSection
from paretune.config.scorer_schema import LlmJudgeScorerSection, ScorerSection
from paretune.config.tracker_schema import TrackerEntry
from paretune.config.unknown import KnownItems
from paretune.core.goals import Goal
from paretune.core.types import NonNegativeFloat, PositiveFloat, PositiveInt, UnitInterval
from paretune.data.prompt_formats import PromptFormat
from paretune.worlds import get_world

RUN_NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
"""Valid run names; the run folder has the same name, so they are valid file names everywhere."""

RefusalDirection = Literal["up", "down"]
"""Better direction of a refusal rate."""
CheckpointRule = Literal["last", "lower_bound", "dominance"]
"""How the policy of a run is chosen among those that were evaluated during its training."""
STEP_EVALUATION_KEYS = ("eval_steps", "eval_prompts", "select_checkpoint", "early_stopping_patience")
"""Keys of the section evaluate that decide the training too: where it ends, and which policy it ends with."""


def _default_refusal_categories() -> "dict[str, RefusalDirection]":
    """The categories of the built-in world."""
    return {name: "up" if d == "up" else "down" for name, d in get_world().refusal_categories.items()}


class WorldSection(Section):
    """The built-in help desk: synthetic data whose true scores are known."""

    num_prompts: PositiveInt = 600
    num_test_prompts: PositiveInt = 240
    num_ratings: PositiveInt = 3000
    """Responses labeled by the simulated raters."""
    num_demonstrations: PositiveInt = 4000
    """Responses for the supervised fine-tuning of the initial policy."""
    num_raters: PositiveInt = 4
    rater_noise: NonNegativeFloat = 0.08
    """Standard deviation of the error of a single rater."""
    length_bias: float = 0.1
    """Rating bonus of a long response over a short one."""
    missing_rate: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Fraction of labels that are missing."""
    confidence: bool = False
    """Prompts ask for a confidence from 0 to 10; the initial policy is overconfident."""
    confidence_bias: float = 0.1
    """Rating bonus of a response that states full confidence over one that states none."""
    thinking: bool = False
    """The initial policy can think in tags before the response, if the prompt asks for it."""

    @property
    def prompt_format(self) -> PromptFormat:
        """The prompt format that the initial policy was trained on."""
        return "confidence" if self.confidence else "think" if self.thinking else ""


class StoredResponsesSection(Section):
    """Stored responses and their scores, in the units of the objectives."""

    ratings: dict[Name, RatingSource] = Field(default_factory=dict)
    """Rated responses; those to the same prompt are compared with each other."""
    pairs: dict[Name, PairSource] = Field(default_factory=dict)
    """Pairs; the chosen response scores 1 and the rejected one 0 in the pair's objective."""


class DataSection(Section):
    """Source of the prompts: files, or the built-in world."""

    root: PathStr = "."
    """The folder that every `file` is relative to."""
    world: WorldSection | None = None
    prompts: dict[Name, PromptSource] = Field(default_factory=dict)
    """Prompts to align the policy on."""
    test_prompts: dict[Name, PromptSource] = Field(default_factory=dict)
    """Prompts to evaluate the policy on, before and after."""
    holdout_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Instead of `test_prompts`: the fraction of the different prompts in `prompts` that is held out for the
    evaluation, with all their rows in every file, chosen by `run.seed`."""
    stored_responses: StoredResponsesSection = StoredResponsesSection()
    """Training data of offline methods, with `algorithm.response_source: stored`."""
    demonstrations: dict[Name, DemonstrationSource] = Field(default_factory=dict)
    """Data of the auxiliary LM loss (`algorithm.auxiliary_lm_coef`); empty: that of policy.sft."""


class PolicySection(Section):
    """The language model to align."""

    path: PathStr
    """A folder, a hub name, or "world": a small model trained from scratch in the built-in world."""
    revision: NonEmptyStr | None = None
    """Branch, tag or commit of a hub name."""
    chat_template_kwargs: dict[NonEmptyStr, JsonValue] = Field(default_factory=dict)
    """Arguments of the chat template, passed to every rendering, such as {enable_thinking: false}."""
    dtype: Dtype = "float32"
    lora: LoraSection | None = None
    sft: SftSection | None = None


class AlgorithmSection(Section):
    """The algorithm by name; every further key is an argument of its function."""

    model_config = ConfigDict(extra="allow")

    name: NonEmptyStr

    @property
    def arguments(self) -> dict[str, Any]:
        """All keys except `name`."""
        extra = self.__pydantic_extra__
        return extra if isinstance(extra, KnownItems) else dict(extra or {})


class AggregateSection(AlgorithmSection):
    """Aggregation of the objectives into one reward; every further key is an argument of the aggregator."""

    name: NonEmptyStr = "weighted_sum"
    missing: Literal["drop", "renormalize", "group_mean"] | None = None
    """How to treat a missing score; null: a response that lacks one is not trained on."""


class ThinkingSection(Section):
    """The policy thinks in tags before its response, and only the response is scored."""

    invalid_format: Literal["penalize", "drop"]
    """A response with missing or repeated tags: penalize, give it the worst score so far; drop, do not train
    on it."""


class TrainingSection(Section):
    """Optimization of the policy."""

    learning_rate: PositiveFloat | None = None
    """Learning rate of AdamW. Null: the default for the size of the policy, from 1e-4 below 100 million
    parameters to 1e-6 from 4 billion on, and ten times as high with LoRA; `paretune check` shows it."""
    prompts_per_step: PositiveInt = 16
    """Prompts per training step."""
    max_tokens_per_pass: PositiveInt | None = None
    """Tokens per forward pass with gradients; affects memory and speed only. Null: 1,024 on a CPU, else
    16,384, and up to three times a prompt that responses share. A number is a strict limit, even if prompts
    have to be read several times."""
    gradient_checkpointing: Literal["none", "recompute", "offload"] = "none"
    """Activations in the backward pass: kept, recomputed, or offloaded to main memory."""
    fsdp: Literal["auto", "no_shard", "shard_grad_op", "full_shard"] = "auto"
    """How several ranks hold the weights: all of them each; in parts, whole through a step (ZeRO-2); or in
    parts, each layer gathered when it is needed in an update (ZeRO-3). auto: the first that fits. No effect
    on the numbers."""
    optim: Literal["adamw_torch", "adamw_8bit"] = "adamw_torch"
    """adamw_8bit stores AdamW's moments in 8 bits, a quarter of the memory; needs package bitsandbytes."""
    warmup_ratio: UnitInterval = 0.03
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "constant"
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    """Gradient clipping: maximum norm."""


BudgetResource = Literal["rollout_tokens", "trained_tokens", "reward_calls"]
"""What a budget counts: response tokens sampled, tokens trained on, or responses scored."""


class BudgetSection(Section):
    """Budget of an alignment, its preceding phases included."""

    resource: BudgetResource
    limit: PositiveInt


class RunSection(Section):
    """Output folder, length and hardware of a run."""

    output_dir: PathStr = "runs/run"
    """Default: runs/NAME, or runs/NAME-seed-N for a seed other than 0."""
    max_steps: PositiveInt = 60
    budget: BudgetSection | None = None
    """Stop, even before `max_steps`, after the step that comes nearest to this limit."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    save_steps: PositiveInt = 10
    save_total_limit: PositiveInt = 2
    """Number of checkpoints to keep."""
    num_threads: PositiveInt | None = None
    """CPU threads; null: torch's default. Sums may differ in their last bits."""
    num_workers: PositiveInt = 1
    """Worker processes of a gradient-free method; affects speed only, not the result."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the models; auto: the first CUDA device if there is one, else the CPU."""


class EvaluateSection(Section):
    """Evaluation of the policy before and after."""

    num_generations: PositiveInt = 1
    """Responses per test prompt."""
    max_prompts: PositiveInt | None = None
    """Maximum number of test prompts."""
    max_new_tokens: PositiveInt | None = None
    """Maximum response length; null: as in training."""
    temperature: PositiveFloat = 1.0
    bootstrap_samples: Annotated[int, Field(ge=100)] = 10_000
    """Bootstrap resamples for the confidence intervals."""
    non_inferiority_margin: dict[Name, NonNegativeFloat] = Field(default_factory=dict)
    """Smallest change that matters, by objective."""
    correct_if: str | None = None
    """Definition of a correct response, such as "quality >= 0.5", to calibrate stated confidence."""
    refusal_categories: dict[NonEmptyStr, RefusalDirection] = Field(
        default_factory=_default_refusal_categories
    )
    """Prompt categories whose refusals are evaluated -> better direction of the refusal rate, up or down."""
    pairwise: dict[Name, LlmJudgeScorerSection] = Field(default_factory=dict)
    """Judges that compare the responses before and after training, each pair in both orders, by the criteria
    of their rubric; the keys are those of an `llm_judge`. They give win rates, also length-controlled; see
    docs/pairwise.md."""
    verdict: NonEmptyStr = "all"
    """Where several judges score an objective: the verdict that `all` share, that of the `majority`, or that
    of the judge of this name (`judge` is the section judge)."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1000
    eval_steps: PositiveInt | None = None
    """Also evaluate the policy every `eval_steps` training steps and after the last one, on held-out training
    prompts; null: only before and after training. See docs/checkpoints.md."""
    eval_prompts: PositiveInt = 64
    """Number of training prompts held out for these evaluations, drawn with `run.seed`."""
    select_checkpoint: CheckpointRule = "last"
    """Which evaluated step the run keeps. last: the last one. lower_bound: the one with the largest lower
    bound of the weighted gain. dominance: of the steps that no other step dominates, the one whose worst
    objective has the largest lower bound."""
    early_stopping_patience: PositiveInt | None = None
    """Stop training after this many evaluations in a row at which the judge's gain was below its best while
    the training reward rose; null: never."""


def _judge_tag(value: Any) -> str:
    return "ground_truth" if isinstance(value, str) else "section"


# The tag keeps pydantic from reporting the errors of both branches for one wrong value.
Judge = Annotated[
    Annotated[RewardSection, Tag("section")] | Annotated[Literal["ground_truth"], Tag("ground_truth")],
    Discriminator(_judge_tag),
]


class Config(Section):
    """One recipe, validated and complete: everything that a run depends on."""

    name: Annotated[str, StringConstraints(pattern=RUN_NAME_PATTERN)]
    data: DataSection
    policy: PolicySection
    reward: RewardSection | None = None
    """A reward model that the run fits, or a fitted one; not needed if `scorers` score every objective."""
    scorers: dict[Name, ScorerSection] = Field(default_factory=dict)
    """Further signals, each of a `type`: python, rule, classifier, reward_model or llm_judge. An objective
    takes the scorer that scores its name, or that its key `scorer` names."""
    judge: Judge | None = None
    """Scores the evaluation: a model fitted to other data, or ground_truth, the true scores of the built-in
    world; null: `judges`, or without any the training reward itself."""
    judges: dict[Name, ScorerSection] = Field(default_factory=dict)
    """Further judges of the evaluation, as `scorers`; each has its own table, see `evaluate.verdict`."""
    objectives: dict[Name, ObjectiveSection] = Field(min_length=1)
    algorithm: AlgorithmSection
    aggregate: AggregateSection = AggregateSection()
    thinking: ThinkingSection | None = None
    rollout: RolloutSection = LocalRolloutSection()
    training: TrainingSection = TrainingSection()
    run: RunSection = RunSection()
    evaluate: EvaluateSection = EvaluateSection()
    trackers: Annotated[tuple[TrackerEntry, ...], Field(strict=False)] = ()
    """Where else the metrics are shown: a list of tensorboard, wandb, trackio and mlflow, or of sections with
    a `type`; see docs/trackers.md. Separate processes send them."""
    _origins: dict[tuple[str | int, ...], str] = PrivateAttr(default_factory=dict)
    _columns: dict[tuple[str | int, ...], int] = PrivateAttr(default_factory=dict)
    _source_text: str = PrivateAttr(default="")

    @model_validator(mode="before")
    @classmethod
    def _default_output_dir(cls, values: Any) -> Any:
        """Fill in the run folder, whose default depends on the name and the seed."""
        run = values.get("run") or {} if isinstance(values, dict) else None
        if not isinstance(run, dict) or "output_dir" in run or not isinstance(values.get("name"), str):
            return values
        seed = run.get("seed", 0)
        output_dir = PurePosixPath(
            "runs", values["name"] if seed in (0, None) else f"{values['name']}-seed-{seed}"
        )
        return {**values, "run": {**run, "output_dir": str(output_dir)}}

    @property
    def num_step_evaluations(self) -> int:
        """Largest number of evaluations during the training, that of its last step included."""
        interval = self.evaluate.eval_steps
        return 0 if interval is None else -(-self.run.max_steps // interval)

    @property
    def reward_heads(self) -> dict[str, RewardHeadSection]:
        """The heads that the reward model is fitted with; empty if it is fitted already, or there is none."""
        return {} if self.reward is None else self.reward.objectives

    @property
    def weights(self) -> dict[str, float]:
        """Objective -> weight."""
        return {name: objective.weight for name, objective in self.objectives.items()}

    @property
    def initial_weights(self) -> dict[str, float]:
        """Objective -> weight in the first step, schedules included."""
        return self._weights_at(0)

    @property
    def final_weights(self) -> dict[str, float]:
        """Objective -> weight at the end of its schedule."""
        return self._weights_at(-1)

    def _weights_at(self, point: int) -> dict[str, float]:
        return {
            name: objective.weight_schedule[point][1] if objective.weight_schedule else objective.weight
            for name, objective in self.objectives.items()
        }

    @property
    def thinking_objectives(self) -> dict[str, str]:
        """Objective that scores the thinking -> its reward head."""
        return {
            name: objective.scores_from
            for name, objective in self.objectives.items()
            if objective.scored_text == "thinking" and objective.scores_from is not None
        }

    @property
    def correctness_threshold(self) -> tuple[str, float] | None:
        """Definition of a correct response: (objective, minimum score); None if there is none."""
        is_judged = self.judge == "ground_truth" or "meaningfulness" in self.objectives
        has_default = self.data.world is not None and self.data.world.confidence and is_judged
        return parse_correctness_threshold(
            self.evaluate.correct_if or ("meaningfulness >= 0.7" if has_default else None)
        )

    @property
    def goals(self) -> dict[str, Goal]:
        """Objective -> its goal."""
        return {name: objective.direction for name, objective in self.objectives.items()}

    @property
    def gates(self) -> tuple[GateFields, ...]:
        """(objective, gating objective, threshold, fallback score, comparison) of each objective with a gate.

        0 stands for a fallback that is the worst label, until the data are read (`apply_labels`). The usual
        comparison, >=, is left out.
        """
        gates: list[GateFields] = []
        for name, objective in self.objectives.items():
            if (gate := objective.parsed_gate) is not None:
                values = name, gate.objective, gate.threshold, objective.gate_fallback or 0.0
                gates.append(values if gate.comparison == ">=" else (*values, gate.comparison))
        return tuple(gates)
