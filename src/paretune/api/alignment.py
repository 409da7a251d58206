"""Alignment of a policy on any mix of scorers, without a recipe."""

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from paretune.algorithms.aggregators import orient_scores
from paretune.algorithms.grpo import grpo
from paretune.api.arguments import (
    argument_error,
    check_arguments,
    check_objective_names,
    check_weights,
)
from paretune.api.inputs import Prompts, read_prompts
from paretune.api.loading import LoadingContext, ScorersLike, load_scorers
from paretune.api.policies import MakeSampler, PolicyLike, frozen_copy, load_policy
from paretune.core.batch import Batch
from paretune.core.errors import WiringError
from paretune.core.goals import Goal
from paretune.core.types import PeftModel
from paretune.credit.base import Metrics
from paretune.data.loader import PromptStream
from paretune.data.records import Prompt, Sample
from paretune.experiment.align import alignment_summary, step_values
from paretune.experiment.console import Console, make_console
from paretune.experiment.learning_rates import default_learning_rate
from paretune.experiment.scorers import SCORING_FAILURE_EVENT, identity_of
from paretune.experiment.settings import resolve_max_tokens_per_pass
from paretune.models.critic import Critic, critic_from_policy
from paretune.models.load import PolicyModel
from paretune.models.lora import AdapterDisabledModel, LoraSpec, add_lora
from paretune.models.model_passes import Models
from paretune.models.save import parameter_hash, save_model
from paretune.reward.failures import FailureCounts, GuardedScorer, describe_reasons, inner_scorers
from paretune.rl.algorithm_spec import AlgorithmSpec
from paretune.rl.context import TrainingContext
from paretune.rl.evolution.spec import EvolutionSpec
from paretune.rl.loop import TrainStepCallback, train
from paretune.rl.validate import check_spec
from paretune.rollout.probe import probe_sampler
from paretune.rollout.sampler import LocalSampler, encode_prompts
from paretune.run.folder import Run, read_jsonl
from paretune.training.optimizer import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class AlignResult:
    """An aligned policy, and the one that it started from."""

    policy: PolicyModel = field(repr=False)
    initial_policy: PolicyModel = field(repr=False)
    scorers: tuple[GuardedScorer, ...] = field(repr=False)
    """The training rewards; as `rewards` of `evaluate` they tell which judges are independent."""
    path: Path
    """The run folder: metrics.jsonl, checkpoints, and the model in `final/`."""


@check_arguments
def align(
    policy: PolicyLike,
    *,
    scorers: ScorersLike,
    prompts: Prompts,
    output_dir: str | Path,
    algorithm: AlgorithmSpec | None = None,
    goals: Mapping[str, str | float] | None = None,
    max_steps: int = 60,
    prompts_per_step: int = 16,
    learning_rate: float | None = None,
    lora: LoraSpec | None = None,
    max_tokens_per_pass: int | None = None,
    save_steps: int = 10,
    seed: int = 0,
    device: str = "auto",
    sampler: MakeSampler = LocalSampler,
    on_step: TrainStepCallback | None = None,
) -> AlignResult:
    """Align a policy on any mix of scorers; the same call resumes a run that was stopped.

    It prints the progress as `paretune run` does: a live line on a terminal, else a line every 15 seconds.

    Args:
        policy: The model to align. One in memory is trained in place.
        scorers: Reward functions, reward models, classifiers, rules or judges. Each scores one or more named
            objectives; that of a function has its name.
        prompts: The prompts to sample responses for; their further columns reach the scorers.
        output_dir: The run folder.
        algorithm: How to train, such as `paretune.algorithms.grpo({"brief": 1.0, "polite": 2.0})`; None: GRPO
            with equal weights for all objectives.
        goals: Objective -> "higher" (the default), "lower", or the number that is its best score.
        max_steps: Training steps.
        prompts_per_step: Prompts per step.
        learning_rate: None: the default for the size of the model.
        lora: Train an adapter instead of all weights.
        max_tokens_per_pass: Tokens per forward pass; None: the default of the device.
        save_steps: Steps between checkpoints.
        seed: Seed of sampling and training.
        device: auto, cpu or cuda; of a policy in memory, its scorers'.
        sampler: Makes the samplers of the policy.
        on_step: Called after each step with the step, its metrics, its batch and its samples.

    Raises:
        DataError: There are no prompts, or there is no such model.
        ConfigError: A setting of a scorer is wrong, or the folder holds another run.
        WiringError: The parts do not fit together, or the algorithm needs what only a recipe can give.
        ScoringError: A scorer failed on too many responses.
    """
    if algorithm is not None and not isinstance(algorithm, AlgorithmSpec | EvolutionSpec):
        expected = "the result of one of paretune.algorithms"
        raise argument_error(
            "align", "algorithm", algorithm, expected, 'paretune.algorithms.grpo({"polite": 1.0})'
        )
    directions = {name: Goal.of(goal) for name, goal in (goals or {}).items()}
    if algorithm is not None:
        check_weights(algorithm.name, algorithm)
    inputs = _Inputs(policy, scorers, read_prompts(prompts), Path(output_dir), algorithm, directions, sampler)
    settings = _Settings(max_steps, prompts_per_step, learning_rate, lora, max_tokens_per_pass, seed, device)
    return _align(inputs, settings, save_steps, on_step)


