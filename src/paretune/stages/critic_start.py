"""Whether a critic can start from a reward model that was made elsewhere."""

from collections.abc import Callable, Iterator

from paretune.config import Experiment, written_at
from paretune.config.algorithm import recipe_of
from paretune.elsewhere import PreTrainedTokenizerBase
from paretune.errors import complaint
from paretune.learn.recipe import Recipe
from paretune.models.load import load_tokenizer
from paretune.stages.ready import placed


def ready_made(e: Experiment) -> str | None:
    """Folder or hub name of the ready-made reward that a critic starts from; None where none does."""
    recipe = recipe_of(e)
    if not isinstance(recipe, Recipe) or "values" not in recipe.wants() or recipe.critic.of != "reward":
        return None
    return e.reward.path


def other_tokens(e: Experiment, reads: Callable[[Experiment], PreTrainedTokenizerBase]) -> Iterator[str]:
    """One line where the ready-made reward that a critic starts from reads other tokens than the policy.

    A critic is asked at every token of the policy's responses, so both must mean the same by each number.

    Args:
        e: The recipe; its models can be read.
        reads: The policy's tokenizer.

    Raises:
        ConfigError: One of the two has no tokenizer that can be read.
    """
    path = ready_made(e)
    if path is None:
        return
    with placed(e, ("reward", "path")):
        known = load_tokenizer(path, revision=e.reward.revision).get_vocab()
    with placed(e, ("policy", "path")):
        spoken = reads(e).get_vocab()
    if known != spoken:
        where, key = written_at(e, ("reward", "path")), "reward.path"
        wrong = "reads other tokens than the policy, and the critic is to start from it"
        yield complaint(where, None, None, key, wrong, fix="write algorithm.critic: policy")
