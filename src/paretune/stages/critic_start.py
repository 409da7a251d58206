"""Whether a critic can start from a reward model that was made elsewhere."""

from collections.abc import Callable, Iterator

from paretune.config import Config, location_of
from paretune.config.algorithm import build_spec
from paretune.elsewhere import PreTrainedTokenizerBase
from paretune.errors import format_issue
from paretune.learn.recipe import AlgorithmSpec
from paretune.models.load import load_tokenizer
from paretune.stages.ready import as_config_error


def pretrained_critic_path(config: Config) -> str | None:
    """Folder or hub name of the ready-made reward that a critic starts from; None where none does."""
    recipe = build_spec(config)
    if (
        not isinstance(recipe, AlgorithmSpec)
        or "values" not in recipe.requires()
        or recipe.critic.init_from != "reward"
    ):
        return None
    return config.reward.path


def critic_tokenizer_issues(
    config: Config, load_policy_tokenizer: Callable[[Config], PreTrainedTokenizerBase]
) -> Iterator[str]:
    """One line where the ready-made reward that a critic starts from reads other tokens than the policy.

    A critic is asked at every token of the policy's responses, so both must mean the same by each number.

    Args:
        config: The recipe; its models can be read.
        load_policy_tokenizer: The policy's tokenizer.

    Raises:
        ConfigError: One of the two has no tokenizer that can be read.
    """
    path = pretrained_critic_path(config)
    if path is None:
        return
    with as_config_error(config, ("reward", "path")):
        known = load_tokenizer(path, revision=config.reward.revision).get_vocab()
    with as_config_error(config, ("policy", "path")):
        spoken = load_policy_tokenizer(config).get_vocab()
    if known != spoken:
        where, key = location_of(config, ("reward", "path")), "reward.path"
        wrong = "reads other tokens than the policy, and the critic is to start from it"
        yield format_issue(where, None, None, key, wrong, fix="write algorithm.critic_init_from: policy")
