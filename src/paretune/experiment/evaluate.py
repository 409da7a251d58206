"""Stage 5: before and after on unseen prompts, scored by a judge that is not the training reward."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from paretune.config.build import build_spec
from paretune.config.data_schema import RewardSection
from paretune.data.chat import PromptFormat
from paretune.data.records import Prompt
from paretune.evaluate.evaluate import Judge, evaluate
from paretune.evaluate.generate import Generations, estimate_kl, generate
from paretune.experiment.assemble import make_sampler
from paretune.experiment.context import RunContext
from paretune.experiment.reward import load_trained_reward_model
from paretune.models.load import PolicyModel, load_policy, parameter_hash
from paretune.reward.checkpoint import provenance_hashes
from paretune.reward.model import RewardModelScorer
from paretune.reward.scorers import is_refusal, with_thinking_scorer
from paretune.run.folder import read_json
from paretune.worlds.helpdesk.truth import is_helpdesk_refusal
from paretune.worlds.helpdesk.world import GroundTruthScorer


def evaluate_policies(ctx: RunContext) -> str:
    """Let both policies answer the test prompts, score, compare, and write eval/final/."""
    folder = ctx.path("eval", "final")
    if not (folder / "eval.json").exists():
        e = ctx.config
        start = load_policy(ctx.initial_policy, seed=e.run.seed)
        after = load_policy(ctx.trained_policy, seed=e.run.seed)
        recipe = build_spec(e)
        how: dict[str, Any] = {
            "n": e.evaluate.num_generations,
            "frame": recipe.prompt_format,
            "seed": e.evaluate.seed,
        }
        one, two = (
            generate_with(ctx, language, ctx.dataset.test_prompts, arm_of_arms=(i, 2), **how)
            for i, language in enumerate((start, after))
        )
        rewards = reward_model_judges(ctx, "reward", "the training reward")
        judges = run_judges(ctx, rewards)
        found = evaluate(
            one,
            two,
            judges,
            objectives=_evaluated_objectives(ctx, judges),
            reward_judges=rewards,
            margins=e.evaluate.non_inferiority_margin,
            refusal_detector=is_helpdesk_refusal if e.data.world is not None else is_refusal,
            scorer_view=recipe.scorer_view,
            correctness_threshold=e.correctness_threshold if recipe.prompt_format == "confidence" else None,
            kl=estimate_kl(two, start.model, temperature=e.evaluate.temperature),
            bootstrap_samples=e.evaluate.bootstrap_samples,
            seed=e.evaluate.seed,
        )
        found.save(folder)
    numbers = read_json(folder / "eval.json") or {}
    return f"before and after, {numbers['prompts']} unseen prompts"


def generate_with(
    ctx: RunContext,
    policy: PolicyModel,
    prompts: Sequence[Prompt],
    *,
    num_generations: int,
    prompt_format: PromptFormat,
    seed: int,
    arm_of_arms: tuple[int, int] = (0, 1),
) -> Generations:
    """What a policy answers, as long and as random as the evaluation has it.

    Args:
        ctx: Whose run it is.
        policy: The policy.
        prompts: What it is asked.
        num_generations: Answers to each.
        prompt_format: What is asked beside the prompts.
        seed: Of the answers.
        arm_of_arms: Which arm this is, and of how many: for the console.
    """
    how, (arm, arms) = ctx.config.evaluate, arm_of_arms

    def tell(done: int, total: int) -> None:
        ctx.console.progress(arm * total + done, arms * total, ("before", "after")[arm] if arms > 1 else "")
        ctx.stop.raise_if_stopped("the training, before its evaluation was complete")

    return generate(
        make_sampler(ctx, policy),
        prompts,
        num_generations=num_generations,
        max_new_tokens=how.max_new_tokens or int(ctx.config.algorithm.arguments["max_new"]),
        temperature=how.temperature,
        prompt_format=prompt_format,
        seed=seed,
        on_progress=tell,
    )


def run_judges(ctx: RunContext, reward_judges: tuple[Judge, ...]) -> tuple[Judge, ...]:
    """Who judges a run: the truth, the model of `judge`, or `reward_judges` where the recipe has neither."""
    chosen = ctx.config.judge
    if chosen == "truth":
        return _with_thinking_judge(ctx, Judge(name="the true scorer", scorer=GroundTruthScorer()))
    if isinstance(chosen, RewardSection):
        return reward_model_judges(ctx, "judge", "a reward model fitted on other data")
    return reward_judges


def reward_model_judges(ctx: RunContext, name: str, display_name: str) -> tuple[Judge, ...]:
    """The reward model of a section as a judge, and once more for thoughts where they are an objective."""
    model = load_trained_reward_model(ctx, name)
    scorer, data = RewardModelScorer(model), provenance_hashes(model.provenance)
    return _with_thinking_judge(
        ctx, Judge(name=display_name, scorer=scorer, weights_hash=parameter_hash(model), data_hashes=data)
    )


def _with_thinking_judge(ctx: RunContext, judge: Judge) -> tuple[Judge, ...]:
    """The judge, and itself once more for the thoughts where they are an objective."""
    return tuple(
        replace(judge, scorer=s) for s in with_thinking_scorer(ctx.config.thinking_objectives, judge.scorer)
    )


def _evaluated_objectives(ctx: RunContext, judges: Sequence[Judge]) -> tuple[str, ...]:
    """Those that were trained, then those only the judges know."""
    trained = tuple(ctx.config.objectives)
    further = [name for judge in judges for name in judge.scorer.names if name not in trained]
    return trained + tuple(further)
