"""The protocol of built-in worlds, and the registry that finds them by name."""

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from paretune.core.errors import ConfigError
from paretune.core.types import PreTrainedTokenizerBase
from paretune.data.prompt_formats import PromptFormat
from paretune.data.records import Demonstration, Prompt, Rating, Sample

if TYPE_CHECKING:
    # Configurations ask a world for its objectives without loading torch.
    from torch import Tensor

DEFAULT_WORLD = "helpdesk"
"""The world behind `data.world` and `policy.path: world`."""


@runtime_checkable
class WorldScorer(Protocol):
    """True scores of responses; has the form of any scorer."""

    @property
    def names(self) -> tuple[str, ...]:
        """Objectives, in the order of the columns."""

    def __call__(self, samples: Sequence[Sample]) -> "Tensor":
        """Scores [B, K], one row per sample and one column per objective."""


@runtime_checkable
class World(Protocol):
    """Facts and generators of one built-in world.

    The attributes are available without loading torch or transformers; methods load what they need.
    """

    @property
    def name(self) -> str:
        """Key in the registry."""

    @property
    def objectives(self) -> tuple[str, ...]:
        """Objectives with true scores and simulated raters."""

    @property
    def category_mix(self) -> Mapping[str, float]:
        """Prompt category -> its fraction of the generated prompts."""

    @property
    def refusal_categories(self) -> Mapping[str, str]:
        """Prompt category -> "up" or "down": the better direction of its refusal rate."""

    @property
    def context_length(self) -> int:
        """Context length of the initial policy, in tokens."""

    def is_refusal(self, response: str) -> bool:
        """True if a response of this world declines to help."""

    def scorer(self) -> WorldScorer:
        """The ground-truth scorer."""

    def tokenizer(self, prompt_format: PromptFormat = "") -> PreTrainedTokenizerBase:
        """The tokenizer; with a prompt format, its vocabulary covers the format's instruction and reply."""

    def policy_config(self, vocab_size: int) -> Any:
        """The transformers config of the initial policy."""

    def policy_shape(self, prompt_format: PromptFormat = "") -> Mapping[str, int]:
        """Sizes of the initial policy under their names in transformers; does not load transformers."""

    def max_prompt_tokens(self, prompts: Sequence[Prompt], prompt_format: PromptFormat = "") -> int:
        """Length in tokens of the longest of these prompts, computed without loading transformers."""

    def prompts(
        self, *, num_prompts: int, num_test_prompts: int, seed: int
    ) -> tuple[dict[str, list[Prompt]], list[Prompt]]:
        """Training prompts by category, and test prompts of all categories."""

    def demonstrations(
        self, *, num_demonstrations: int, seed: int, prompt_format: PromptFormat = ""
    ) -> Sequence[Demonstration]:
        """Demonstrations for the supervised fine-tuning of the initial policy."""

    def ratings(
        self,
        *,
        num_ratings: int,
        num_raters: int,
        rater_noise: float,
        length_bias: float,
        missing_rate: float,
        confidence_bias: float,
        seed: int,
        objectives: Iterable[str],
        prompt_format: PromptFormat = "",
    ) -> tuple[Sequence[Rating], Sequence[Rating]]:
        """Training ratings of these objectives, and unseen test ratings labelled with the true scores."""


# Name -> "module:attribute", imported on first use.
_REGISTRY: Mapping[str, str] = {"helpdesk": "paretune.worlds.helpdesk.registration:HELPDESK"}


def world_names() -> tuple[str, ...]:
    """Names of all built-in worlds."""
    return tuple(_REGISTRY)


def get_world(name: str = DEFAULT_WORLD) -> World:
    """The built-in world of this name.

    Raises:
        ConfigError: No built-in world has this name.
    """
    if name not in _REGISTRY:
        raise ConfigError(f'no built-in world "{name}"; fix: use one of {", ".join(_REGISTRY)}')
    module, _, attribute = _REGISTRY[name].partition(":")
    world: World = getattr(import_module(module), attribute)
    return world
