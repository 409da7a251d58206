"""Judges: scorers with an identity, their scores of both arms, and several judges of one objective."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paretune.core.errors import WiringError
from paretune.core.goals import Goal
from paretune.data.prompt_formats import ScorerView, visible_text
from paretune.evaluate.generate import Generations, prompt_clusters
from paretune.evaluate.judge_quality import JudgeQuality
from paretune.evaluate.paired import ComparisonSpec, Scores, compare_objectives
from paretune.evaluate.several_judges import judge_agreement, shared_objectives
from paretune.evaluate.verdicts import combine_verdicts
from paretune.reward.failures import unwrapped
from paretune.reward.functions import PythonScorer
from paretune.reward.llm_judge import LlmJudgeScorer
from paretune.reward.rules import RuleScorer, shared_by_rules
from paretune.reward.scorers import Scorer, score_visible

Arms = tuple[Generations, Generations]
ScorePair = tuple[Scores, Scores]
_SAME: Mapping[type, str] = {PythonScorer: "is the same function", LlmJudgeScorer: "asks the same model"}
"""What equal identities of scorers mean that have no weights here."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A scorer with its identity: weights and training data."""

    name: str
    """Display name."""
    scorer: Scorer
    weights_hash: str = ""
    """Hash of its weights; "" for a rule."""
    data_hashes: frozenset[str] | None = frozenset()
    """Hashes of its training data; empty: it was not fitted; None: unknown."""
    key: str = ""
    """Its short name where several judges score an objective; "": the display name."""
    qualities: Mapping[str, JudgeQuality] = field(default_factory=dict)
    """Objective -> how well it ranks held-out responses, as far as that was measured."""

    @property
    def short_name(self) -> str:
        """What tables of several judges call it."""
        return self.key or self.name

    def shared_with(self, other: "Judge") -> str:
        """What the two share, such as "is the same rule"; "" if they are independent."""
        own, others = unwrapped(self.scorer), unwrapped(other.scorer)
        if own is others:
            return "is the same scorer"
        if isinstance(own, RuleScorer) and isinstance(others, RuleScorer):
            return shared_by_rules(own.rule, others.rule)
        if self.weights_hash != "" and self.weights_hash == other.weights_hash:
            return next(
                (text for kind, text in _SAME.items() if isinstance(own, kind)), "has the same weights"
            )
        if frozenset() in (self.data_hashes, other.data_hashes):
            return ""
        # Unknown training data may be anybody's: such a judge never counts as independent.
        if self.data_hashes is None or other.data_hashes is None:
            return "has unknown training data, maybe the same"
        return "has the same training data" if self.data_hashes & other.data_hashes else ""

    def overlaps_with(self, other: "Judge") -> bool:
        """Whether the two share the scorer, what they measure, weights or training data, or possibly do."""
        return self.shared_with(other) != ""


def comparison_spec(
    objectives: tuple[str, ...],
    judges: Sequence[Judge],
    reward_judges: Sequence[Judge],
    margins: Mapping[str, float],
    bootstrap_settings: tuple[float, int, int],
    goals: Mapping[str, Goal],
) -> ComparisonSpec:
    """The settings of a comparison; the judge of an objective is the first that scores it.

    Raises:
        WiringError: Two judges of one name score the same objective.
    """
    by_objective = {name: judge for name in objectives if (judge := _find_judge(name, judges)) is not None}
    shared = {
        name: next((text for reward in reward_judges if (text := judge.shared_with(reward))), "")
        for name, judge in by_objective.items()
    }
    return ComparisonSpec(
        objectives=objectives,
        goals=goals,
        judge_names={name: judge.name for name, judge in by_objective.items()},
        qualities={
            name: judge.qualities[name] for name, judge in by_objective.items() if name in judge.qualities
        },
        independent={name: not text for name, text in shared.items()},
        shared={name: text for name, text in shared.items() if text},
        margins=margins,
        confidence_level=bootstrap_settings[0],
        bootstrap_samples=bootstrap_settings[1],
        seed=bootstrap_settings[2],
    )


