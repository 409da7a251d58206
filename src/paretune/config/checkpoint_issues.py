"""Rules for evaluations during the training: every setting must have an effect."""

from collections.abc import Iterator

from paretune.config.issues import ConfigIssue
from paretune.config.schema import STEP_EVALUATION_KEYS, Config
from paretune.config.yaml import KeyPath

PATIENCE_KEY: KeyPath = ("evaluate", "early_stopping_patience")


def checkpoint_issues(config: Config) -> Iterator[ConfigIssue]:
    """Settings of evaluations during the training without any such evaluation, or that can never matter."""
    section, max_steps = config.evaluate, config.run.max_steps
    if section.eval_steps is None:
        defaults = type(section)()
        for key in STEP_EVALUATION_KEYS[1:]:
            if getattr(section, key) != getattr(defaults, key):
                problem = "has no effect without evaluate.eval_steps"
                fix = "set it to the number of training steps between two evaluations, or remove this key"
                yield ConfigIssue(("evaluate", key), problem, fix=fix)
        return
    if section.eval_steps >= max_steps:
        problem = f"is {section.eval_steps}, and the run has {max_steps} steps: only its end is evaluated"
        fix = f"write a smaller number, such as {max(max_steps // 6, 1)}, or remove it"
        yield ConfigIssue(("evaluate", "eval_steps"), problem, fix=fix)
    if section.early_stopping_patience is None:
        return
    if config.judge is None and not config.judges:
        problem = "has no effect without a judge: the training reward cannot fall while it rises"
        yield ConfigIssue(PATIENCE_KEY, problem, fix="name a section judge or judges, or remove this key")
    if config.reward is None and not config.scorers:
        problem = "has no effect without a training reward, whose rise it compares with the judge"
        yield ConfigIssue(PATIENCE_KEY, problem, fix="remove this key")
    num_evaluations = config.num_step_evaluations
    if section.early_stopping_patience >= num_evaluations:
        problem = (
            f"is {section.early_stopping_patience}, and there are {num_evaluations} evaluations, the last of "
            "them at the end: the training can never end early"
        )
        yield ConfigIssue(PATIENCE_KEY, problem, fix="lower it, or evaluate.eval_steps")
