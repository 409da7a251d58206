"""Evaluation stage: both policies respond to test prompts, and a judge other than the reward scores them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from paretune.config.data_schema import RewardSection
from paretune.config.scorer_schema import ScorerSection
from paretune.config.scorers import JUDGE, PAIRWISE, objective_columns, reward_model_objectives
from paretune.config.yaml import KeyPath
from paretune.core import ranks
from paretune.data.prompt_formats import PromptFormat
from paretune.data.records import Prompt
from paretune.evaluate.evaluate import Evaluation, evaluate
from paretune.evaluate.generate import Generations, estimate_kl, generate
from paretune.evaluate.judge_quality import fitted_report, head_qualities
from paretune.evaluate.judging import Judge
from paretune.evaluate.pairwise_judges import compare_pairs
from paretune.evaluate.selection import selection_warnings
from paretune.experiment.assemble import make_sampler
from paretune.experiment.context import RunContext
from paretune.experiment.reward import load_trained_reward_model, reward_scorer
from paretune.experiment.scorers import (
    describe_scorer,
    identity_of,
    scorer_builder,
    scorer_qualities,
)
from paretune.experiment.stored_chunks import StoredChunks
from paretune.models.load import PolicyModel, load_policy, parameter_hash
from paretune.reward.checkpoint import provenance_hashes
from paretune.reward.distributed import distributed_scorer
from paretune.reward.failures import unwrapped
from paretune.reward.scorers import ObjectiveColumns, is_refusal, with_thinking_scorer
from paretune.rollout.distributed import DistributedSampler
from paretune.rollout.sampler import Sampler
from paretune.run.compat import JUDGED_KEY
from paretune.run.folder import read_json
from paretune.run.io import remove_folder
from paretune.worlds import get_world

TRAINING_REWARD = "the training reward"
"""Display name of the reward model as a judge."""
ARMS = ("before", "after")
SELECTION_PATH = ("eval", "selection.json")
"""Which evaluated step the run ended with, and why; below the run folder, if there were such evaluations."""


def evaluate_policies(ctx: RunContext) -> str:
    """Sample, score and compare the responses of both policies, and write eval/final/."""
    output_dir, chunks = ctx.path("eval", "final"), ctx.path("checkpoints", "evaluate")
    if not ctx.has("eval", "final", "eval.json"):
        config, settings, spec = ctx.config, ctx.config.evaluate, ctx.resolved.algorithm
        selection = read_json(ctx.path(*SELECTION_PATH))
        initial = load_policy(ctx.initial_policy, seed=config.run.seed)
        trained = load_policy(ctx.trained_policy, seed=config.run.seed)
        before, after = (
            generate_with(
                ctx,
                policy,
                ctx.dataset.test_prompts,
                arm_of_arms=(arm, 2),
                num_generations=settings.num_generations,
                prompt_format=spec.prompt_format,
                seed=settings.seed,
                chunk_dir=chunks / ARMS[arm],
            )
            for arm, policy in enumerate((initial, trained))
        )
        num_steps = 2 * len(before.prompts)
        ctx.console.progress(num_steps, num_steps, "scoring")
        evaluation = compare_arms(ctx, before, after, initial.model, evaluation_judges(ctx))
        if config.evaluate.pairwise:
            evaluation.results["pairwise"] = _pairwise_results(ctx, before, after)
        if selection is not None:
            evaluation.results["selection"] = selection
            evaluation.results["warnings"] = [*selection_warnings(selection), *evaluation.results["warnings"]]
        evaluation.save(output_dir)
        ctx.run.update_state(**{JUDGED_KEY: True})
    remove_folder(chunks)
    results = ranks.on_first(lambda: read_json(output_dir / "eval.json") or {}, "evaluation")
    return f"before and after, {results['num_prompts']} test prompts"


@dataclass(frozen=True)
class EvaluationJudges:
    """Who scores an evaluation; on several ranks each divides the responses over them."""

    judges: tuple[Judge, ...]
    reward_judges: tuple[Judge, ...]
    """The training reward."""


def evaluation_judges(ctx: RunContext) -> EvaluationJudges:
    """Load the judges of a run, and its training reward."""
    reward_judges = _on_all_ranks(training_reward_judges(ctx))
    return EvaluationJudges(_on_all_ranks(run_judges(ctx, reward_judges)), reward_judges)


def compare_arms(
    ctx: RunContext,
    before: Generations,
    after: Generations,
    initial_model: nn.Module,
    scored_by: EvaluationJudges,
) -> Evaluation:
    """Score the responses of two policies, and compare them with the settings of the recipe."""
    config, settings, spec = ctx.config, ctx.config.evaluate, ctx.resolved.algorithm
    is_stated = spec.prompt_format == "confidence"
    return evaluate(
        before,
        after,
        scored_by.judges,
        objectives=_evaluated_objectives(ctx, scored_by.judges),
        reward_judges=scored_by.reward_judges,
        goals=config.goals,
        margins=settings.non_inferiority_margin,
        refusal_detector=is_refusal if config.data.world is None else get_world().is_refusal,
        refusal_categories=settings.refusal_categories,
        scorer_view=spec.scorer_view,
        verdict_rule=settings.verdict,
        correctness_threshold=config.correctness_threshold if is_stated else None,
        kl=estimate_kl(after, initial_model, temperature=settings.temperature),
        learning_rate=None if spec.gradient_free else config.training.learning_rate,
        bootstrap_samples=settings.bootstrap_samples,
        seed=settings.seed,
    )


def _pairwise_results(ctx: RunContext, before: Generations, after: Generations) -> dict[str, Any]:
    """Win rates of the responses after the training, by the judges of `evaluate.pairwise`."""
    settings, reward_judges = ctx.config.evaluate, training_reward_judges(ctx)
    builder = scorer_builder(ctx)

    def compare() -> dict[str, Any]:
        judges = [
            replace(
                _judge_of(builder.build((*PAIRWISE, name), name, section), describe_scorer(name, section)),
                key=name,
            )
            for name, section in settings.pairwise.items()
        ]
        ctx.console.log(f"comparing {len(before.samples):,} pairs of responses")
        return compare_pairs(
            (before, after),
            judges,
            reward_judges=reward_judges,
            scorer_view=ctx.resolved.algorithm.scorer_view,
            bootstrap_samples=settings.bootstrap_samples,
            seed=settings.seed,
        )

    return dict(ranks.on_first(compare, "pairwise comparison"))


def _on_all_ranks(judges: tuple[Judge, ...]) -> tuple[Judge, ...]:
    """The judges, which divide the responses over the ranks."""
    return tuple(replace(judge, scorer=distributed_scorer(judge.scorer)) for judge in judges)


def generate_with(
    ctx: RunContext,
    policy: PolicyModel,
    prompts: Sequence[Prompt],
    *,
    num_generations: int,
    prompt_format: PromptFormat,
    seed: int,
    arm_of_arms: tuple[int, int] = (0, 1),
    chunk_dir: Path | None = None,
) -> Generations:
    """Responses of a policy, with the length limit and the temperature of the evaluation.

    Args:
        ctx: The run.
        policy: The policy.
        prompts: The prompts.
        num_generations: Responses per prompt.
        prompt_format: Format instruction that is appended to the prompts.
        seed: Seed of the responses.
        arm_of_arms: Index of this arm and number of arms, for the progress display.
        chunk_dir: Folder that keeps the responses, so that a stopped run resumes where it was.
    """
    settings, (arm, num_arms) = ctx.config.evaluate, arm_of_arms
    note = f"responses {ARMS[arm]}" if num_arms > 1 else "responses"

    def on_progress(done: int, total: int) -> None:
        ctx.console.progress(arm * total + done, num_arms * total, note)
        ctx.stop.raise_if_stopped("the training, before its evaluation was complete")

    on_progress(0, len(prompts))  # the time left is estimated from here
    sampler: Sampler = DistributedSampler(make_sampler(ctx, policy))
    if chunk_dir is not None:
        sampler = StoredChunks(sampler, chunk_dir, ctx.run, parameter_hash(policy.model))
    return generate(
        sampler,
        prompts,
        num_generations=num_generations,
        max_new_tokens=settings.max_new_tokens or int(ctx.config.algorithm.arguments["max_new_tokens"]),
        temperature=settings.temperature,
        prompt_format=prompt_format,
        seed=seed,
        on_progress=on_progress,
    )


def run_judges(ctx: RunContext, reward_judges: tuple[Judge, ...]) -> tuple[Judge, ...]:
    """The judges of a run: `judge` and `judges`; without either, `reward_judges`."""
    further = [
        judge
        for name, section in ctx.config.judges.items()
        for judge in _typed_judge(ctx, ("judges", name), name, section)
    ]
    judges = (*_section_judges(ctx, reward_judges), *further)
    return (*judges, *_scorers_without_judge(ctx, judges, reward_judges)) if judges else reward_judges


def _scorers_without_judge(
    ctx: RunContext, judges: Sequence[Judge], reward_judges: Sequence[Judge]
) -> Iterator[Judge]:
    """The training's own scorers for the objectives of `scorers` that no judge scores."""
    judged = {name for judge in judges for name in judge.scorer.names}
    for judge in reward_judges:
        names = [n for n in judge.scorer.names if n in objective_columns(ctx.config) and n not in judged]
        if names:
            yield replace(judge, scorer=ObjectiveColumns(judge.scorer, {name: name for name in names}))


