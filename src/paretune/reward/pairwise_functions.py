"""A Python function that compares two responses to a prompt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from paretune.data.records import Sample
from paretune.reward.failures import CountedScorer
from paretune.reward.function_loading import source_hash
from paretune.reward.functions import join_messages

_VALUES = {"first": 1.0, "second": -1.0, "tie": 0.0}


@dataclass(kw_only=True)
class FunctionComparison(CountedScorer):
    """A function of a prompt, a first and a second response; each pair is asked in both orders.

    It returns "first", "second" or "tie"; None, or anything else, is no preference and counts as missing.
    """

    function: Callable[[str, str, str], str | None]
    names: tuple[str, ...] = ("preference",)

    @property
    def identity(self) -> str:
        """Hash of the function's source."""
        return source_hash(self.function)

    def preferences(self, pairs: Sequence[tuple[Sample, Sample]]) -> Float[Tensor, "2 N k"]:
        """1 if the response shown first is better, -1 if the other, 0 for a tie, NaN without a preference."""
        preferred = torch.full((2, len(pairs), 1), torch.nan, dtype=torch.float64)
        for row, pair in enumerate(pairs):
            prompt = join_messages(pair[0].prompt)
            for order, (first, second) in enumerate((pair, pair[::-1])):
                answer = self.function(prompt, first.response, second.response)
                preferred[order, row, 0] = _VALUES.get(str(answer), torch.nan)
                self.failures.num_responses += 1
                if str(answer) not in _VALUES:
                    self.failures.reasons["None" if answer is None else f"no preference: {answer!r:.40}"] += 1
        return preferred
