"""The loop without a gradient: ask for candidates, let each respond, tell what they were worth; repeat."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from paretune.core.errors import ConfigError, WiringError
from paretune.core.rng import torch_generator
from paretune.credit.base import Metrics, State
from paretune.models.lora_svd import LoraSvd
from paretune.reward.scorers import resolve_scorers
from paretune.rl.evolution.search import SearchState
from paretune.rl.evolution.spec import EvolutionSpec
from paretune.rl.evolution.workers import (
    CandidateEvaluator,
    CandidateRollout,
    CandidateScore,
    WorkerFactory,
    WorkerPool,
)
from paretune.rl.loop import TrainingContext, TrainStepCallback
from paretune.rl.metrics import finite_metrics, kl_metrics, peak_memory_bytes, reward_metrics, rollout_metrics
from paretune.rl.state import BUDGET_RESOURCES, Budget, budget_exhausted, require_same_run
from paretune.rl.validate import check_spec
from paretune.run.folder import Run
from paretune.training.checkpoint import Checkpoint, load_latest_checkpoint, save_checkpoint
from paretune.training.guards import StopRequest

INITIAL_SIGMA_GUESS = 0.05
"""Where the calibration of the first step size begins, in mean singular values."""
CALIBRATION_DIRECTIONS, MAX_SIGMA_DOUBLINGS = 4, 4
"""Directions that it tries at each size, and how often the size is doubled or halved at most."""


@dataclass
class SearchProgress:
    """Where an evolution stands: all that changes from generation to generation."""

    lora_svd: LoraSvd
    search_state: SearchState
    reward_state: State
    step: int = 0
    """The next one."""
    usage: dict[str, int] = field(default_factory=lambda: dict.fromkeys(BUDGET_RESOURCES, 0))
    """What all steps so far took, in each currency."""
    step_usage: dict[str, int] = field(default_factory=dict)
    """What the step under way took; the first one pays for what was tried before it."""
    unrecorded_candidates: list[CandidateScore] = field(default_factory=list)
    """Candidates that nobody paid for yet."""

    @property
    def incumbent(self) -> Float[Tensor, " N"]:
        """The incumbent: the mean of the search, and not its luckiest candidate."""
        return self.search_state.mean

    def record_step_usage(self, scores: list[CandidateScore]) -> None:
        """Open the account of a step, in which these candidates were tried."""
        scores, self.unrecorded_candidates = [*self.unrecorded_candidates, *scores], []
        tokens, rows = sum(j.num_response_tokens for j in scores), sum(j.num_responses for j in scores)
        self.step_usage = dict.fromkeys(BUDGET_RESOURCES, 0) | {
            "rollout_tokens": tokens,
            "reward_calls": rows,
        }
        self.usage = {currency: amount + self.step_usage[currency] for currency, amount in self.usage.items()}

    def save(
        self, checkpoint_dir: Path, identity: Mapping[str, Any], run: Run, save_total_limit: int
    ) -> None:
        """Write a checkpoint of the run.

        Raises:
            ResourceError: The disk is full; earlier checkpoints are untouched.
        """
        trees = {
            "search": self.search_state.state_dict(),
            "singular": self.lora_svd.to_tensors(),
            "worth": self.reward_state,
            "paid": self.usage,
        }
        numbers = {**identity, "order": list(self.lora_svd.factors)}
        save_checkpoint(
            checkpoint_dir,
            self.step,
            trees,
            numbers,
            log_offsets=run.log_offsets(),
            save_total_limit=save_total_limit,
        )
        run.update_state(step=self.step)


def evolve(
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
) -> SearchProgress:
    """Search the singular values of the policy's adapter, and leave those of the incumbent in it.

    Goes on where the run folder's last checkpoint ends. Nothing has a gradient. Everything random is drawn
    from (seed, step, purpose), so that a resumed run tries the candidates that the unbroken one tried.

    Args:
        spec: The algorithm.
        context: A policy with an adapter that was fitted, sampler, scorers and prompts.
        max_steps: Generations in all.
        seed: Of the run.
        run: Where metrics, events and checkpoints go.
        worker_factory: Makes the candidates of further processes.
        num_workers: Processes that try candidates, this one included; changes speed only.
        checkpoint_dir: Of the checkpoints; None: `checkpoints` in the run's.
        save_steps: Generations from one checkpoint to the next; there is always one at the end.
        save_total_limit: Checkpoints that are kept.
        budget: Stop, even before `max_steps`, after the generation that comes nearest to it.
        on_step: Hears of every generation after it was written down; batch and samples are the incumbent's.

    Raises:
        WiringError: The parts do not fit together, or the adapter was never trained.
        ConfigError: The folder's checkpoint is of another recipe, seed or number of steps.
        MissingExtra: The package of the search is not installed.
        TrainingGuard: A score was infinite, or no response of a candidate was scored.
        Stopped: SIGTERM came; a checkpoint was written first.
    """
    check_spec(spec, context.objectives)
    resolve_scorers(context.objectives, context.scorers)
    checkpoint_dir = checkpoint_dir or run.path / "checkpoints"
    identity = {"recipe": repr(spec), "seed": seed, "steps": max_steps}
    now = _start_or_resume(spec, context, run, identity, checkpoint_dir, seed)
    own = CandidateEvaluator(spec, context, now.lora_svd, seed)
    with StopRequest() as stop, WorkerPool(own, worker_factory, num_workers) as tried:
        while now.step < max_steps and not budget_exhausted(budget, now.usage, now.step):
            _run_and_log_generation(spec, now, tried, seed, run, budget, on_step)
            last = now.step == max_steps or budget_exhausted(budget, now.usage, now.step)
            if now.step % save_steps == 0 or last or stop.requested:
                with own.timer.phase("save"):
                    now.save(checkpoint_dir, identity, run, save_total_limit)
            stop.raise_if_stopped(f"step {now.step} of {max_steps}")
    now.lora_svd.apply_offsets(context.models.policy, now.incumbent)
    return now


def _run_and_log_generation(
    spec: EvolutionSpec,
    progress: SearchProgress,
    pool: WorkerPool,
    seed: int,
    run: Run,
    budget: Budget | None,
    on_step: TrainStepCallback | None,
) -> None:
    """A generation, written down. Its phases are those of this process: waiting for others is idle."""
    step, clock = progress.step, time.perf_counter()
    metrics, seen = run_generation(spec, progress, pool, seed)
    if budget is not None:
        metrics["budget/used"] = progress.usage[budget.resource] / budget.limit
    run.log_metrics(step, metrics)
    seconds = time.perf_counter() - clock
    run.log_timing(
        step,
        seconds=seconds,
        **pool.local_evaluator.timer.read_and_reset(seconds),
        **progress.step_usage,
        **peak_memory_bytes(),
    )
    if on_step is not None:
        on_step(step, metrics, seen.batch, seen.samples)


def run_generation(
    spec: EvolutionSpec, progress: SearchProgress, pool: WorkerPool, seed: int
) -> tuple[Metrics, CandidateRollout]:
    """One turn of the loop: the incumbent responds, then every candidate; the search moves on."""
    size, step = spec.strategy.population_size, progress.step
    seen = pool.local_evaluator.rollout(
        progress.incumbent, size, step, progress.reward_state, with_reference=True
    )
    judged = pool(progress.search_state.ask(seed, step), step, progress.reward_state)
    fitness = torch.tensor([j.fitness for j in judged], dtype=torch.float64)
    progress.search_state.tell(fitness)
    progress.record_step_usage([*judged, seen.score])
    progress.reward_state = seen.reward_state
    progress.step += 1
    metrics = rollout_metrics(seen.batch) | reward_metrics(seen.batch) | kl_metrics(seen.batch) | seen.metrics
    metrics.pop("groups/zero_variance", None)  # the responses to one prompt are not compared here
    for k, name in enumerate(seen.batch.objectives):
        metrics[f"candidates/{name}/mean"] = float(
            torch.tensor([j.objective_means[k] for j in judged]).nanmean()
        )
    return finite_metrics(
        metrics | _fitness_metrics(fitness, seen.score.fitness) | _search_metrics(progress)
    ), seen


def _fitness_metrics(fitness: Float[Tensor, " P"], incumbent: float) -> Metrics:
    """What the candidates of a generation were worth beside each other, and beside the incumbent."""
    _, counts = fitness.unique(return_counts=True)
    return {
        "fitness/mean": float(fitness.mean()),
        "fitness/best": float(fitness.max()),
        "fitness/std": float(fitness.std()),
        "fitness/incumbent": incumbent,
        "fitness/ties": float(counts[counts > 1].sum()) / len(fitness),
    }


def _search_metrics(progress: SearchProgress) -> Metrics:
    """Where the search stands after the generation."""
    return {
        "search/sigma": progress.search_state.sigma,
        "search/distance": float(progress.incumbent.norm()),
        "search/sign_flips": float(progress.lora_svd.num_negative(progress.incumbent)),
    }


def _start_or_resume(
    spec: EvolutionSpec,
    context: TrainingContext,
    run: Run,
    identity: Mapping[str, Any],
    checkpoint_dir: Path,
    seed: int,
) -> SearchProgress:
    """The state before the first generation, or that of the run's last good checkpoint."""
    found = load_latest_checkpoint(checkpoint_dir, run.log_event)
    if found is None:
        run.discard_stage(run.stage)
        knobs = LoraSvd.from_model(context.models.policy, spec.singular_value_fraction)
        sigma, owed = calibrate_sigma(CandidateEvaluator(spec, context, knobs, seed), run)
        now = SearchProgress(
            knobs,
            spec.strategy.init_state(knobs.num_params, sigma),
            spec.reward_steps.init_state(),
            unrecorded_candidates=owed,
        )
    else:
        now = _resume(spec, context, run, identity, found, seed)
    run.update_state(step=now.step)
    return now