class _Inputs(NamedTuple):
    policy: PolicyLike
    scorers: ScorersLike
    prompts: tuple[Prompt, ...]
    output_dir: Path
    algorithm: AlgorithmSpec | None
    goals: Mapping[str, Goal]
    sampler: MakeSampler


class _Settings(NamedTuple):
    max_steps: int
    prompts_per_step: int
    learning_rate: float | None
    lora: LoraSpec | None
    max_tokens_per_pass: int | None
    seed: int
    device: str


def _align(
    inputs: _Inputs, settings: _Settings, save_steps: int, on_step: TrainStepCallback | None
) -> AlignResult:
    folder, failures, seed = inputs.output_dir, _FailureLog(), settings.seed
    model, initial, source = _policies(inputs.policy, settings.lora, seed, settings.device)
    loading = LoadingContext(
        prompts=inputs.prompts,
        tokenizer=model.tokenizer,
        run_dir=folder,
        device=settings.device,
        on_failures=failures,
    )
    rewards = load_scorers(inputs.scorers, loading)
    objectives = tuple(name for scorer in rewards for name in scorer.names)
    check_objective_names("align", "goals", inputs.goals, objectives)
    algorithm = inputs.algorithm or grpo(dict.fromkeys(objectives, 1.0))
    spec = orient_scores(algorithm, inputs.goals)
    critic = _critic(spec, objectives, source, settings)
    encode_prompts(model, inputs.prompts, max_new_tokens=spec.rollout.max_new_tokens or 0)  # all have room
    probe_sampler(model)
    limit = settings.max_tokens_per_pass
    context = TrainingContext(
        models=Models(policy=model.model, critic=critic, frozen={"reference": initial.model}),
        sampler=inputs.sampler(model, objectives),
        frozen_policy_sampler=inputs.sampler(initial, objectives),
        scorers=rewards,
        objectives=objectives,
        prompts_for_step=PromptStream((inputs.prompts,), (1.0,), settings.prompts_per_step, seed),
        optim_config=OptimizerConfig(learning_rate=settings.learning_rate or _default_rate(model)),
        max_tokens_per_pass=resolve_max_tokens_per_pass(limit, settings.device),
        strict_token_limit=limit is not None,
    )
    weights_hash = parameter_hash(initial.model)
    identity = _identity(spec, objectives, inputs.prompts, settings, weights_hash, rewards)
    console = make_console()
    with Run.start_or_resume(folder, name=folder.resolve().name, config_hash=identity) as run, console:
        failures.run = run
        console.start_stage("align", 1, 1)
        train(
            spec,
            context,
            max_steps=settings.max_steps,
            seed=seed,
            run=run,
            save_steps=save_steps,
            on_step=_with_progress(on_step, console, settings.max_steps),
        )
        save_model(model.model, model.tokenizer, folder / "final")
        summary = alignment_summary(spec.name, read_jsonl(folder / "metrics.jsonl"), objectives)
        console.finish_stage(f"{summary}; {folder}")
    return AlignResult(policy=model, initial_policy=initial, scorers=rewards, path=folder)


