"""The evolution loop: ask for candidates, evaluate each on its responses, tell the search their fitness."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from paretune.core import ranks
from paretune.core.errors import ConfigError, WiringError
from paretune.core.rng import torch_generator
from paretune.credit.base import Metrics
from paretune.models.lora_svd import LoraSvd
from paretune.rl.context import TrainingContext, check_context
from paretune.rl.evolution.search import SearchState
from paretune.rl.evolution.spec import EvolutionSpec
from paretune.rl.evolution.workers import (
    CandidateEvaluator,
    CandidateRollout,
    CandidateScore,
    WorkerFactory,
    WorkerPool,
)
from paretune.rl.loop import LoopConfig, StepResult, TrainStepCallback, run_steps
from paretune.rl.metrics import finite_metrics, kl_metrics, reward_metrics, rollout_metrics
from paretune.rl.state import Budget, TrainState, start_or_resume
from paretune.run.folder import Run
from paretune.training.checkpoint import Checkpoint
from paretune.training.guards import StopRequest

INITIAL_SIGMA_GUESS = 0.05
"""First step size that the calibration tries, in mean singular values."""
CALIBRATION_DIRECTIONS, MAX_SIGMA_DOUBLINGS = 4, 4
"""Directions per tried step size, and the largest number of doublings or halvings."""


@dataclass
class EvolutionLearner:
    """The searched parameters and the state of the search."""

    lora_svd: LoraSvd
    search_state: SearchState
    unrecorded_candidates: list[CandidateScore] = field(default_factory=list)
    """Candidates of the calibration: the usage of the first step includes them."""

    @property
    def incumbent(self) -> Float[Tensor, " N"]:
        """The incumbent: the mean of the search, not its luckiest candidate."""
        return self.search_state.mean

    def trees(self) -> dict[str, Any]:
        """See `Learner`."""
        return {"search_state": self.search_state.state_dict(), "lora_svd": self.lora_svd.to_tensors()}

    def metadata(self) -> dict[str, Any]:
        """See `Learner`."""
        return {"factor_names": list(self.lora_svd.factors)}


def train_by_evolution(
    spec: EvolutionSpec,
    context: TrainingContext,
    *,
    max_steps: int,
    seed: int,
    run: Run,
    worker_factory: WorkerFactory | None = None,
    num_workers: int = 1,
    checkpoint_dir: Path | None = None,
    save_steps: int = 10,
    save_total_limit: int = 2,
    budget: Budget | None = None,
    on_step: TrainStepCallback | None = None,
) -> EvolutionLearner:
    """Search the singular values of the policy's adapter, and leave those of the incumbent in it.

    Resumes from the run's last checkpoint. Nothing has a gradient. Every random draw depends on (seed, step,
    purpose) alone, so that a resumed run evaluates the candidates of the uninterrupted one.

    Args:
        spec: The algorithm.
        context: A policy with a trained adapter, sampler, scorers and prompts.
        max_steps: Generations in all.
        seed: Seed of the run.
        run: Receives metrics, events and checkpoints.
        worker_factory: Makes the evaluators of further processes.
        num_workers: Processes that evaluate candidates, this one included; changes speed only.
        checkpoint_dir: Folder of the checkpoints; None: `checkpoints` in the run's folder.
        save_steps: Generations between checkpoints; the last one always has one.
        save_total_limit: Checkpoints that are kept.
        budget: Stops the search, even before `max_steps`, after the generation that ends nearest to it.
        on_step: Called after each generation is logged; batch and samples are the incumbent's.

    Raises:
        WiringError: The parts do not fit together, or the adapter was never trained.
        ConfigError: The checkpoint was made with another algorithm, seed or number of steps.
        MissingDependencyError: The package of the search strategy is not installed.
        NonFiniteError: A score was infinite, or no response of a candidate was scored.
        RunInterrupted: SIGTERM came; a checkpoint was written first.
    """
    check_context(spec, context)
    state = start_or_resume(
        run,
        {"algorithm": repr(spec), "seed": seed, "max_steps": max_steps},
        checkpoint_dir or run.path / "checkpoints",
        spec.reward_steps,
        start=lambda: _start(spec, context, run, seed),
        resume=lambda checkpoint: _resume(spec, context, run, checkpoint, seed),
    )
    learner = state.learner
    evaluator = CandidateEvaluator(spec, context, learner.lora_svd, seed, state.timer)
    loop = LoopConfig(max_steps, save_steps, save_total_limit, budget, on_step)
    with StopRequest() as stop, WorkerPool(evaluator, worker_factory, num_workers) as pool:
        run_steps(state, lambda: run_generation(spec, state, pool, seed), run, loop, stop)
    learner.lora_svd.apply_offsets(context.models.policy, learner.incumbent)
    return learner


def run_generation(
    spec: EvolutionSpec, state: TrainState[EvolutionLearner], pool: WorkerPool, seed: int
) -> StepResult:
    """One step of the loop: the incumbent responds, then every candidate, and the search is updated.

    The phases of the timer are those of this process: waiting for other processes is "other".
    """
    learner, size, step = state.learner, spec.strategy.population_size, state.step
    incumbent = pool.local_evaluator.rollout(
        learner.incumbent, size, step, state.reward_state, with_reference=True
    )
    # All candidates get the reward state of before the step: their order and process must not matter.
    scores = pool(learner.search_state.ask(seed, step), step, state.reward_state)
    fitness = torch.tensor([score.fitness for score in scores], dtype=torch.float64)
    learner.search_state.tell(fitness)
    _record_usage(state, [*scores, incumbent.score])
    state.reward_state = incumbent.reward_state
    state.step += 1
    metrics = (
        _incumbent_metrics(incumbent)
        | _objective_metrics(scores, incumbent.batch.objectives)
        | _fitness_metrics(fitness, incumbent.score.fitness)
        | _search_metrics(learner)
    )
    return finite_metrics(metrics), incumbent.batch, incumbent.samples


def _record_usage(state: TrainState[EvolutionLearner], scores: Sequence[CandidateScore]) -> None:
    learner = state.learner
    scores, learner.unrecorded_candidates = [*learner.unrecorded_candidates, *scores], []
    state.start_step_usage()
    state.consume("rollout_tokens", sum(score.num_response_tokens for score in scores))
    state.consume("reward_calls", sum(score.num_responses for score in scores))


def _incumbent_metrics(incumbent: CandidateRollout) -> Metrics:
    batch = incumbent.batch
    metrics = rollout_metrics(batch) | reward_metrics(batch) | kl_metrics(batch) | incumbent.metrics
    metrics.pop("groups/zero_variance", None)  # the responses to a prompt are not compared here
    return metrics


def _objective_metrics(scores: Sequence[CandidateScore], objectives: Sequence[str]) -> Metrics:
    """Mean score per objective over the candidates that have one."""
    return {
        f"candidates/{name}/mean": float(torch.tensor([each.objective_means[k] for each in scores]).nanmean())
        for k, name in enumerate(objectives)
    }


def _fitness_metrics(fitness: Float[Tensor, " P"], incumbent: float) -> Metrics:
    """Fitness over the candidates of a generation, and that of the incumbent."""
    _, counts = fitness.unique(return_counts=True)
    return {
        "fitness/mean": float(fitness.mean()),
        "fitness/best": float(fitness.max()),
        "fitness/std": float(fitness.std()),
        "fitness/incumbent": incumbent,
        "fitness/ties": float(counts[counts > 1].sum()) / len(fitness),
    }


def _search_metrics(learner: EvolutionLearner) -> Metrics:
    """The search after the generation."""
    return {
        "search/sigma": learner.search_state.sigma,
        "search/distance": float(learner.incumbent.norm()),
        "search/sign_flips": float(learner.lora_svd.num_negative(learner.incumbent)),
    }


def _start(spec: EvolutionSpec, context: TrainingContext, run: Run, seed: int) -> EvolutionLearner:
    lora_svd = LoraSvd.from_model(context.models.policy, spec.singular_value_fraction)
    sigma, candidates = calibrate_sigma(CandidateEvaluator(spec, context, lora_svd, seed), run)
    sigma = ranks.from_first(sigma)  # scorers that draw at random may give each rank another one
    return EvolutionLearner(lora_svd, spec.strategy.init_state(lora_svd.num_params, sigma), candidates)


def _resume(
    spec: EvolutionSpec, context: TrainingContext, run: Run, checkpoint: Checkpoint, seed: int
) -> EvolutionLearner:
    # Loaded, not decomposed again: another LAPACK may flip the signs of singular vectors.
    names = tuple(checkpoint.metadata["factor_names"])
    lora_svd = LoraSvd.from_tensors(checkpoint.load_tree("lora_svd"), names)
    weights = dict(context.models.policy.named_parameters())
    for name, factor in lora_svd.factors.items():
        if name not in weights or weights[name].shape != (len(factor.u), factor.vh.shape[1]):
            raise ConfigError(
                f"{run.path}: cannot resume: the checkpoint holds singular values of {name}, which this "
                "policy does not have; fix: set a new run.output_dir"
            )
    return EvolutionLearner(lora_svd, spec.strategy.load_state(checkpoint.load_tree("search_state"), seed))


def calibrate_sigma(evaluator: CandidateEvaluator, run: Run) -> tuple[float, list[CandidateScore]]:
    """The first step size: as configured, or such that candidates differ from the start by a standard error.

    Starts at `INITIAL_SIGMA_GUESS` mean singular values, and doubles while the root mean square of the change
    in fitness is below the standard error of the fitness at the start, or halves while it is above.

    Returns:
        The step size in units of the singular values, and the scores of the candidates that were evaluated.

    Raises:
        WiringError: Every singular value is 0, so that the step size would be 0.
    """
    spec, scale = evaluator.spec, evaluator.lora_svd.mean_singular_value
    if not scale > 0:
        raise WiringError("every singular value of the adapter is 0; fix: train it for more steps")
    if spec.initial_sigma is not None:
        return spec.initial_sigma * scale, []
    reward_state, size, directions = spec.reward_steps.init_state(), evaluator.lora_svd.num_params, []
    for index in range(CALIBRATION_DIRECTIONS):
        rng = torch_generator(evaluator.seed, 0, "calibration", index)
        directions.append(torch.randn(size, generator=rng, dtype=torch.float64))
    zero = torch.zeros(size, dtype=torch.float64)
    start = evaluator.rollout(zero, evaluator.population_size, 0, reward_state)
    scores = [start.score]

    def within_noise(sigma: float) -> bool:
        """Steps of this size change the fitness by less than its standard error."""
        offsets = sigma * torch.stack(directions)
        evaluated = evaluator(offsets, range(CALIBRATION_DIRECTIONS), 0, reward_state)
        scores.extend(evaluated)
        fitness = torch.tensor([score.fitness for score in evaluated], dtype=torch.float64)
        gains = fitness - start.score.fitness
        return float(gains.square().mean().sqrt()) < start.fitness_std_error

    sigma = INITIAL_SIGMA_GUESS * scale
    factor = 2.0 if within_noise(sigma) else 0.5
    for _ in range(MAX_SIGMA_DOUBLINGS):
        if within_noise(sigma * factor) != (factor > 1):
            break
        sigma *= factor
    text = f"first step size {sigma:.4g}, {sigma / scale:.3g} mean singular values"
    run.log_event("sigma_calibrated", text)
    return sigma, scores
