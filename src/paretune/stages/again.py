"""Whether what learns has layers that can be worked out again, asked of configurations alone."""

from collections.abc import Iterator

from paretune.config import Experiment, written_at
from paretune.config.rules import WORLD
from paretune.errors import WiringError, complaint
from paretune.models.activations import layers_of
from paretune.models.load import config_of
from paretune.models.targets import Task, skeleton
from paretune.stages.critic_start import ready_made


def unlayered(e: Experiment) -> Iterator[str]:
    """One line for every model whose layers `learn.activations: recompute` could not work out again.

    The policy of the built-in world has such layers, and so has a critic that starts from the policy, if the
    policy has.

    Args:
        e: The recipe; the configurations of its models can be read.
    """
    if e.learn.activations != "recompute":
        return
    for path, revision, task in _learning(e):
        try:
            layers_of(skeleton(config_of(path, revision=revision), task))
        except WiringError as error:
            key = "learn.activations"
            wrong, _, fix = str(error).removeprefix(f"{key}: ").partition("; fix: ")
            yield complaint(written_at(e, ("learn", "activations")), None, None, key, wrong, fix=fix)
        except ValueError:
            continue  # there is no such network: whoever loads it, or puts an adapter on it, says so


def _learning(e: Experiment) -> Iterator[tuple[str, str | None, Task]]:
    """Models that are named and learn: folder or hub name, revision, and what the network does."""
    if e.policy.path != WORLD:
        yield e.policy.path, e.policy.revision, "CAUSAL_LM"
    critic = ready_made(e)
    if critic is not None:
        yield critic, e.reward.revision, "SEQ_CLS"
