"""What a recipe spends of its budget before its own loop begins, as far as the recipe alone can tell."""

from collections.abc import Iterator

from paretune.config.faults import Fault
from paretune.config.schema import Experiment
from paretune.learn.evolution import Evolution
from paretune.learn.recipe import Phase, Recipe
from paretune.rollout.sample import Online

FIX = "raise it, or shorten what is made"


def made_for(e: Experiment, recipe: Recipe | Evolution) -> tuple[int, int]:
    """Least and most that the phases take of the budget's currency; 0 where the recipe has no budget.

    A response has at least one token. How many tokens are trained on is known to nobody before prompts are
    read and responses compared: they are taken for 0.
    """
    budget = e.run.budget
    if budget is None or budget.currency == "trained_tokens":
        return 0, 0
    least = most = 0
    for made in recipe.before:
        if isinstance(made, Phase) and isinstance(made.recipe.source, Online):
            responses = made.steps * e.learn.prompts * made.recipe.source.n
            least += responses
            most += responses * (made.recipe.source.max_new if budget.currency == "rollout_tokens" else 1)
    return least, most


def beyond(e: Experiment, recipe: Recipe | Evolution) -> Iterator[Fault]:
    """A budget that is certainly spent before the loop begins."""
    budget, (least, most) = e.run.budget, made_for(e, recipe)
    if budget is not None and least >= budget.amount:
        at_least = "" if least == most else "at least "
        wrong = (
            f"{e.algorithm.name} takes {at_least}{least:,} of {budget.amount:,} {budget.currency} beforehand"
        )
        yield Fault(("run", "budget", "amount"), wrong, fix=FIX)


def perhaps_beyond(e: Experiment, recipe: Recipe | Evolution) -> Iterator[str]:
    """A warning of a budget that may be spent before the loop begins: the run would then fail there."""
    budget, (_, most) = e.run.budget, made_for(e, recipe)
    if budget is not None and most >= budget.amount:
        yield (
            f"{e.algorithm.name} takes up to {most:,} of {budget.amount:,} {budget.currency} beforehand: "
            "if nothing is left, the run fails there; fix: raise run.budget, or shorten what is made"
        )
