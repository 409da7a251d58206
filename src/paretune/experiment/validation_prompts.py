"""Prompts of the evaluations during the training: held out of what the policy is trained on.

They choose the policy that a run ends with, so they must be neither training prompts, to which it was fitted,
nor test prompts, whose numbers would then flatter the choice.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from paretune.core.rng import numpy_generator
from paretune.data.loader import prompt_key
from paretune.data.records import Prompt
from paretune.experiment.data_limits import sample_by_category
from paretune.experiment.dataset import Dataset
from paretune.experiment.resolved import ResolvedRun

REASON = "held out for the evaluations during the training"


def hold_out_validation_prompts(run: ResolvedRun, dataset: Dataset) -> tuple[Dataset, list[str]]:
    """The dataset with `evaluate.eval_prompts` of its training prompts held out, and what is wrong with that.

    Every category is held out in its proportion. A prompt is held out of all pools and of the stored
    responses and demonstrations of the alignment; not of what the policy is fine-tuned on before it, and not
    of the rows of reward models, whose training does not depend on the settings of the alignment.
    """
    section = run.config.evaluate
    if section.eval_steps is None:
        return dataset, []
    if run.algorithm.gradient_free:
        problem = "is not supported by methods without gradients"
        return dataset, [run.issue(("evaluate", "eval_steps"), problem, "remove it")]
    different = {prompt_key(p): p for pool in dataset.train_prompts.values() for p in pool}
    if len(different) <= section.eval_prompts:
        problem = (
            f"{section.eval_prompts} cannot be held out of {len(different):,} different training prompts"
        )
        fix = f"write at most {len(different) // 4}, or name more prompts"
        return dataset, [run.issue(("evaluate", "eval_prompts"), problem, fix)]
    keys = _draw_keys(list(different.values()), section.eval_prompts, run.config.run.seed)
    pools = {name: _without(pool, keys) for name, pool in dataset.train_prompts.items()}
    emptied = [name for name, pool in pools.items() if not pool and dataset.train_prompts[name]]
    issues = [
        run.issue(("evaluate", "eval_prompts"), f"holds out every prompt of {name}", "write a smaller number")
        for name in emptied
    ]
    num_excluded = sum(len(dataset.train_prompts[name]) - len(pool) for name, pool in pools.items())
    stored = tuple(group for group in dataset.stored_responses if prompt_key(group.prompt) not in keys)
    return (
        replace(
            dataset,
            train_prompts=pools,
            validation_prompts=tuple(different[key] for key in different if key in keys),
            stored_responses=stored,
            auxiliary_demonstrations=_without(dataset.auxiliary_demonstrations, keys),
            exclusions=(*dataset.exclusions, f"{num_excluded} training prompts excluded: {REASON}"),
        ),
        issues,
    )


def _draw_keys(prompts: Sequence[Prompt], number: int, seed: int) -> set[str]:
    """Keys of that many prompts, every category in its proportion."""
    order = numpy_generator(seed, 0, "validation prompts").permutation(len(prompts))
    return {prompt_key(prompt) for prompt in sample_by_category([prompts[i] for i in order], number)}


def _without(records: Iterable[Any], keys: set[str]) -> tuple[Any, ...]:
    return tuple(record for record in records if prompt_key(record) not in keys)
