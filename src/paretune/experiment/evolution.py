"""An alignment without gradients: the fit of its adapter, copies of the policy, and the search itself."""

from dataclasses import dataclass, replace
from pathlib import Path

from paretune.config import Config
from paretune.experiment.assemble import build_training_context
from paretune.experiment.console import PlainConsole
from paretune.experiment.context import RunContext, lora_config
from paretune.experiment.dataset import Dataset
from paretune.experiment.phases import run_phase
from paretune.models.load import PolicyModel, load_policy
from paretune.models.lora_svd import LoraSvd
from paretune.models.quantize import int8_copy
from paretune.rl.evolution.loop import evolve
from paretune.rl.evolution.spec import EvolutionSpec
from paretune.rl.evolution.workers import CandidateEvaluator
from paretune.rl.loop import TrainStepCallback
from paretune.rl.state import Budget
from paretune.run.folder import Run
from paretune.training.guards import StopRequest


@dataclass(frozen=True)
class CandidateEvaluatorFactory:
    """What a further process makes its candidates of; all of it can be sent there."""

    config: Config
    dataset: Dataset
    output_dir: Path
    spec: EvolutionSpec

    def __call__(self, lora_svd: LoraSvd) -> CandidateEvaluator:
        """See `Hire`."""
        work = RunContext(
            config=self.config,
            run=Run(self.output_dir),
            console=PlainConsole(),
            dataset=self.dataset,
            stop=StopRequest(),
        )
        language = _policy_for_search(_policy_with_adapter(work, self.spec), self.spec)
        world = build_training_context(work, self.spec, language)
        return CandidateEvaluator(self.spec, world, lora_svd, self.config.run.seed)


def fit_adapter(ctx: RunContext, spec: EvolutionSpec) -> None:
    """Fit the adapter whose singular values are searched, unless that is done."""
    own = lora_config(ctx.config.policy.lora)
    run_phase(ctx, spec.adapter_phase, own or spec.adapter)


def run_evolution(
    ctx: RunContext, spec: EvolutionSpec, budget: Budget | None, on_step: TrainStepCallback
) -> PolicyModel:
    """Search from the last checkpoint on; the policy with the incumbent's singular values in its adapter."""
    e = ctx.config
    language = _policy_with_adapter(ctx, spec)
    asked = _policy_for_search(language, spec)
    found = evolve(
        spec,
        build_training_context(ctx, spec, asked),
        max_steps=e.run.max_steps,
        seed=e.run.seed,
        run=ctx.run,
        worker_factory=CandidateEvaluatorFactory(e, ctx.dataset, ctx.run.path, spec),
        num_workers=e.run.num_workers,
        save_steps=e.run.save_steps,
        save_total_limit=e.run.save_total_limit,
        budget=budget,
        on_step=on_step,
    )
    found.lora_svd.apply_offsets(language.model, found.incumbent)
    return language


def _policy_with_adapter(ctx: RunContext, spec: EvolutionSpec) -> PolicyModel:
    """The start with its fitted adapter."""
    folder = ctx.path("phases", spec.adapter_phase.role, "adapter")
    return load_policy(replace(ctx.initial_policy, adapter_path=str(folder)), seed=ctx.config.run.seed)


def _policy_for_search(policy: PolicyModel, spec: EvolutionSpec) -> PolicyModel:
    """Who responds during the search: the policy itself, or its twin in eight bits."""
    return policy if spec.base_precision == "whole" else replace(policy, model=int8_copy(policy.model))
