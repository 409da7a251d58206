"""Evaluations during the alignment, the choice of the best step by them, and early stopping.

    eval/step-000020/         eval.json and generations.parquet of the policy after 20 steps
    eval/selection.json       the choice, once the training has ended
    checkpoints/candidates/   weights of the steps that may still be chosen

What a saved evaluation says is read from its files alone, so that a resumed run decides as an uninterrupted
one; an evaluation that is complete is not made again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import Tensor, nn

from paretune.core import ranks
from paretune.core.errors import ConfigError, DataError
from paretune.core.rng import derive_seed
from paretune.credit.base import Metrics
from paretune.evaluate.generate import Generations, generate, prompt_clusters
from paretune.evaluate.selection import (
    SelectionSpec,
    StepEvaluation,
    choose_step,
    find_stop,
    prompt_gains,
    scaled_changes,
    selection_results,
    summarize_evaluation,
)
from paretune.experiment.assemble import make_sampler
from paretune.experiment.context import RunContext
from paretune.experiment.evaluate import (
    SELECTION_PATH,
    EvaluationJudges,
    compare_arms,
    evaluation_judges,
)
from paretune.experiment.stored_chunks import StoredChunks
from paretune.models.load import PolicyModel, parameter_hash
from paretune.models.sharding import copy_full
from paretune.rl.state import BudgetResource
from paretune.rollout.distributed import DistributedSampler
from paretune.rollout.sampler import LocalSampler
from paretune.run.folder import read_json, to_json, write_atomic
from paretune.run.io import remove_folder
from paretune.training.checkpoint import load_latest_checkpoint, save_checkpoint

CANDIDATES_PATH = ("checkpoints", "candidates")
CHUNKS_PATH = ("checkpoints", "evaluate-steps")
INITIAL_POLICY = "the initial policy"
"""Stands for the hash of its weights, which no step of the run changes."""


@dataclass
class StepEvaluations:
    """The evaluations of one alignment; a `StepEvaluator`."""

    ctx: RunContext
    policy: PolicyModel
    """The policy that is trained."""
    initial_model: nn.Module
    """The policy before the training."""
    _known: dict[int, StepEvaluation] = field(default_factory=dict)

    @cached_property
    def _judges(self) -> EvaluationJudges:
        return evaluation_judges(self.ctx)

    @cached_property
    def _samplers(self) -> tuple[LocalSampler, LocalSampler]:
        initial = replace(self.policy, model=self.initial_model)
        return make_sampler(self.ctx, initial), make_sampler(self.ctx, self.policy)

    def evaluates_after(self, step: int, is_last: bool) -> bool:
        """See `StepEvaluator`: every `eval_steps`, and after the last step."""
        return is_last or step % _eval_steps(self.ctx) == 0

    def evaluate(self, step: int) -> tuple[Metrics, Mapping[BudgetResource, int]]:
        """See `StepEvaluator`. The initial policy's responses count as used by the first evaluation."""
        section, name = self.ctx.config.evaluate, step_folder(step)
        keeps_weights = section.select_checkpoint != "last"
        candidate = self.ctx.path(*CANDIDATES_PATH, name)
        complete = self.ctx.has("eval", name, "eval.json")
        if not complete:
            if keeps_weights:  # first, so that an evaluation never lacks its weights
                save_checkpoint(candidate, step, {"weights": _trained_weights(self.policy)})
            self._evaluate_policy(step)
        evaluations = self.evaluations(step)
        if keeps_weights:
            self._drop_losers(evaluations)
        metrics = evaluation_metrics(selection_spec(self.ctx, evaluations), evaluations[-1])
        if not complete:
            self.ctx.console.log(describe_evaluation(metrics, step))
        return metrics, self._usage(evaluations)

    def ends_training(self, step: int) -> bool:
        """See `StepEvaluator`: by `early_stopping_patience`."""
        patience = self.ctx.config.evaluate.early_stopping_patience
        if patience is None or step % _eval_steps(self.ctx) or not self._is_evaluated(step):
            return False
        evaluations = self.evaluations(step)
        return find_stop(selection_spec(self.ctx, evaluations), evaluations, patience) is not None

    def evaluations(self, last_step: int) -> list[StepEvaluation]:
        """The evaluations up to a step that was evaluated, in order."""
        interval = _eval_steps(self.ctx)
        steps = [*range(interval, last_step, interval), last_step]
        for step in steps:
            if step not in self._known:
                self._known[step] = read_evaluation(self.ctx, step)
        return [self._known[step] for step in steps]

    def finish(self, last_step: int) -> None:
        """Choose a step, load its weights into the policy, and write selection.json.

        Raises:
            DataError: The weights of the chosen step cannot be read.
        """
        ctx, section = self.ctx, self.ctx.config.evaluate
        evaluations = self.evaluations(last_step)
        results = selection_results(
            selection_spec(ctx, evaluations),
            section.select_checkpoint,
            evaluations,
            max_steps=ctx.config.run.max_steps,
            patience=section.early_stopping_patience,
        )
        step = int(results["selected_step"])
        if step != last_step:
            self._load_weights(step)
        write_atomic(ctx.path(*SELECTION_PATH), to_json(results))
        stopped = results["early_stopping"]
        ctx.run.update_state(selected_step=step, **({"stopped_early_at": last_step} if stopped else {}))
        lines = [f"step {step} of {last_step} is kept: {results['reason']}"]
        if stopped:
            share = f"{100 * stopped['saved_fraction']:.0f} % of the {stopped['max_steps']} steps saved"
            lines.insert(0, f"ended early after {last_step} steps, {share}: {stopped['reason']}")
            ctx.run.log_event("stopped_early", lines[0])
        elif results["turn"]:
            lines.insert(0, f"warning: over-optimized: {results['turn']}")
        for line in lines:
            ctx.console.log(line)

    def _is_evaluated(self, step: int) -> bool:
        return step > 0 and (step in self._known or self.ctx.has("eval", step_folder(step), "eval.json"))

    def _evaluate_policy(self, step: int) -> None:
        """Sample and score the responses of both policies, and save the evaluation."""
        ctx, chunks = self.ctx, self.ctx.path(*CHUNKS_PATH)
        before = self._generate(0, chunks / "before", INITIAL_POLICY)
        after = self._generate(1, chunks / step_folder(step), parameter_hash(self.policy.model))
        evaluation = compare_arms(ctx, before, after, self.initial_model, self._judges)
        evaluation.results["step"] = step
        evaluation.save(ctx.path("eval", step_folder(step)))
        ranks.on_first(lambda: None, "evaluation")  # the others read its files
        remove_folder(chunks / step_folder(step))

    def _generate(self, arm: int, chunk_dir: Path, weights_hash: str) -> Generations:
        ctx, settings = self.ctx, self.ctx.config.evaluate
        sampler = StoredChunks(DistributedSampler(self._samplers[arm]), chunk_dir, ctx.run, weights_hash)
        return generate(
            sampler,
            ctx.dataset.validation_prompts,
            num_generations=settings.num_generations,
            max_new_tokens=settings.max_new_tokens or int(ctx.config.algorithm.arguments["max_new_tokens"]),
            temperature=settings.temperature,
            prompt_format=ctx.resolved.algorithm.prompt_format,
            seed=derive_seed(settings.seed, 0, "evaluation during training"),
        )

    def _drop_losers(self, evaluations: Sequence[StepEvaluation]) -> None:
        """Delete weights that cannot be chosen any more: by the largest lower bound, all but the best."""
        if self.ctx.config.evaluate.select_checkpoint != "lower_bound":
            return  # a later step may make a dominated one the best of the rest
        best = choose_step(selection_spec(self.ctx, evaluations), "lower_bound", evaluations).step
        for each in evaluations:
            if each.step != best:
                remove_folder(self.ctx.path(*CANDIDATES_PATH, step_folder(each.step)))

    def _load_weights(self, step: int) -> None:
        folder = self.ctx.path(*CANDIDATES_PATH, step_folder(step))
        stored = load_latest_checkpoint(folder, self.ctx.run.log_event)
        if stored is None:
            raise DataError(
                f"{folder}: the weights of the chosen step cannot be read; fix: set "
                "a new run.output_dir and train again"
            )
        weights = _trained_weights(self.policy)
        copy_full(stored.load_tree("weights", weights), weights)

    def _usage(self, evaluations: Sequence[StepEvaluation]) -> dict[BudgetResource, int]:
        """Tokens sampled and responses scored by the last evaluation, from its files."""
        results, is_first = evaluations[-1].results, len(evaluations) == 1
        table = pq.read_table(
            self.ctx.path("eval", step_folder(evaluations[-1].step), "generations.parquet"),
            columns=["before_tokens", "after_tokens"],
        )
        tokens = sum(table["after_tokens"].to_pylist()) + is_first * sum(table["before_tokens"].to_pylist())
        num_responses = int(results["num_prompts"]) * int(results["num_generations"])
        return {"rollout_tokens": int(tokens), "reward_calls": num_responses * (2 if is_first else 1)}


