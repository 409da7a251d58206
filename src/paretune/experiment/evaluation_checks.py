"""What the evaluation of a run will not measure, or not well: warnings that need no weights."""

from collections.abc import Iterator
from pathlib import Path

from paretune.config import Config
from paretune.config.data_schema import RewardSection
from paretune.config.scorers import (
    judged_objectives,
    read_label_names,
    reward_model_objectives,
    scorer_objectives,
)
from paretune.config.validate import reward_sections
from paretune.evaluate.warnings import MIN_PROMPTS
from paretune.experiment.dataset import Dataset, RewardData
from paretune.experiment.scoring_models import model_size

MIN_TEST_ROWS = 20
"""With fewer held-out rows, chance decides whether a head seems to predict its labels."""


def evaluation_notes(config: Config, dataset: Dataset) -> Iterator[str]:
    """Objectives that no judge scores, and test sets that are too small for reliable numbers."""
    yield from _unjudged_notes(config)
    yield from _judges_of_nothing(config)
    yield from _few_prompts_notes(config, dataset)
    yield from _step_evaluation_notes(config, dataset)
    yield from _few_rows_notes(config, dataset)


def _unjudged_notes(config: Config) -> Iterator[str]:
    """Objectives of the reward model that are trained for, and that no judge scores.

    Those of `scorers` are measured by their own scorer. Objectives of weight 0 are only logged.
    """
    judged = _judged(config)
    if judged is None:
        return
    for name in reward_model_objectives(config):
        objective = config.objectives[name]
        if objective.weight and not {name, objective.scores_from or name} & judged:
            yield f"{name}: no judge scores it, so it will not be measured; fix: {_judge_fix(config)}"


def _judges_of_nothing(config: Config) -> Iterator[str]:
    """Judges none of whose objectives is trained: mostly a name that is not an objective."""
    for name, section in config.judges.items():
        scored = scorer_objectives(name, section)
        if scored is not None and not set(scored) & config.objectives.keys():
            key = "objective" if hasattr(section, "objective") else "objectives or outputs"
            yield (
                f"judges.{name} scores {', '.join(scored)}, and no such objective is trained; fix: name one "
                f"of {', '.join(config.objectives)} in its key {key}, or leave it to report that score"
            )


def _judged(config: Config) -> set[str] | None:
    """The objectives that judges score; None without a judge, or if they cannot be known without weights."""
    if config.judge is None and not config.judges:
        return None
    judged = set(judged_objectives(config))
    if isinstance(config.judge, RewardSection) and config.judge.path is not None:
        labels = read_label_names(Path(config.judge.path))
        if labels is None:
            return None
        judged |= set(labels)
    if any(scorer_objectives(name, section) is None for name, section in config.judges.items()):
        return None
    return judged


def _judge_fix(config: Config) -> str:
    if isinstance(config.judge, RewardSection) and config.judge.path is None:
        files = "judge.ratings" if config.judge.ratings or not config.judge.pairs else "judge.pairs"
        return f"add it to judge.objectives and {files}"
    return "add a judge of it to `judges`"


def _few_prompts_notes(config: Config, dataset: Dataset) -> Iterator[str]:
    num_prompts = len(dataset.test_prompts)
    if num_prompts >= MIN_PROMPTS:
        return
    limit = config.evaluate.max_prompts
    if limit is not None and limit < MIN_PROMPTS:
        fix = "raise evaluate.max_prompts"
    elif config.data.world is not None:
        fix = "raise data.world.num_test_prompts"
    elif config.data.test_prompts:
        fix = "name more prompts in data.test_prompts"
    else:
        fix = "raise data.holdout_fraction, or name more prompts"
    yield (
        f"only {_count(num_prompts, 'test prompt')}: with fewer than {MIN_PROMPTS}, the intervals of the "
        f"verdicts are often too narrow; fix: {fix}"
    )


def _step_evaluation_notes(config: Config, dataset: Dataset) -> Iterator[str]:
    """Too few prompts to choose a step by, and a choice by the reward that was trained on."""
    num_prompts = len(dataset.validation_prompts)
    if not config.num_step_evaluations:
        return
    if num_prompts < MIN_PROMPTS:
        yield (
            f"only {_count(num_prompts, 'prompt')} for the evaluations during the training: with fewer than "
            f"{MIN_PROMPTS}, chance chooses among the steps; fix: raise evaluate.eval_prompts"
        )
    if config.judge is None and not config.judges and config.evaluate.select_checkpoint != "last":
        yield (
            "evaluate.select_checkpoint chooses by the training reward itself, which does not see when it is "
            "exploited; fix: name a judge"
        )


def describe_step_evaluations(config: Config, dataset: Dataset) -> Iterator[str]:
    """Number of the evaluations during the training, what they decide, and the weights that they keep."""
    section, number = config.evaluate, config.num_step_evaluations
    prompts = f"{len(dataset.validation_prompts)} prompts that are held out of it"
    yield f"{number} more during the training, every {section.eval_steps} steps and at its end, on {prompts}"
    if section.select_checkpoint != "last":
        # By the largest lower bound, the best so far and a new one are kept.
        kept = min(number, 2) if section.select_checkpoint == "lower_bound" else number
        yield f"chosen by {section.select_checkpoint}; on disk until then: {kept} x {_weights_size(config)}"
    if section.early_stopping_patience is not None:
        times = _count(section.early_stopping_patience, "evaluation")
        yield f"ends early once the judge falls in {times} in a row while the training reward rises"


def _weights_size(config: Config) -> str:
    """What one step that may still be chosen keeps on disk."""
    lora, policy = config.policy.lora, model_size(config, None)
    name = "the policy's weights" if lora is None else "the adapter's weights"
    if policy is None:
        return name
    weight_bytes = 2 if lora is None and config.policy.dtype == "bfloat16" else 4
    num_weights = policy.with_lora(None if lora is None else lora.r).num_trainable
    return f"{name} ({num_weights * weight_bytes / 1e9:.2g} GB)"


def _few_rows_notes(config: Config, dataset: Dataset) -> Iterator[str]:
    for name, section in reward_sections(config):
        data: RewardData | None = getattr(dataset, name)
        if data is None or len(data.test) >= MIN_TEST_ROWS:
            continue
        if section.test_ratings or section.test_pairs:
            groups = ("test_ratings", "test_pairs")
            fix = f"name more rows in {' and '.join(f'{name}.{g}' for g in groups if getattr(section, g))}"
        elif config.data.world is not None and not (section.ratings or section.pairs):
            fix = "raise data.world.num_ratings"
        else:
            fix = f"raise {name}.holdout_fraction, or name more rows"
        yield (
            f"{name}: only {_count(len(data.test), 'row')} to test it on: fewer than {MIN_TEST_ROWS} do not "
            f"show whether it predicts the labels; fix: {fix}"
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
