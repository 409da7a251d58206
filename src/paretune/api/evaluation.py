"""Comparison of two policies by judges, on the same prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretune.api.arguments import check_arguments, check_objective_names
from paretune.api.inputs import Prompts, read_prompts
from paretune.api.loading import LoadingContext, ScorerLike, ScorersLike, load_judges
from paretune.api.pairwise import PairwiseLike, load_pairwise_judges
from paretune.api.policies import Generation, MakeSampler, PolicyLike, as_policy, generate_responses
from paretune.config.scorers import VERDICT_RULES
from paretune.core.errors import ConfigError
from paretune.core.goals import Goal
from paretune.data.records import Prompt
from paretune.evaluate.evaluate import Evaluation
from paretune.evaluate.evaluate import evaluate as evaluate_arms
from paretune.evaluate.generate import Generations, estimate_kl
from paretune.evaluate.judging import Judge
from paretune.evaluate.pairwise_judges import compare_pairs
from paretune.models.load import PolicyModel
from paretune.report.run_page import write_evaluation_report
from paretune.report.tables import summary_table
from paretune.rollout.sampler import LocalSampler


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """A comparison of two policies on the same prompts; as text, the table that `paretune run` prints."""

    evaluation: Evaluation
    before: Generations
    """Responses of the first policy."""
    after: Generations
    """Responses of the second policy."""
    subtitle: tuple[str, ...] = ()
    """What the page says below its title."""

    @property
    def results(self) -> dict[str, Any]:
        """The content of eval.json: per objective the change, its interval and the verdict, and more."""
        return self.evaluation.results

    @check_arguments
    def save(self, folder: str | Path) -> Path:
        """Write eval.json, generations.parquet and a page, report.html; return the path of the page."""
        self.evaluation.save(Path(folder))
        return write_evaluation_report(Path(folder), self.subtitle)

    def __str__(self) -> str:
        """The table of `paretune run`."""
        return summary_table(self.results)


@check_arguments
def evaluate(
    before: PolicyLike,
    after: PolicyLike,
    *,
    judges: ScorersLike | Judge | Sequence[ScorerLike | Judge],
    prompts: Prompts,
    rewards: ScorersLike | Judge | Sequence[ScorerLike | Judge] = (),
    pairwise: Mapping[str, PairwiseLike] | None = None,
    goals: Mapping[str, str | float] | None = None,
    num_generations: int = 1,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    non_inferiority_margin: Mapping[str, float] | None = None,
    verdict: str = "all",
    bootstrap_samples: int = 10_000,
    seed: int = 1000,
    device: str = "auto",
    sampler: MakeSampler = LocalSampler,
) -> EvaluationResult:
    """Compare two policies on the same prompts: change, simultaneous interval and verdict per objective.

    Args:
        before: The starting policy.
        after: The trained policy.
        judges: Score the responses; each scores one or more named objectives. Several may score one.
        prompts: Prompts that the training did not see.
        rewards: Scorers of the training; a judge that shares code, weights or data never yields "better".
        pairwise: Name -> judge of pairs of responses, asked in both orders; see docs/pairwise.md.
        goals: Objective -> "higher" (the default), "lower", or the number that is its best score.
        num_generations: Responses per prompt.
        max_new_tokens: Longest response in tokens.
        temperature: Sampling temperature.
        non_inferiority_margin: Objective -> largest loss that still counts as "not worse".
        verdict: Where several judges score an objective: `all`, `majority`, or the name of one.
        bootstrap_samples: Bootstrap resamples for the intervals.
        seed: Seed of the responses and of the bootstrap.
        device: auto, cpu or cuda.
        sampler: Makes the samplers of the policies.

    Raises:
        DataError: There are no prompts, or there is no such model.
        ConfigError: A setting of a judge is wrong.
        WiringError: There is no judge, or two of one name score the same objective.
        ScoringError: A judge failed on too many responses.
    """
    records, policies = read_prompts(prompts), (as_policy(before, device), as_policy(after, device))
    context = LoadingContext(prompts=records, tokenizer=policies[1].tokenizer, device=device)
    panel = load_judges(judges, context)
    _check_names(panel, {"goals": goals, "non_inferiority_margin": non_inferiority_margin}, verdict)
    compared = (policies, records, panel, _training_rewards(rewards, context))
    return compare_policies(
        *compared,
        Generation(num_generations, max_new_tokens, temperature, seed, sampler),
        pairwise=load_pairwise_judges(pairwise or {}, context),
        goals=goals,
        margins=non_inferiority_margin,
        verdict_rule=verdict,
        bootstrap_samples=bootstrap_samples,
        subtitle=comparison_subtitle(before, after),
    )


def _training_rewards(rewards: Any, context: LoadingContext) -> tuple[Judge, ...]:
    is_given = not isinstance(rewards, Sequence) or len(rewards) > 0
    return load_judges(rewards, context, parameter="rewards") if is_given else ()


def comparison_subtitle(before: PolicyLike, after: PolicyLike) -> tuple[str, ...]:
    """Which policies were compared, as far as they have a name."""
    policies = {"before": before, "after": after}
    return tuple(f"{role} {policy}" for role, policy in policies.items() if isinstance(policy, str | Path))


def _check_names(
    judges: Sequence[Judge], named: Mapping[str, Mapping[str, Any] | None], verdict: str
) -> None:
    """Check the objectives and judges that the settings name.

    Args:
        judges: The judges.
        named: Parameter -> what it says by objective.
        verdict: A rule, or the name of a judge.

    Raises:
        ConfigError: One of them is unknown.
    """
    objectives = [name for judge in judges for name in judge.scorer.names]
    for parameter, by_objective in named.items():
        check_objective_names("evaluate", parameter, by_objective or {}, objectives)
    rules = [*VERDICT_RULES, *dict.fromkeys(judge.short_name for judge in judges)]
    if verdict not in rules:
        problem = f"{verdict!r} is none of {', '.join(rules)}"
        raise ConfigError(f"paretune.evaluate: verdict: {problem}; fix: write one of these")


def compare_policies(
    policies: tuple[PolicyModel, PolicyModel],
    prompts: tuple[Prompt, ...],
    judges: tuple[Judge, ...],
    reward_judges: tuple[Judge, ...],
    generation: Generation,
    subtitle: tuple[str, ...] = (),
    pairwise: tuple[Judge, ...] = (),
    **settings: Any,
) -> EvaluationResult:
    """Sample the responses of both policies, and let the judges score them.

    Args:
        policies: The starting and the trained policy.
        prompts: The prompts.
        judges: The judges.
        reward_judges: The scorers of the training.
        generation: How responses are sampled.
        subtitle: See `EvaluationResult`.
        pairwise: Judges of pairs of responses.
        settings: Further arguments of `paretune.evaluate.evaluate.evaluate`.
    """
    before, after = (generate_responses(policy, generation, prompts) for policy in policies)
    # The divergence compares probabilities of the same tokens.
    same_tokens = policies[0].tokenizer.get_vocab() == policies[1].tokenizer.get_vocab()
    kl = estimate_kl(after, policies[0].model, temperature=generation.temperature) if same_tokens else None
    goals = settings.pop("goals", None) or {}
    evaluation = evaluate_arms(
        before,
        after,
        judges,
        objectives=tuple(dict.fromkeys(name for judge in judges for name in judge.scorer.names)),
        reward_judges=reward_judges,
        goals={name: Goal.of(goal) for name, goal in goals.items()},
        kl=kl,
        seed=generation.seed,
        **settings,
    )
    if pairwise:
        evaluation.results["pairwise"] = compare_pairs(
            (before, after),
            pairwise,
            reward_judges=reward_judges,
            bootstrap_samples=evaluation.results["bootstrap_samples"],
            seed=generation.seed,
        )
    return EvaluationResult(evaluation=evaluation, before=before, after=after, subtitle=subtitle)
