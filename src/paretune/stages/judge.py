"""Stage 5: before and after on unseen prompts, scored by a judge that is not the training reward."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from paretune.config.algorithm import recipe_of
from paretune.config.sources import RewardSection
from paretune.data.frame import Frame
from paretune.data.records import Prompt
from paretune.data.world import TrueScorer
from paretune.data.world_truth import refuses
from paretune.evaluate.generate import Generations, divergence, generate
from paretune.evaluate.judge import Judge, evaluate
from paretune.models.load import Language, load_policy, parameter_hash
from paretune.objectives.lineage import known_data
from paretune.objectives.reward_model import RewardModelScorer
from paretune.objectives.rules import is_refusal
from paretune.objectives.trace import with_traces
from paretune.rundir import read_json
from paretune.stages.assemble import sampler
from paretune.stages.reward import reward_of
from paretune.stages.work import Work


def judge(work: Work) -> str:
    """Let both policies answer the test prompts, score, compare, and write eval/final/."""
    folder = work.folder("eval", "final")
    if not (folder / "eval.json").exists():
        e = work.experiment
        start = load_policy(work.start, seed=e.run.seed)
        after = load_policy(work.trained, seed=e.run.seed)
        recipe = recipe_of(e)
        how: dict[str, Any] = {"n": e.evaluate.n, "frame": recipe.frame, "seed": e.evaluate.seed}
        one, two = (
            written_by(work, language, work.material.test, of=(i, 2), **how)
            for i, language in enumerate((start, after))
        )
        rewards = model_judges(work, "reward", "the training reward")
        judges = judges_of(work, rewards)
        found = evaluate(
            one,
            two,
            judges,
            objectives=_objectives(work, judges),
            rewards=rewards,
            margins=e.evaluate.margin,
            refuses=refuses if e.data.world is not None else is_refusal,
            view=recipe.view,
            correct=e.correct if recipe.frame == "confidence" else None,
            kl=divergence(two, start.model, temperature=e.evaluate.temperature),
            draws=e.evaluate.draws,
            seed=e.evaluate.seed,
        )
        found.save(folder)
    numbers = read_json(folder / "eval.json") or {}
    return f"before and after, {numbers['prompts']} unseen prompts"


def written_by(
    work: Work,
    language: Language,
    prompts: Sequence[Prompt],
    *,
    n: int,
    frame: Frame,
    seed: int,
    of: tuple[int, int] = (0, 1),
) -> Generations:
    """What a policy answers, as long and as random as the evaluation has it.

    Args:
        work: Whose run it is.
        language: The policy.
        prompts: What it is asked.
        n: Answers to each.
        frame: What is asked beside the prompts.
        seed: Of the answers.
        of: Which arm this is, and of how many: for the console.
    """
    how, (arm, arms) = work.experiment.evaluate, of

    def tell(done: int, total: int) -> None:
        work.console.progress(arm * total + done, arms * total, ("before", "after")[arm] if arms > 1 else "")
        work.stop.obey("the training, before its evaluation was complete")

    return generate(
        sampler(work, language),
        prompts,
        n=n,
        max_new=how.max_new or int(work.experiment.algorithm.arguments["max_new"]),
        temperature=how.temperature,
        frame=frame,
        seed=seed,
        tell=tell,
    )


def judges_of(work: Work, reward: tuple[Judge, ...]) -> tuple[Judge, ...]:
    """Who judges a run: the truth, the model of `judge`, or `reward` where the recipe has neither."""
    chosen = work.experiment.judge
    if chosen == "truth":
        return _with_traces(work, Judge(name="the true scorer", scorer=TrueScorer()))
    if isinstance(chosen, RewardSection):
        return model_judges(work, "judge", "a reward model fitted on other data")
    return reward


def model_judges(work: Work, name: str, words: str) -> tuple[Judge, ...]:
    """The reward model of a section as a judge, and once more for thoughts where they are an objective."""
    model = reward_of(work, name)
    scorer, data = RewardModelScorer(model), known_data(model.data)
    return _with_traces(work, Judge(name=words, scorer=scorer, weights=parameter_hash(model), data=data))


def _with_traces(work: Work, judge: Judge) -> tuple[Judge, ...]:
    """The judge, and itself once more for the thoughts where they are an objective."""
    return tuple(replace(judge, scorer=s) for s in with_traces(work.experiment.traces, judge.scorer))


def _objectives(work: Work, judges: Sequence[Judge]) -> tuple[str, ...]:
    """Those that were trained, then those only the judges know."""
    trained = tuple(work.experiment.objectives)
    further = [name for judge in judges for name in judge.scorer.names if name not in trained]
    return trained + tuple(further)