def step_evaluations(
    ctx: RunContext, policy: PolicyModel, initial_model: nn.Module, *, is_sharded: bool
) -> StepEvaluations | None:
    """The evaluations that the recipe asks for; None: it asks for none.

    Raises:
        ConfigError: The weights of the policy are divided over ranks.
    """
    if ctx.config.evaluate.eval_steps is None:
        return None
    if is_sharded:
        problem = "evaluations during the training need the whole policy on every rank"
        fix = "write training.fsdp: no_shard, or remove evaluate.eval_steps"
        raise ConfigError(ctx.resolved.issue(("evaluate", "eval_steps"), problem, fix))
    return StepEvaluations(ctx, policy, initial_model)


def remove_candidates(ctx: RunContext) -> None:
    """Delete the weights of the evaluated steps: the chosen ones are saved as the final policy."""
    for path in (CANDIDATES_PATH, CHUNKS_PATH):
        remove_folder(ctx.path(*path))


def describe_selection(ctx: RunContext) -> str:
    """The end of the summary of the alignment: the step that was kept; "" without a choice."""
    selection = ranks.on_first(lambda: read_json(ctx.path(*SELECTION_PATH)), "selection")
    return "" if selection is None else f"; step {selection['selected_step']} kept"


def step_folder(step: int) -> str:
    """Name of the folder of the evaluation after so many steps."""
    return f"step-{step:06d}"


