"""Whether what learns has layers that can be worked out again, asked of configurations alone."""

from collections.abc import Iterator

from paretune.config import Config, location_of
from paretune.config.rules import WORLD
from paretune.errors import WiringError, format_issue
from paretune.models.activations import checkpointable_layers
from paretune.models.load import load_model_config
from paretune.models.targets import TaskType, meta_model
from paretune.stages.critic_start import pretrained_critic_path


def gradient_checkpointing_issues(config: Config) -> Iterator[str]:
    """One line for every model whose layers `training.gradient_checkpointing: recompute` could not work out again.

    The policy of the built-in world has such layers, and so has a critic that starts from the policy, if the
    policy has.

    Args:
        config: The recipe; the configurations of its models can be read.
    """
    if config.training.gradient_checkpointing != "recompute":
        return
    for path, revision, task in _trained_models(config):
        try:
            checkpointable_layers(meta_model(load_model_config(path, revision=revision), task))
        except WiringError as error:
            key = "training.gradient_checkpointing"
            wrong, _, fix = str(error).removeprefix(f"{key}: ").partition("; fix: ")
            yield format_issue(
                location_of(config, ("training", "gradient_checkpointing")), None, None, key, wrong, fix=fix
            )
        except ValueError:
            continue  # there is no such network: whoever loads it, or puts an adapter on it, says so


def _trained_models(config: Config) -> Iterator[tuple[str, str | None, TaskType]]:
    """Models that are named and learn: folder or hub name, revision, and what the network does."""
    if config.policy.path != WORLD:
        yield config.policy.path, config.policy.revision, "CAUSAL_LM"
    critic = pretrained_critic_path(config)
    if critic is not None:
        yield critic, config.reward.revision, "SEQ_CLS"