def _section_judges(ctx: RunContext, reward_judges: tuple[Judge, ...]) -> tuple[Judge, ...]:
    """The judges of the section `judge`; none without it."""
    judge = ctx.config.judge
    if judge == "ground_truth":
        truth = Judge(name="the ground truth", scorer=get_world().scorer(), key=JUDGE)
        return _with_thinking_judge(ctx, truth)
    if isinstance(judge, RewardSection):
        judges = reward_model_judges(ctx, "judge", "a reward model fitted on other data")
        overlap = any(judge.overlaps_with(reward) for judge in judges for reward in reward_judges)
        name = "a reward model that shares weights or data with the reward"
        judges = tuple(replace(judge, key=JUDGE) for judge in judges)
        return tuple(replace(judge, name=name) for judge in judges) if overlap else judges
    return ()


def training_reward_judges(ctx: RunContext) -> tuple[Judge, ...]:
    """The scorers of the training as judges: the reward model, and those of the section `scorers`."""
    config = ctx.config
    judges = [] if config.reward is None else list(reward_model_judges(ctx, "reward", TRAINING_REWARD))
    if not config.scorers:
        return tuple(judges)
    heads = reward_model_objectives(config)
    judges = [
        replace(judge, scorer=ObjectiveColumns(judge.scorer, {name: name for name in own}))
        for judge in judges
        if (own := [name for name in judge.scorer.names if name in heads])
    ]
    for scorer in scorer_builder(ctx).training_scorers():
        judges.append(_judge_of(scorer, TRAINING_REWARD))
    return tuple(judges)


