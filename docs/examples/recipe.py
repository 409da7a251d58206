"""Every key of a recipe, from the schema that checks it; every argument of an algorithm, from its function.

python docs/examples/recipe.py
"""

import inspect
import textwrap
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from small import block

from paretune.algorithms import ALGORITHMS
from paretune.algorithms.aggregators import AGGREGATES
from paretune.config import data_schema, schema
from paretune.config.data_schema import Section

WIDTH = 110
SECTIONS: Mapping[str, type[Section]] = {
    "recipe": schema.Config,
    "data": schema.DataSection,
    "prompts": data_schema.PromptSource,
    "ratings": data_schema.RatingSource,
    "pairs": data_schema.PairSource,
    "columns": data_schema.ColumnsSection,
    "world": schema.WorldSection,
    "stored": schema.StoredResponsesSection,
    "policy": schema.PolicySection,
    "lora": data_schema.LoraSection,
    "sft": data_schema.SftSection,
    "reward": data_schema.RewardSection,
    "head": data_schema.RewardHeadSection,
    "objective": schema.ObjectiveSection,
    "thinking": schema.ThinkingSection,
    "learn": schema.TrainingSection,
    "run": schema.RunSection,
    "budget": schema.BudgetSection,
    "evaluate": schema.EvaluateSection,
}
WITHOUT = {"weights", "constraints", "gates"}
"""Arguments that the section `objectives` brings."""
WORDS = {
    ("recipe", "name"): "Of the run, and of its folder; left out: that of the file, without its ending.",
    ("recipe", "data"): "Below.",
    ("recipe", "policy"): "Below.",
    ("recipe", "reward"): "Below.",
    ("recipe", "objectives"): "NAME: {...}, each a head of the reward; below.",
    ("recipe", "algorithm"): "{name: ...} and the arguments of that algorithm; below.",
    ("recipe", "aggregate"): "{name: weighted} and the arguments of that aggregate; below.",
    ("recipe", "thinking"): "Below; null: the policy is not asked to think.",
    ("data", "world"): "The built-in help desk in the place of files; below.",
    ("policy", "lora"): "Below; null: all weights learn.",
    ("policy", "sft"): "Below; null: the policy starts as it is.",
    ("reward", "lora"): "As that of the policy.",
    ("reward", "ratings"): "NAME: {...}, files of responses with labels.",
    ("reward", "pairs"): "NAME: {...}, files of pairs of which one was chosen.",
    ("reward", "test_ratings"): "As ratings: what the report tries the heads on.",
    ("reward", "test_pairs"): "As pairs.",
    ("reward", "training"): "As policy.sft, without demonstrations.",
    ("objective", "at"): "For a rate, the least score that counts; for a quantile, its share.",
    ("training", "learning_rate"): "Learning rate of AdamW.",
    ("training", "warmup_ratio"): "Share of the steps, or of the budget, over which the rate rises from 0.",
    ("run", "max_steps"): "Training steps of the alignment.",
    ("run", "seed"): "All chance comes from it.",
    ("run", "save_steps"): "Steps from one checkpoint to the next.",
    ("budget", "currency"): "What is counted.",
    ("evaluate", "temperature"): "Of sampling, before and after.",
    ("evaluate", "seed"): "Of the responses of the evaluation.",
}
"""What is said of keys that the schema says nothing of."""
SHOWN = {("run", "output_dir"): "runs/NAME", ("recipe", "name"): "FILE"}
"""Defaults that depend on other keys."""


def choices(annotation: Any) -> str:
    """The words that a key may have, where there is a list of them."""
    origin = get_origin(annotation)
    if origin is Literal:
        words = [str(word) for word in get_args(annotation)]
        return " | ".join(words) if len(words) > 1 else ""
    if origin in (Annotated, Union, UnionType):
        return next((words for part in get_args(annotation) if (words := choices(part))), "")
    return ""


def worth(default: Any) -> str:
    """A default as a recipe would have it; that of a section is its own keys'."""
    if default is None or isinstance(default, bool):
        return {None: "null", True: "true", False: "false"}[default]
    if isinstance(default, Section):
        return "..."
    if isinstance(default, Mapping | tuple):
        return "{}" if isinstance(default, Mapping) else "[]"
    return f"{default:g}" if isinstance(default, float) else str(default) or '""'


def keys(of: str, section: type[Section]) -> None:
    """One key a row: its default, the words it may have, and what it says."""
    for name, field in section.model_fields.items():
        default = "needed" if field.is_required() else worth(field.get_default(call_default_factory=True))
        default = SHOWN.get((of, name), default)
        text = ". ".join(part for part in (choices(field.annotation), described(of, name, field)) if part)
        head = f"{field.alias or name:<17} {default:<9}"
        lines = textwrap.wrap(text, WIDTH - 28) or [""]
        print("\n".join([f"{head} {lines[0]}".rstrip(), *(" " * 28 + line for line in lines[1:])]))


def described(of: str, name: str, field: FieldInfo) -> str:
    """What the schema says of a key; or what is said above, never both."""
    assert not (field.description and (of, name) in WORDS), f"the schema describes {of}.{name} itself"
    return " ".join((field.description or WORDS.get((of, name), "")).split())


def arguments(functions: Mapping[str, Callable[..., Any]]) -> None:
    """One function a paragraph: its arguments and their defaults."""
    for name, function in functions.items():
        found = inspect.signature(function).parameters.items()
        said = "  ".join(
            f"{key}:\N{NO-BREAK SPACE}{worth(p.default)}" for key, p in found if key not in WITHOUT
        )
        lines = textwrap.wrap(said, WIDTH - 17, break_on_hyphens=False) or ["none"]
        text = "\n".join([f"{name:<16} {lines[0]}", *(" " * 17 + line for line in lines[1:])])
        print(text.replace("\N{NO-BREAK SPACE}", " "))


def main() -> None:
    """Print what the page shows."""
    for name, section in SECTIONS.items():
        block(name)
        keys(name, section)
    block("algorithms")
    arguments(ALGORITHMS)
    block("aggregates")
    arguments(AGGREGATES)


if __name__ == "__main__":
    main()