def _resume(
    spec: EvolutionSpec,
    context: TrainingContext,
    run: Run,
    identity: Mapping[str, Any],
    checkpoint: Checkpoint,
    seed: int,
) -> SearchProgress:
    require_same_run(checkpoint, identity, run)
    knobs = LoraSvd.from_tensors(checkpoint.load_tree("singular"), tuple(checkpoint.metadata["order"]))
    weights = dict(context.models.policy.named_parameters())
    for name, factor in knobs.factors.items():
        if name not in weights or weights[name].shape != (len(factor.u), factor.vh.shape[1]):
            raise ConfigError(
                f"{run.path}: the checkpoint holds singular values of {name}, which this policy does not "
                "have; fix: choose another run.output_dir"
            )
    now = SearchProgress(
        knobs,
        spec.strategy.load_state(checkpoint.load_tree("search"), seed),
        checkpoint.load_tree("worth", spec.reward_steps.init_state()),
        step=checkpoint.step,
        usage=checkpoint.load_tree("paid"),
    )
    run.truncate_logs(checkpoint.log_offsets)
    run.log_event("go_on", f"from the checkpoint of step {checkpoint.step}")
    return now


def calibrate_sigma(evaluator: CandidateEvaluator, run: Run) -> tuple[float, list[CandidateScore]]:
    """The first step size: as given, or such that candidates differ from the start by about a standard error.

    Begins at `GUESS` mean singular values, and is doubled while the root mean square of the change in fitness
    stays below the standard error of the start's own, or halved while it stays above.

    Returns:
        The step size in units of the singular values, and the candidates that were tried.

    Raises:
        WiringError: The search would begin without a step: every singular value is 0.
    """
    e, scale = evaluator.spec, evaluator.lora_svd.mean_singular_value
    if not scale > 0:
        raise WiringError("every singular value of the adapter is 0; fix: fit it for more steps")
    if e.initial_sigma is not None:
        return e.initial_sigma * scale, []
    worth, size, ways = e.reward_steps.init_state(), evaluator.lora_svd.num_params, []
    for way in range(CALIBRATION_DIRECTIONS):
        rng = torch_generator(evaluator.seed, 0, "calibration", way)
        ways.append(torch.randn(size, generator=rng, dtype=torch.float64))
    start = evaluator.rollout(torch.zeros(size, dtype=torch.float64), evaluator.population_size, 0, worth)
    tried = [start.score]

    def quiet(sigma: float) -> bool:
        """Does the fitness change by less than a standard error?"""
        tried.extend(evaluator(sigma * torch.stack(ways), range(CALIBRATION_DIRECTIONS), 0, worth))
        gains = (
            torch.tensor([j.fitness for j in tried[-CALIBRATION_DIRECTIONS:]], dtype=torch.float64)
            - start.score.fitness
        )
        return float(gains.square().mean().sqrt()) < start.fitness_std_error

    sigma = INITIAL_SIGMA_GUESS * scale
    factor = 2.0 if quiet(sigma) else 0.5
    for _ in range(MAX_SIGMA_DOUBLINGS):
        if quiet(sigma * factor) != (factor > 1):
            break
        sigma *= factor
    run.log_event("calibrated", f"first step size {sigma:.4g}, {sigma / scale:.3g} mean singular values")
    return sigma, tried
