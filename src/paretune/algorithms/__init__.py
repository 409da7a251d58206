"""Room 8, choices of parts: an algorithm is a function of a few lines that returns a recipe.

No tensor is touched here. `ALGORITHMS` is the table of contents; its keys are the names recipes use.
"""

from collections.abc import Callable

from paretune.algorithms.grpo import grpo
from paretune.learn.recipe import Recipe

ALGORITHMS: dict[str, Callable[..., Recipe]] = {"grpo": grpo}