def _find_judge(objective: str, judges: Sequence[Judge]) -> Judge | None:
    matches = [judge for judge in judges if objective in judge.scorer.names]
    if len({judge.short_name for judge in matches}) < len(matches):
        problem = f'two judges named "{matches[0].short_name}" score the objective "{objective}"'
        raise WiringError(f"{problem}; fix: name them differently, or keep one of them")
    return matches[0] if matches else None


def score_arms(
    arms: Arms, objectives: Sequence[str], judges: Sequence[Judge], scorer_view: ScorerView
) -> ScorePair:
    """Scores [P, n, K] of both arms; see `_score_arm`."""
    before, after = (_score_arm(arm, objectives, judges, scorer_view) for arm in arms)
    return before, after


def _score_arm(
    arm: Generations, objectives: Sequence[str], judges: Sequence[Judge], scorer_view: ScorerView
) -> Scores:
    """[P, n, K]; NaN without a judge, without a visible part, or where the judge could not score."""
    visible = [visible_text(sample, scorer_view) for sample in arm.samples]
    scores = np.full((len(arm.samples), len(objectives)), np.nan)
    known: set[str] = set()
    for judge in judges:
        # The first judge of an objective gives its numbers.
        names = [name for name in judge.scorer.names if name not in known]
        known.update(names)
        columns = [(k, judge.scorer.names.index(o)) for k, o in enumerate(objectives) if o in names]
        if columns:
            judged = score_visible(judge.scorer, visible).double().cpu().numpy()
            for k, column in columns:
                scores[:, k] = judged[:, column]
    # An infinite score would make every mean infinite; it counts as missing.
    scores[~np.isfinite(scores)] = np.nan
    return scores.reshape(len(arm.prompts), arm.num_generations, len(objectives))


def compare_judges(
    spec: ComparisonSpec,
    arms: Arms,
    judges: Sequence[Judge],
    reward_judges: Sequence[Judge],
    scorer_view: ScorerView,
) -> dict[str, Any]:
    """A table for each of several judges, and their agreement; empty unless two score the same objective.

    Args:
        spec: The comparison by the first judge of each objective.
        arms: Responses before and after.
        judges: All judges.
        reward_judges: The training reward.
        scorer_view: The part of a response that they read.
    """
    by_name: dict[str, list[Judge]] = {}
    for judge in judges:
        by_name.setdefault(judge.short_name, []).append(judge)
    names = {name: [o for judge in own for o in judge.scorer.names] for name, own in by_name.items()}
    shared = [name for name in shared_objectives(names) if name in spec.objectives]
    if not shared:
        return {}
    clusters, tables, columns = prompt_clusters(arms[0].prompts), {}, {}
    sampling = (spec.confidence_level, spec.bootstrap_samples, spec.seed)
    for name, own in by_name.items():
        objectives = tuple(objective for objective in shared if objective in names[name])
        if not objectives:
            continue
        own_spec = comparison_spec(objectives, own, reward_judges, spec.margins, sampling, spec.goals)
        scores = score_arms(arms, objectives, own, scorer_view)
        tables[name] = compare_objectives(own_spec, *scores, clusters)
        for k, objective in enumerate(objectives):
            columns[objective, name] = np.concatenate([arm[:, :, k].ravel() for arm in scores])
    agreement = {
        objective: judge_agreement(
            {name: scores for (scored, name), scores in columns.items() if scored == objective}
        )
        for objective in shared
    }
    return {"judges": tables, "agreement": agreement}


def combine_judge_verdicts(results: dict[str, Any], rule: str) -> None:
    """Replace the verdicts of objectives with several judges by the joint one; adds `verdicts`.

    Args:
        results: Content of eval.json, with the results of `compare_judges`.
        rule: See `combine_verdicts`.
    """
    for objective in results.get("agreement", ()):
        tables = results["judges"].items()
        verdicts = {name: table[objective]["verdict"] for name, table in tables if objective in table}
        cautions = [
            f"{name}: {caution}"
            for name, table in tables
            if objective in table
            for caution in table[objective]["cautions"]
        ]
        joint = {"verdict": combine_verdicts(verdicts, rule), "verdicts": verdicts, "cautions": cautions}
        results["objectives"][objective] |= joint
        results["verdict_rule"] = rule