def _with_progress(on_step: TrainStepCallback | None, console: Console, max_steps: int) -> TrainStepCallback:
    """The callback after a step, which shows the progress as `paretune run` does."""

    def show(step: int, metrics: Metrics, batch: Batch, samples: Sequence[Sample]) -> None:
        note, values = step_values(metrics, batch.objectives)
        console.progress(step + 1, max_steps, note, values)
        if on_step is not None:
            on_step(step, metrics, batch, samples)

    return show


def _identity(
    spec: AlgorithmSpec,
    objectives: tuple[str, ...],
    prompts: tuple[Prompt, ...],
    settings: _Settings,
    weights_hash: str,
    scorers: Sequence[Any],
) -> str:
    """Hash of everything that is known to decide the numbers of the run."""
    rows = [(prompt, dict(prompt.columns)) for prompt in prompts]
    # Neither the device nor the limit of tokens changes what is trained.
    decisive = settings._replace(device="", max_tokens_per_pass=None)
    signals = [
        (name, identity_of(scorer), *(getattr(function, n, None) for n in ("signature", "load_arguments")))
        for name, scorer in inner_scorers(scorers)
        for function in [getattr(scorer, "function", None)]
    ]
    content = repr((spec, objectives, rows, decisive, weights_hash, signals))
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass
class _FailureLog:
    """Writes what could not be scored into the events of the run, once there is one."""

    run: Run | None = None

    def __call__(self, name: str, counts: FailureCounts) -> None:
        if self.run is not None:
            text = f"{name}: {counts.reasons.total():,} of {counts.num_responses:,} responses not scored"
            self.run.log_event(SCORING_FAILURE_EVENT, f"{text}: {describe_reasons(counts)}")


def _policies(
    policy: PolicyLike, lora: LoraSpec | None, seed: int, device: str
) -> tuple[PolicyModel, PolicyModel, Callable[[], PolicyModel]]:
    """The policy to train, its frozen initial weights, and what makes a copy of them without an adapter."""
    if not isinstance(policy, PolicyModel):
        path, model = policy, load_policy(policy, lora=lora, device=device, seed=seed)

        def source() -> PolicyModel:
            return load_policy(path, device=device)

        if lora is None:
            return model, frozen_copy(model), source
        return model, replace(model, model=AdapterDisabledModel(model.model)), source
    has_adapter = isinstance(policy.model, PeftModel)
    if has_adapter and lora is not None:
        raise WiringError("the policy has an adapter already; fix: leave out lora")
    if has_adapter:
        initial = replace(policy, model=AdapterDisabledModel(policy.model))
        return policy, initial, _no_base_model
    initial = frozen_copy(policy)

    def copy_of_initial() -> PolicyModel:
        return replace(initial, model=copy.deepcopy(initial.model).requires_grad_(True))

    if lora is None:
        return policy, initial, copy_of_initial
    return replace(policy, model=add_lora(policy.model, lora, seed)), initial, copy_of_initial


def _no_base_model() -> PolicyModel:
    problem = "the critic starts from the policy without its adapter, which is not in memory"
    raise WiringError(f"{problem}; fix: pass the path of the policy, and lora")


def _critic(
    spec: AlgorithmSpec,
    objectives: tuple[str, ...],
    source: Callable[[], PolicyModel],
    settings: _Settings,
) -> Critic | None:
    """The critic, if the algorithm has one.

    Raises:
        WiringError: The algorithm needs what only a recipe can give, or its parts do not fit together.
    """
    if isinstance(spec, EvolutionSpec):
        raise WiringError(f"algorithm {spec.name} cannot be used without a recipe; fix: paretune.run(recipe)")
    requirements = check_spec(spec, objectives)
    if spec.phases or requirements.stored_responses or requirements.demonstrations:
        needs = "phases" if spec.phases else "stored data"
        raise WiringError(
            f"algorithm {spec.name} needs {needs}; fix: write a recipe, and paretune.run(recipe)"
        )
    if not requirements.num_critic_heads:
        return None
    if spec.critic_init_from != "policy":
        raise WiringError('the critic starts from a reward model; fix: critic_init_from="policy"')
    return critic_from_policy(
        source().model, requirements.num_critic_heads, lora=settings.lora, seed=settings.seed
    )


def _default_rate(policy: PolicyModel) -> float:
    size = sum(parameter.numel() for parameter in policy.model.parameters())
    return default_learning_rate("alignment", size, lora=isinstance(policy.model, PeftModel))
