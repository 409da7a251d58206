"""Prints every key of a recipe from its schema, and every argument of an algorithm from its signature.

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
from paretune.config import data_schema, rollout_schema, schema, scorer_schema, tracker_schema
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
    "python": scorer_schema.PythonScorerSection,
    "length": scorer_schema.LengthRuleSection,
    "regex": scorer_schema.RegexRuleSection,
    "json": scorer_schema.JsonRuleSection,
    "phrases": scorer_schema.PhrasesRuleSection,
    "repetition": scorer_schema.RepetitionRuleSection,
    "classifier": scorer_schema.ClassifierScorerSection,
    "reward_model": scorer_schema.RewardModelScorerSection,
    "llm_judge": scorer_schema.LlmJudgeScorerSection,
    "objective": schema.ObjectiveSection,
    "thinking": schema.ThinkingSection,
    "local": rollout_schema.LocalRolloutSection,
    "in_process": rollout_schema.InProcessVllmSection,
    "server": rollout_schema.ServerVllmSection,
    "training": schema.TrainingSection,
    "run": schema.RunSection,
    "budget": schema.BudgetSection,
    "evaluate": schema.EvaluateSection,
    "tensorboard": tracker_schema.TensorboardSection,
    "wandb": tracker_schema.WandbSection,
    "trackio": tracker_schema.TrackioSection,
    "mlflow": tracker_schema.MlflowSection,
    "python_tracker": tracker_schema.PythonTrackerSection,
}
FROM_OBJECTIVES = {"weights", "constraints", "gates"}
"""Arguments that come from the section `objectives`."""
DESCRIPTIONS = {
    ("recipe", "name"): "Name of the run and of its folder; default: the file name without suffix.",
    ("recipe", "data"): "Below.",
    ("recipe", "policy"): "Below.",
    ("recipe", "objectives"): "NAME: {...}, each scored by the reward head or the scorer of its name; below.",
    ("recipe", "algorithm"): "{name: ...} and the arguments of that algorithm; below.",
    ("recipe", "aggregate"): "{name: weighted_sum} and the arguments of that aggregator; below.",
    ("recipe", "thinking"): "Below; null: no thinking.",
    ("recipe", "rollout"): "Engine that samples the responses to train on; below.",
    ("data", "world"): "The built-in help desk instead of files; below.",
    ("policy", "lora"): "Below; null: all weights are trained.",
    ("policy", "sft"): "Below; null: no fine-tuning before the alignment.",
    ("reward", "lora"): "As policy.lora.",
    ("reward", "ratings"): "NAME: {...}, files of responses with labels.",
    ("reward", "pairs"): "NAME: {...}, files of preference pairs.",
    ("reward", "test_ratings"): "As ratings: test data of the reward report.",
    ("reward", "test_pairs"): "As pairs.",
    ("reward", "training"): "As policy.sft, without demonstrations.",
    ("objective", "constraint_param"): "For a rate, the minimum score; for a quantile, its level.",
    (
        "training",
        "warmup_ratio",
    ): "Fraction of the steps, or of the budget, over which the learning rate rises from 0.",
    ("run", "max_steps"): "Training steps of the alignment.",
    ("run", "seed"): "Seed of all random draws.",
    ("run", "save_steps"): "Steps between two checkpoints.",
    ("budget", "resource"): "The counted quantity.",
    ("evaluate", "temperature"): "Sampling temperature.",
    ("evaluate", "seed"): "Seed of the responses and of the bootstrap.",
}
"""Descriptions of keys that have none in the schema."""
DISPLAYED_DEFAULTS = {
    ("run", "output_dir"): "runs/NAME",
    ("recipe", "name"): "FILE",
    ("evaluate", "refusal_categories"): "below",
}
"""Defaults that depend on other keys, or are too long for the column."""


def choices(annotation: Any) -> str:
    """The allowed values of a key, if they are a list."""
    origin = get_origin(annotation)
    if origin is Literal:
        values = [str(value) for value in get_args(annotation)]
        return " | ".join(values) if len(values) > 1 else ""
    if origin in (Annotated, Union, UnionType):
        return next((text for part in get_args(annotation) if (text := choices(part))), "")
    return ""


def yaml_default(default: Any) -> str:
    """A default as YAML; "..." for a section."""
    if default is None or isinstance(default, bool):
        return {None: "null", True: "true", False: "false"}[default]
    if isinstance(default, Section):
        return "..."
    if isinstance(default, Mapping):
        return f"{{{', '.join(f'{key}: {yaml_default(value)}' for key, value in default.items())}}}"
    if isinstance(default, list | tuple):
        return f"[{', '.join(map(yaml_default, default))}]"
    return f"{default:g}" if isinstance(default, float) else str(default) or '""'


def print_keys(section_name: str, section: type[Section]) -> None:
    """One row per key: its default, its allowed values, and its description."""
    for name, field in section.model_fields.items():
        default = (
            "required" if field.is_required() else yaml_default(field.get_default(call_default_factory=True))
        )
        default = DISPLAYED_DEFAULTS.get((section_name, name), default)
        parts = (choices(field.annotation), description(section_name, name, field))
        text = ". ".join(part for part in parts if part)
        head = f"{field.alias or name:<22} {default:<12}"
        lines = textwrap.wrap(text, WIDTH - 36) or [""]
        print("\n".join([f"{head} {lines[0]}".rstrip(), *(" " * 36 + line for line in lines[1:])]))


def description(section_name: str, name: str, field: FieldInfo) -> str:
    """The description of a key, in the schema or above, never in both."""
    key = (section_name, name)
    assert not (field.description and key in DESCRIPTIONS), f"the schema describes {key} itself"
    return " ".join((field.description or DESCRIPTIONS.get(key, "")).split())


def print_arguments(functions: Mapping[str, Callable[..., Any]]) -> None:
    """One paragraph per function: its arguments and their defaults."""
    for name, function in functions.items():
        parameters = inspect.signature(function).parameters.items()
        arguments = "  ".join(
            f"{key}:\N{NO-BREAK SPACE}{yaml_default(p.default)}".replace(", ", ",\N{NO-BREAK SPACE}").replace(
                ": ", ":\N{NO-BREAK SPACE}"
            )
            for key, p in parameters
            if key not in FROM_OBJECTIVES
        )
        lines = textwrap.wrap(arguments, WIDTH - 17, break_on_hyphens=False) or ["none"]
        text = "\n".join([f"{name:<16} {lines[0]}", *(" " * 17 + line for line in lines[1:])])
        print(text.replace("\N{NO-BREAK SPACE}", " "))


def main() -> None:
    """Print all blocks of the page."""
    for name, section in SECTIONS.items():
        block(name)
        print_keys(name, section)
    block("algorithms")
    print_arguments(ALGORITHMS)
    block("aggregates")
    print_arguments(AGGREGATES)


if __name__ == "__main__":
    main()
