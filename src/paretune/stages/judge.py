"""Stage 5: before and after on unseen prompts, scored by a judge that is not the training reward."""

from collections.abc import Sequence

from paretune.config.sources import RewardSection
from paretune.data.world import TrueScorer
from paretune.data.world_truth import refuses
from paretune.evaluate.generate import Generations, divergence, generate
from paretune.evaluate.judge import Judge, evaluate
from paretune.models.load import Language, ModelSpec, load_policy, parameter_hash
from paretune.objectives.reward_model import RewardModelScorer
from paretune.objectives.rules import is_refusal
from paretune.rundir import read_json
from paretune.stages.align import sampler
from paretune.stages.reward import reward_of
from paretune.stages.work import Work


def judge(work: Work) -> str:
    """Let both policies answer the test prompts, score, compare, and write eval/final/."""
    folder = work.folder("eval", "final")
    if not (folder / "eval.json").exists():
        e = work.experiment
        start = load_policy(work.start, seed=e.run.seed)
        after = load_policy(ModelSpec(path=str(work.folder("final")), dtype=e.policy.dtype), seed=e.run.seed)
        one, two = (_answers(work, language, i) for i, language in enumerate((start, after)))
        rewards = (_model(work, "reward", "the training reward"),)
        judges = _judges(work, rewards[0])
        found = evaluate(
            one,
            two,
            judges,
            objectives=_objectives(work, judges),
            rewards=rewards,
            margins=e.evaluate.margin,
            refuses=refuses if e.data.world is not None else is_refusal,
            kl=divergence(two, start.model, temperature=e.evaluate.temperature),
            draws=e.evaluate.draws,
            seed=e.evaluate.seed,
        )
        found.save(folder)
    numbers = read_json(folder / "eval.json") or {}
    return f"before and after, {numbers['prompts']} unseen prompts"


def _answers(work: Work, language: Language, arm: int) -> Generations:
    how, test = work.experiment.evaluate, work.material.test
    return generate(
        sampler(work, language),
        test,
        n=how.n,
        max_new=how.max_new or int(work.experiment.algorithm.arguments["max_new"]),
        temperature=how.temperature,
        seed=how.seed,
        tell=lambda done, total: work.console.progress(
            arm * total + done, 2 * total, ("before", "after")[arm]
        ),
    )


def _judges(work: Work, reward: Judge) -> Sequence[Judge]:
    chosen = work.experiment.judge
    if chosen == "truth":
        return (Judge(name="the true scorer", scorer=TrueScorer()),)
    if isinstance(chosen, RewardSection):
        return (_model(work, "judge", "a reward model fitted on other data"),)
    return (reward,)


def _model(work: Work, name: str, words: str) -> Judge:
    model = reward_of(work, name)
    section = getattr(work.experiment, name)
    sources = [*section.ratings.values(), *section.pairs.values()]
    data = {work.material.files[source.file] for source in sources if source.file in work.material.files}
    if "sha256" in model.data:
        data.add(model.data["sha256"])
    return Judge(
        name=words, scorer=RewardModelScorer(model), weights=parameter_hash(model), data=frozenset(data)
    )


def _objectives(work: Work, judges: Sequence[Judge]) -> tuple[str, ...]:
    """Those that were trained, then those only the judges know."""
    trained = tuple(work.experiment.objectives)
    further = [name for judge in judges for name in judge.scorer.names if name not in trained]
    return trained + tuple(further)
