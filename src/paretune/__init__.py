"""Align a language model to several objectives at once, and see what each one costs the others.

    import paretune as pt

    result = pt.align("models/policy", scorers=[brief, polite], prompts=prompts, output_dir="runs/a")
    print(pt.evaluate(result.initial_policy, result.policy, judges=[judge], prompts=test_prompts))

`__all__` is the public API; docs/api.md lists it. Other modules may change in any version.
"""

from typing import TYPE_CHECKING

from paretune._lazy import make_lazy

if TYPE_CHECKING:
    from paretune import algorithms as algorithms
    from paretune.api import scorers as scorers
    from paretune.api.alignment import AlignResult as AlignResult
    from paretune.api.alignment import align as align
    from paretune.api.evaluation import EvaluationResult as EvaluationResult
    from paretune.api.evaluation import evaluate as evaluate
    from paretune.api.exports import export as export
    from paretune.api.policies import load_policy as load_policy
    from paretune.api.policies import sample as sample
    from paretune.api.ratings import rate as rate
    from paretune.api.recipes import check as check
    from paretune.api.recipes import choose as choose
    from paretune.api.recipes import compare as compare
    from paretune.api.recipes import load_recipe as load_recipe
    from paretune.api.recipes import report as report
    from paretune.api.recipes import run as run
    from paretune.api.recipes import sweep as sweep
    from paretune.api.reward_models import FittedRewardModel as FittedRewardModel
    from paretune.api.reward_models import fit_reward_model as fit_reward_model
    from paretune.api.reward_models import load_reward_model as load_reward_model
    from paretune.api.scores import pareto_front as pareto_front
    from paretune.api.scores import score as score
    from paretune.chat.loading import load_chat as load_chat
    from paretune.chat.session import Chat as Chat
    from paretune.core.errors import ParetuneError as ParetuneError
    from paretune.credit.base import CreditStep as CreditStep
    from paretune.evaluate.judging import Judge as Judge
    from paretune.loss.base import Loss as Loss
    from paretune.reward.scorers import Scorer as Scorer
    from paretune.rl.algorithm_spec import AlgorithmSpec as AlgorithmSpec
    from paretune.rollout.sampler import RolloutSource as RolloutSource
    from paretune.rollout.sampler import Sampler as Sampler
    from paretune.trackers.base import Tracker as Tracker

__version__ = "0.1.0"

_EXPORTS = {
    "AlgorithmSpec": "rl.algorithm_spec",
    "AlignResult": "api.alignment",
    "Chat": "chat.session",
    "CreditStep": "credit.base",
    "EvaluationResult": "api.evaluation",
    "FittedRewardModel": "api.reward_models",
    "Judge": "evaluate.judging",
    "Loss": "loss.base",
    "ParetuneError": "core.errors",
    "RolloutSource": "rollout.sampler",
    "Sampler": "rollout.sampler",
    "Scorer": "reward.scorers",
    "Tracker": "trackers.base",
    "align": "api.alignment",
    "check": "api.recipes",
    "choose": "api.recipes",
    "compare": "api.recipes",
    "evaluate": "api.evaluation",
    "export": "api.exports",
    "fit_reward_model": "api.reward_models",
    "load_chat": "chat.loading",
    "load_policy": "api.policies",
    "load_recipe": "api.recipes",
    "load_reward_model": "api.reward_models",
    "pareto_front": "api.scores",
    "rate": "api.ratings",
    "report": "api.recipes",
    "run": "api.recipes",
    "sample": "api.policies",
    "score": "api.scores",
    "sweep": "api.recipes",
}
"""Name -> module that defines it; imported on first use, so that `import paretune` loads no torch."""
_MODULES = {"algorithms": "algorithms", "scorers": "api.scorers"}
__all__ = [
    "AlgorithmSpec",
    "AlignResult",
    "Chat",
    "CreditStep",
    "EvaluationResult",
    "FittedRewardModel",
    "Judge",
    "Loss",
    "ParetuneError",
    "RolloutSource",
    "Sampler",
    "Scorer",
    "Tracker",
    "algorithms",
    "align",
    "check",
    "choose",
    "compare",
    "evaluate",
    "export",
    "fit_reward_model",
    "load_chat",
    "load_policy",
    "load_recipe",
    "load_reward_model",
    "pareto_front",
    "rate",
    "report",
    "run",
    "sample",
    "score",
    "scorers",
    "sweep",
]

__getattr__, __dir__ = make_lazy(__name__, _EXPORTS, _MODULES, {"algorithms": "api.arguments"})
