"""Ordinal reward heads: ratings on ordered levels, such as 1 to 5, by proportional odds."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from paretune.core.errors import DataError, WiringError
from paretune.reward.heads import HeadKind
from paretune.reward.losses import BradleyTerryLoss

MAX_LEVELS = 20
"""Levels of an ordinal head: more are a number scale, and each would have too few labels."""
LEVEL_TOLERANCE = 1e-6
"""Distance of a label from its level, relative to the range of the levels, that is rounding: 3 * 0.1."""
EMPTY_LEVEL_COUNT = 0.5
"""Labels that a level without any counts as in the marginal frequencies; else its threshold is infinite."""


@dataclass(frozen=True, kw_only=True)
class Ordinal:
    """Ratings on ordered levels, such as 1 to 5: proportional odds on one logit s.

        P(label > l_j) = sigmoid(s - t_j),    score = sum_j P(label = l_j) l_j

    with increasing thresholds t_j, learned with the model and begun where s = 0 has the frequencies of the
    training labels. The score is in label units; pairs have the Bradley-Terry loss of s. A label between two
    levels is refused: a mean of votes does not say which votes they were, the votes do.

    Source: McCullagh 1980, section 2 (Regression models for ordinal data, J. R. Stat. Soc. B 42:2).
    """

    levels: tuple[float, ...] = ()
    """Increasing, in label units; empty: those of the training labels."""
    thresholds: tuple[float, ...] = ()
    """t_j before training, or of the loaded model; one fewer than levels. Empty: from the training labels."""

    def __post_init__(self) -> None:
        problem = level_problem(self.levels) if self.levels else ""
        if self.thresholds and (
            len(self.thresholds) != len(self.levels) - 1
            or not all(a < b for a, b in pairwise(self.thresholds))
        ):
            problem = f"thresholds are {self.thresholds}; fix: one fewer than levels, increasing"
        if problem:
            raise WiringError(f"ordinal head: {problem}")

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> "Ordinal":
        """The kind of a saved model."""
        return cls(
            levels=tuple(map(float, metadata["levels"])),
            thresholds=tuple(map(float, metadata["thresholds"])),
        )

    @property
    def name(self) -> str:
        """As in a recipe."""
        return "ordinal"

    @property
    def needs(self) -> Literal["ratings", "pairs", "any"]:
        """Ratings, which pairs may accompany."""
        return "ratings"

    @property
    def num_parameters(self) -> int:
        """The shift of the first threshold, and the logarithmic growth of each distance to the next."""
        return len(self.thresholds)

    @property
    def score_expression(self) -> str:
        """The expected level: the lowest, and each step up times its probability."""
        steps = "head['levels'].diff() * torch.sigmoid(logit[:, None] - head['thresholds'])"
        return f"head['levels'][0] + ({steps}).sum(-1)"

    def from_labels(self, labels: Float[Tensor, " n"], votes: Float[Tensor, " m"]) -> HeadKind:
        """The kind with levels and with the thresholds of the marginal frequencies.

        Raises:
            DataError: Fewer than two levels or too many, or labels between them.
        """
        levels = self.levels
        if not levels:
            # Of the votes: a mean of several would become a level that nobody could give.
            levels = tuple(sorted(set(votes.tolist())))
            if problem := level_problem(levels):
                raise DataError(problem)
        kind = replace(self, levels=levels, thresholds=())
        if problem := kind.label_problem(labels):
            raise DataError(problem)
        counts = kind._level_index(labels).bincount(minlength=len(levels)).double()
        counts = torch.where(counts == 0, EMPTY_LEVEL_COUNT, counts)
        return replace(kind, thresholds=tuple((counts.cumsum(0) / counts.sum()).logit()[:-1].tolist()))

    def label_problem(self, labels: Float[Tensor, " n"]) -> str:
        """Labels that are no levels."""
        levels = labels.new_tensor(self.levels)
        distance = (labels[:, None] - levels).abs().amin(1)
        wrong = labels[distance > LEVEL_TOLERANCE * (self.levels[-1] - self.levels[0])]
        if not len(wrong):
            return ""
        listed = ", ".join(f"{level:g}" for level in self.levels)
        others = f" and {len(wrong) - 1:,} more labels are" if len(wrong) > 1 else " is"
        fix = "name all of them in levels; of means of votes, give the votes, or write loss: mse"
        return f"ordinal: {wrong[0]:g}{others} none of the levels {listed}; fix: {fix}"

    def scale_and_offset(self, labels: Float[Tensor, " n"]) -> tuple[float, float]:
        """1 and 0: the levels are in label units."""
        return 1.0, 0.0

    def rating_loss(
        self, logits: Float[Tensor, " n"], labels: Float[Tensor, " n"], parameters: Float[Tensor, " P"]
    ) -> Float[Tensor, " n"]:
        """Minus the log-probability of the level."""
        index = self._level_index(labels.nan_to_num(self.levels[0]))
        chosen = self.log_probabilities(logits, parameters).gather(1, index[:, None]).squeeze(1)
        return torch.where(labels.isnan(), 0.0, -chosen)

    def pair_loss(self, chosen: Float[Tensor, " n"], rejected: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The Bradley-Terry loss of the logits."""
        return BradleyTerryLoss()(chosen, rejected)

    def to_score(self, logits: Float[Tensor, " n"], parameters: Float[Tensor, " P"]) -> Float[Tensor, " n"]:
        """The expected level."""
        above = torch.sigmoid(logits[:, None] - self.shifted_thresholds(parameters.to(logits)))
        # Not a sum over probabilities: this one is increasing in the logit whatever the rounding.
        return self.levels[0] + (above * logits.new_tensor(self.levels).diff()).sum(1)

    def probabilities(
        self, logits: Float[Tensor, " n"], parameters: Float[Tensor, " P"]
    ) -> Float[Tensor, "n L"]:
        """Probability of each level; a row adds up to 1."""
        return self.log_probabilities(logits, parameters).exp()

    def log_probabilities(
        self, logits: Float[Tensor, " n"], parameters: Float[Tensor, " P"]
    ) -> Float[Tensor, "n L"]:
        """Logarithm of the probability of each level, finite for every finite logit.

        sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a))
        """
        thresholds = self.shifted_thresholds(parameters.to(logits))
        margin = logits[:, None] - thresholds
        width = (-torch.expm1(-thresholds.diff())).log()
        return (
            F.pad(F.logsigmoid(margin), (1, 0)) + F.pad(F.logsigmoid(-margin), (0, 1)) + F.pad(width, (1, 1))
        )

    def shifted_thresholds(self, parameters: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        """The thresholds t_j that belong to learned parameters, in increasing order whatever these are."""
        start = parameters.new_tensor(self.thresholds)
        first = start[:1] + parameters[:1]
        return torch.cat([first, start.diff() * parameters[1:].exp()]).cumsum(0)

    def metrics(
        self,
        logits: Float[Tensor, " n"],
        labels: Float[Tensor, " n"],
        weights: Float[Tensor, " n"],
        parameters: Float[Tensor, " P"],
    ) -> dict[str, Any]:
        """Log loss in nats, Brier score over all levels, accuracy of the most likely level, and counts."""
        logprobs = self.log_probabilities(logits.double(), parameters)
        index, share = self._level_index(labels), weights / weights.sum()
        actual = F.one_hot(index, len(self.levels)).to(logprobs)
        likeliest = F.one_hot(logprobs.argmax(1), len(self.levels)).to(logprobs)
        counts = (actual, likeliest, logprobs.exp())
        columns = [(share[:, None] * column).sum(0).tolist() for column in counts]
        return {
            "log_loss": float(-(share[:, None] * logprobs * actual).sum()),
            "brier": float((share[:, None] * (logprobs.exp() - actual).square()).sum()),
            "accuracy": float((share[:, None] * likeliest * actual).sum()),
            "levels": [
                {"level": level, "labels": label, "most_likely": most, "probability": mean}
                for level, label, most, mean in zip(self.levels, *columns, strict=True)
            ],
        }

    def metadata(self, parameters: Float[Tensor, " P"]) -> dict[str, Any] | None:
        """Levels and thresholds."""
        return {
            "levels": list(self.levels),
            "thresholds": self.shifted_thresholds(parameters.detach()).tolist(),
        }

    def _level_index(self, labels: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Index of the level that each label is, but for rounding."""
        return (labels[:, None] - labels.new_tensor(self.levels)).abs().argmin(1)


def level_problem(levels: tuple[float, ...]) -> str:
    """What is wrong with these levels, with a fix; empty if nothing is."""
    listed = ", ".join(f"{level:g}" for level in levels[:5])
    if len(levels) < 2:
        return (
            f"ordinal needs two or more levels, and there is {listed or 'none'}; fix: add data, or remove it"
        )
    if len(levels) > MAX_LEVELS:
        problem = f"ordinal: {len(levels)} levels ({listed}, ...), and at most {MAX_LEVELS} are possible"
        return f"{problem}; fix: write loss: mse"
    if not all(a < b for a, b in pairwise(levels)):
        return f"ordinal: the levels {listed} do not increase; fix: write the lowest first, each once"
    return ""
