"""Room 8, choices of parts: an algorithm is a function of a few lines that returns a recipe.

No tensor is touched here. `ALGORITHMS` is the table of contents; its keys are the names recipes use.
"""

from collections.abc import Callable

from paretune.algorithms.baselines import dr_grpo, reinforce_pp, rloo
from paretune.algorithms.gdpo import gdpo, mo_grpo
from paretune.algorithms.grpo import grpo
from paretune.algorithms.ratios import cispo, dapo, gspo, sapo
from paretune.learn.recipe import Recipe

ALGORITHMS: dict[str, Callable[..., Recipe]] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "reinforce_pp": reinforce_pp,
    "gdpo": gdpo,
    "mo_grpo": mo_grpo,
    "dapo": dapo,
    "gspo": gspo,
    "cispo": cispo,
    "sapo": sapo,
}