def _eval_steps(ctx: RunContext) -> int:
    interval = ctx.config.evaluate.eval_steps
    assert interval is not None  # without it there are no evaluations
    return interval


def _trained_weights(policy: PolicyModel) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in policy.model.named_parameters() if p.requires_grad}


def read_evaluation(ctx: RunContext, step: int) -> StepEvaluation:
    """A saved evaluation, with the changes of the deciding objectives."""
    folder = ctx.path("eval", step_folder(step))
    results = read_json(folder / "eval.json")
    if results is None:
        raise DataError(f"{folder}: the evaluation is missing; fix: set a new run.output_dir and train again")
    table = pq.read_table(folder / "generations.parquet")  # with all texts, which stay in Arrow
    n, spec = int(results["num_generations"]), _spec(ctx, results)
    has_reward = all(f"reward/after/{name}" in table.column_names for name in spec.weights)

    def scores(prefix: str) -> dict[str, NDArray[np.float64]]:
        columns = {name: table[f"{prefix}/{name}"].to_pylist() for name in spec.weights}
        return {name: np.array(column, float).reshape(-1, n) for name, column in columns.items()}

    return StepEvaluation(
        step=step,
        results=results,
        changes=scaled_changes(spec, scores("before"), scores("after")),
        reward_changes=(
            scaled_changes(spec, scores("reward/before"), scores("reward/after")) if has_reward else None
        ),
        clusters=prompt_clusters(ctx.dataset.validation_prompts),
    )


def selection_spec(ctx: RunContext, evaluations: Sequence[StepEvaluation]) -> SelectionSpec:
    """The objectives that decide: those with a weight that a judge scores."""
    return _spec(ctx, evaluations[0].results)


def _spec(ctx: RunContext, results: Mapping[str, object]) -> SelectionSpec:
    config, settings = ctx.config, ctx.config.evaluate
    objectives = results["objectives"]
    assert isinstance(objectives, Mapping)
    judged = [name for name, entry in objectives.items() if entry["judge"] != "none"]
    weights = {name: weight for name, weight in config.final_weights.items() if weight and name in judged}
    if not weights:
        problem = "no judge scores an objective with a weight, so no step can be compared with another"
        fix = "add such an objective to the judge, or remove evaluate.eval_steps"
        raise ConfigError(ctx.resolved.issue(("evaluate", "eval_steps"), problem, fix))
    return SelectionSpec(
        weights=weights,
        goals=config.goals,
        bootstrap_samples=settings.bootstrap_samples,
        seed=settings.seed,
    )


def evaluation_metrics(spec: SelectionSpec, evaluation: StepEvaluation) -> Metrics:
    """The numbers of an evaluation for metrics.jsonl; what was not measured is left out."""
    summary = summarize_evaluation(spec, evaluation)
    values: dict[str, float | None] = {}
    for name, entry in evaluation.results["objectives"].items():
        numbers = {"mean": entry["after"], **{key: entry[key] for key in ("change", "low", "high")}}
        reward = entry.get("reward")
        values |= {f"eval/{name}/{key}": value for key, value in numbers.items()}
        values[f"eval/{name}/reward"] = None if reward is None else reward["after"]
    values["eval/kl"] = None if summary.kl is None else summary.kl["k3"]
    values |= {"eval/gain": summary.gain, "eval/gain/low": summary.low}
    if evaluation.reward_changes is not None:
        rewards = prompt_gains(spec, evaluation.reward_changes)
        values["eval/gain/reward"] = float(np.nanmean(rewards)) if (~np.isnan(rewards)).any() else None
    return {key: float(value) for key, value in values.items() if value is not None and np.isfinite(value)}


def describe_evaluation(metrics: Metrics, step: int) -> str:
    """One line: gain of the judge and of the training reward, and KL."""
    gain, low, reward = (metrics.get(key) for key in ("eval/gain", "eval/gain/low", "eval/gain/reward"))
    if gain is None:
        return f"evaluation after {step} steps: nothing was scored"
    bound = "" if low is None else f", at least {low:+.2f}"
    text = f"evaluation after {step} steps: gain {gain:+.2f} standard deviations of the judge{bound}"
    text += "" if reward is None else f"; of the training reward {reward:+.2f}"
    kl = metrics.get("eval/kl")
    return text if kl is None else f"{text}; KL {kl:.2g} nats per response"