def _typed_judge(ctx: RunContext, path: KeyPath, name: str, section: ScorerSection) -> tuple[Judge, ...]:
    """A judge of the section `judges`, and a copy that scores the thinking if it is an objective."""
    judge = _judge_of(scorer_builder(ctx).build(path, name, section), describe_scorer(name, section))
    qualities = scorer_qualities(section, judge.scorer.names)
    return _with_thinking_judge(ctx, replace(judge, key=name, qualities=qualities))


def _judge_of(scorer: Any, display_name: str) -> Judge:
    """A scorer as a judge, with what is known of its weights and training data."""
    weights_hash, data_hashes = identity_of(unwrapped(scorer))
    return Judge(name=display_name, scorer=scorer, weights_hash=weights_hash, data_hashes=data_hashes)


def reward_model_judges(ctx: RunContext, name: str, display_name: str) -> tuple[Judge, ...]:
    """The reward model of a section as a judge of responses, and of thinking if it is an objective."""
    model = load_trained_reward_model(ctx, name)
    judge = Judge(
        name=display_name,
        scorer=reward_scorer(ctx, name, model),
        weights_hash=parameter_hash(model),
        data_hashes=provenance_hashes(model.provenance),
    )
    heads = {objective: objective for objective in model.objectives} | ctx.config.thinking_objectives
    section = getattr(ctx.config, name)
    report = fitted_report(section.path or ctx.path(name, "model"))
    return _with_thinking_judge(ctx, replace(judge, qualities=head_qualities(report, heads)))


def _with_thinking_judge(ctx: RunContext, judge: Judge) -> tuple[Judge, ...]:
    """The judge, and a copy that scores the thinking if it is an objective."""
    scorers = with_thinking_scorer(ctx.config.thinking_objectives, judge.scorer)
    return tuple(replace(judge, scorer=scorer) for scorer in scorers)


def _evaluated_objectives(ctx: RunContext, judges: Sequence[Judge]) -> tuple[str, ...]:
    """The trained objectives, then further ones that the judges score."""
    trained = tuple(ctx.config.objectives)
    further = [name for judge in judges for name in judge.scorer.names if name not in trained]
    return trained + tuple(further)
