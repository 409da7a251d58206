"""Gradient-free alignment: fits an adapter, then searches its singular values with several processes."""

from dataclasses import dataclass, replace
from pathlib import Path

from paretune.experiment.assemble import build_training_context
from paretune.experiment.console import PlainConsole
from paretune.experiment.context import RunContext
from paretune.experiment.dataset import Dataset
from paretune.experiment.phases import run_phase
from paretune.experiment.resolved import ResolvedRun
from paretune.experiment.settings import lora_spec
from paretune.models.load import PolicyModel, load_policy
from paretune.models.lora_svd import LoraSvd
from paretune.models.quantize import int8_copy
from paretune.rl.evolution.loop import train_by_evolution
from paretune.rl.evolution.spec import EvolutionSpec
from paretune.rl.evolution.workers import CandidateEvaluator
from paretune.rl.loop import TrainStepCallback
from paretune.rl.state import Budget
from paretune.run.folder import Run
from paretune.training.guards import StopRequest


@dataclass(frozen=True)
class CandidateEvaluatorFactory:
    """Makes the candidate evaluator of a worker process; it is picklable, so it can be sent there."""

    resolved: ResolvedRun
    dataset: Dataset
    output_dir: Path
    spec: EvolutionSpec

    def __call__(self, lora_svd: LoraSvd) -> CandidateEvaluator:
        """See `WorkerFactory`."""
        ctx = RunContext(
            resolved=self.resolved,
            run=Run(self.output_dir),
            console=PlainConsole(),
            dataset=self.dataset,
            stop=StopRequest(),
        )
        policy = _policy_for_search(_policy_with_adapter(ctx, self.spec), self.spec)
        context = build_training_context(ctx, self.spec, policy)
        return CandidateEvaluator(self.spec, context, lora_svd, ctx.config.run.seed)


def fit_adapter(ctx: RunContext, spec: EvolutionSpec) -> None:
    """Fit the adapter whose singular values are searched, unless it is complete."""
    run_phase(ctx, spec.adapter_phase, lora_spec(ctx.config.policy.lora) or spec.adapter)


def run_evolution(
    ctx: RunContext, spec: EvolutionSpec, budget: Budget | None, on_step: TrainStepCallback
) -> PolicyModel:
    """Search from the last checkpoint on; returns the policy with the incumbent's singular values."""
    settings = ctx.config.run
    policy = _policy_with_adapter(ctx, spec)
    progress = train_by_evolution(
        spec,
        build_training_context(ctx, spec, _policy_for_search(policy, spec)),
        max_steps=settings.max_steps,
        seed=settings.seed,
        run=ctx.run,
        worker_factory=CandidateEvaluatorFactory(ctx.resolved, ctx.dataset, ctx.run.path, spec),
        num_workers=settings.num_workers,
        save_steps=settings.save_steps,
        save_total_limit=settings.save_total_limit,
        budget=budget,
        on_step=on_step,
    )
    progress.lora_svd.apply_offsets(policy.model, progress.incumbent)
    return policy


def _policy_with_adapter(ctx: RunContext, spec: EvolutionSpec) -> PolicyModel:
    """The initial policy with its fitted adapter."""
    adapter = ctx.path("phases", spec.adapter_phase.role, "adapter")
    return load_policy(replace(ctx.initial_policy, adapter_path=str(adapter)), seed=ctx.config.run.seed)


def _policy_for_search(policy: PolicyModel, spec: EvolutionSpec) -> PolicyModel:
    """The policy that responds during the search: itself, or its int8 copy."""
    return policy if spec.base_precision == "full" else replace(policy, model=int8_copy(policy.model))
