"""What the run folder of a recipe holds before the run starts: nothing, this run, or another one."""

import hashlib
import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from paretune.config import Config, config_hash, resolved_yaml
from paretune.config.schema import STEP_EVALUATION_KEYS
from paretune.core.errors import ConfigError
from paretune.experiment.resolved import ResolvedRun, resolve
from paretune.experiment.reuse import reuse_key
from paretune.run.compat import (
    EVALUATION_SECTIONS,
    check_evaluation,
    check_resumable,
    free_folder,
    has_judgments,
)
from paretune.run.folder import read_json


def training_hash(config: Config) -> str:
    """The identity of a run: hash of everything that decides the numbers of its training."""
    digest = config_hash(config, without=EVALUATION_SECTIONS)
    if config.evaluate.eval_steps is None:
        return digest
    chosen_by = [getattr(config.evaluate, key) for key in STEP_EVALUATION_KEYS]
    return hashlib.sha256(json.dumps([digest, *chosen_by]).encode()).hexdigest()


def check_output_folder(run: ResolvedRun, ends_before_alignment: bool = False) -> None:
    """Refuse a folder that the recipe alone shows to hold another run, before any file is read.

    Args:
        run: The resolved recipe.
        ends_before_alignment: The run is made to be reused, and has the identity of such a run.

    Raises:
        ConfigError: It holds another run, files of no run, or judgments with other settings.
    """
    path, text = Path(run.config.run.output_dir), resolved_yaml(run.config)
    if ends_before_alignment:
        check_resumable(path, reuse_key(run), text)
        return
    check_resumable(path, training_hash(run.config), text)
    check_evaluation(path, text)


def other_run_warnings(run: ResolvedRun) -> Iterator[str]:
    """The error with which `paretune run` would refuse the run folder."""
    try:
        check_output_folder(run)
    except ConfigError as error:
        yield str(error)


def describe_next(config: Config, command: Sequence[str]) -> str:
    """The command to go on with after a check, and in a comment what it does with a run that was started.

    Args:
        config: The recipe.
        command: The command line of the run.
    """
    path, run = Path(config.run.output_dir), resolve(config)
    if list(other_run_warnings(run)):
        words = [word for word in command if not word.startswith("run.output_dir=")]
        return shlex.join([*words, f"run.output_dir={free_folder(path)}"])
    line, state = shlex.join(command), read_json(path / "run.json")
    if state is None or state.get("config_hash") != training_hash(run.config):
        return line  # new, or without results, and then it starts again
    if state.get("status") == "done" and state.get("stage") == "report" and has_judgments(path):
        return f"{shlex.join(['paretune', 'report', str(path)])}  # the run is complete"
    return f"{line}  # resumes {path}"
