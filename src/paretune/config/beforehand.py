"""What a recipe spends of its budget before its own loop begins, as far as the recipe alone can tell."""

from collections.abc import Iterator

from paretune.config.faults import ConfigIssue
from paretune.config.schema import Config
from paretune.learn.evolution import EvolutionSpec
from paretune.learn.recipe import AlgorithmSpec, PretrainPhase
from paretune.rollout.sample import OnPolicy

FIX_HINT = "raise it, or shorten what is made"


def phase_cost_bounds(config: Config, spec: AlgorithmSpec | EvolutionSpec) -> tuple[int, int]:
    """Least and most that the phases take of the budget's currency; 0 where the recipe has no budget.

    A response has at least one token. How many tokens are trained on is known to nobody before prompts are
    read and responses compared: they are taken for 0.
    """
    budget = config.run.budget
    if budget is None or budget.resource == "trained_tokens":
        return 0, 0
    least = most = 0
    for made in spec.phases:
        if isinstance(made, PretrainPhase) and isinstance(made.spec.rollout, OnPolicy):
            responses = made.max_steps * config.training.prompts_per_step * made.spec.rollout.num_generations
            least += responses
            most += responses * (
                made.spec.rollout.max_new_tokens if budget.resource == "rollout_tokens" else 1
            )
    return least, most


def budget_issues(config: Config, spec: AlgorithmSpec | EvolutionSpec) -> Iterator[ConfigIssue]:
    """A budget that is certainly spent before the loop begins."""
    budget, (least, most) = config.run.budget, phase_cost_bounds(config, spec)
    if budget is not None and least >= budget.limit:
        at_least = "" if least == most else "at least "
        wrong = f"{config.algorithm.name} takes {at_least}{least:,} of {budget.limit:,} {budget.resource} beforehand"
        yield ConfigIssue(("run", "budget", "limit"), wrong, fix=FIX_HINT)


def budget_warnings(config: Config, spec: AlgorithmSpec | EvolutionSpec) -> Iterator[str]:
    """A warning of a budget that may be spent before the loop begins: the run would then fail there."""
    budget, (_, most) = config.run.budget, phase_cost_bounds(config, spec)
    if budget is not None and most >= budget.limit:
        yield (
            f"{config.algorithm.name} takes up to {most:,} of {budget.limit:,} {budget.resource} beforehand: "
            "if nothing is left, the run fails there; fix: raise run.budget, or shorten what is made"
        )
