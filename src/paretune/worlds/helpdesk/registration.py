"""The help desk as an entry of the world registry; imports neither torch nor transformers until called."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paretune.core.types import PreTrainedTokenizerBase
from paretune.data.prompt_formats import PromptFormat
from paretune.data.records import Demonstration, Prompt, Rating
from paretune.worlds.helpdesk.words import CATEGORY_MIX, CONTEXT_LENGTH, OBJECTIVES, REFUSAL_CATEGORIES
from paretune.worlds.registry import WorldScorer


@dataclass(frozen=True)
class HelpDesk:
    """The help desk behind the protocol `paretune.worlds.World`; see there for the methods."""

    name: str = "helpdesk"
    objectives: tuple[str, ...] = OBJECTIVES
    category_mix: Mapping[str, float] = field(default_factory=lambda: CATEGORY_MIX)
    refusal_categories: Mapping[str, str] = field(default_factory=lambda: REFUSAL_CATEGORIES)
    context_length: int = CONTEXT_LENGTH

    def is_refusal(self, response: str) -> bool:
        """True if an answer of the help desk declines to help."""
        from paretune.worlds.helpdesk.truth import is_helpdesk_refusal

        return is_helpdesk_refusal(response)

    def scorer(self) -> WorldScorer:
        """The four true scores, read from the text."""
        from paretune.worlds.helpdesk.world import GroundTruthScorer

        return GroundTruthScorer()

    def tokenizer(self, prompt_format: PromptFormat = "") -> PreTrainedTokenizerBase:
        """One token per word."""
        from paretune.worlds.helpdesk.model import helpdesk_tokenizer

        return helpdesk_tokenizer(prompt_format)

    def policy_config(self, vocab_size: int) -> Any:
        """A Llama of three layers."""
        from paretune.worlds.helpdesk.model import policy_config

        return policy_config(vocab_size)

    def policy_shape(self, prompt_format: PromptFormat = "") -> Mapping[str, int]:
        """Sizes of the initial policy, vocabulary included; does not load transformers."""
        from paretune.worlds.helpdesk.words import NUM_SPECIAL_TOKENS, POLICY_SHAPE, vocabulary

        return {**POLICY_SHAPE, "vocab_size": NUM_SPECIAL_TOKENS + len(vocabulary(prompt_format))}

    def max_prompt_tokens(self, prompts: Sequence[Prompt], prompt_format: PromptFormat = "") -> int:
        """Length in tokens of the longest request."""
        from paretune.worlds.helpdesk.model import max_request_tokens

        return max_request_tokens(prompts, prompt_format)

    def prompts(
        self, *, num_prompts: int, num_test_prompts: int, seed: int
    ) -> tuple[dict[str, list[Prompt]], list[Prompt]]:
        """Training requests by category, and unseen requests of all categories."""
        from paretune.worlds.helpdesk.records import training_and_test_prompts

        return training_and_test_prompts(num_prompts, num_test_prompts, seed)

    def demonstrations(
        self, *, num_demonstrations: int, seed: int, prompt_format: PromptFormat = ""
    ) -> Sequence[Demonstration]:
        """Answers of the careless help desk."""
        from paretune.worlds.helpdesk.world import generate_demonstrations

        return generate_demonstrations(num_demonstrations, seed, prompt_format)

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
        """Ratings of these objectives, and unseen answers with their true scores."""
        from paretune.worlds.helpdesk.records import training_and_test_ratings

        return training_and_test_ratings(
            num_ratings,
            seed,
            objectives,
            num_raters=num_raters,
            rater_noise=rater_noise,
            length_bias=length_bias,
            missing_rate=missing_rate,
            prompt_format=prompt_format,
            confidence_bias=confidence_bias,
        )


HELPDESK = HelpDesk()
"""The entry of the registry."""
