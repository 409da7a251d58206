"""Built-in worlds: synthetic tasks whose true scores are known, for demos, tests and benchmarks.

A world brings prompts, demonstrations, ratings by simulated raters, a small tokenizer and policy, and a
scorer that returns the true scores. The rest of the package reaches worlds only through `get_world`.
"""

from paretune.worlds.registry import DEFAULT_WORLD, World, WorldScorer, get_world, world_names

__all__ = ["DEFAULT_WORLD", "World", "WorldScorer", "get_world", "world_names"]
