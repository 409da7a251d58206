"""Kinds of reward heads: how a head learns from its labels, and what its logit means.

A kind sees labels in standard units, (label - offset) / scale by its own `scale_and_offset`, and gives scores
in them. Logit 0 with parameters 0 is its baseline, the prediction that is the same for every response: heads
start from zero weights, so training starts there.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from paretune.reward.losses import BradleyTerryLoss, RegressionLoss


@runtime_checkable
class HeadKind(Protocol):
    """How one head of a reward model learns and scores.

    `LinearHead` is the base of kinds whose score is linear in the logit; they override a loss and need
    nothing else. Others implement all of it.
    """

    @property
    def name(self) -> str:
        """Name of the kind, as in `loss` of a recipe."""
        ...

    @property
    def needs(self) -> Literal["ratings", "pairs", "any"]:
        """The data that the head must have; ratings may be accompanied by pairs."""
        ...

    @property
    def num_parameters(self) -> int:
        """Numbers that are learned beside the logit, P; each begins at 0."""
        ...

    def from_labels(self, labels: Float[Tensor, " n"], votes: Float[Tensor, " m"]) -> "HeadKind":
        """The kind with all that it takes from the training labels, such as their levels.

        Args:
            labels: Labels of the ratings, in their own units.
            votes: The single votes that the labels were joined from; a label of one rater is a vote itself.

        Raises:
            DataError: The labels do not fit; the message has a fix.
        """
        ...

    def label_problem(self, labels: Float[Tensor, " n"]) -> str:
        """What is wrong with these labels, with a fix; empty if they fit."""
        ...

    def scale_and_offset(self, labels: Float[Tensor, " n"]) -> tuple[float, float]:
        """From standard units to those of the training labels, of which there may be none."""
        ...

    def rating_loss(
        self, logits: Float[Tensor, " n"], labels: Float[Tensor, " n"], parameters: Float[Tensor, " P"]
    ) -> Float[Tensor, " n"]:
        """Loss per rating; 0 with gradient 0 where the label is NaN."""
        ...

    def pair_loss(self, chosen: Float[Tensor, " n"], rejected: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Loss per preference pair, of the logits of its responses."""
        ...

    def to_score(self, logits: Float[Tensor, " n"], parameters: Float[Tensor, " P"]) -> Float[Tensor, " n"]:
        """Scores in standard units, increasing in the logit."""
        ...

    def metrics(
        self,
        logits: Float[Tensor, " n"],
        labels: Float[Tensor, " n"],
        weights: Float[Tensor, " n"],
        parameters: Float[Tensor, " P"],
    ) -> dict[str, Any]:
        """Metrics of its own on held-out ratings, for report.json: name -> number; empty: none."""
        ...

    def metadata(self, parameters: Float[Tensor, " P"]) -> dict[str, Any] | None:
        """What config.json must hold to score with a saved model; None: its scale and offset suffice."""
        ...

    @property
    def score_expression(self) -> str:
        """`to_score` as an expression of Python for exported models; empty: they cannot have this head.

        Its names are `logit`, a tensor, `head`, the result of `metadata` with tensors for lists, and `torch`.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class LinearHead:
    """Scores that are linear in the logit: ratings have a regression loss, pairs that of Bradley-Terry."""

    name: str = "linear"
    needs: Literal["ratings", "pairs", "any"] = "any"
    regression: RegressionLoss = field(default_factory=RegressionLoss)
    bradley_terry: BradleyTerryLoss = field(default_factory=BradleyTerryLoss)

    @property
    def num_parameters(self) -> int:
        """None."""
        return 0

    @property
    def score_expression(self) -> str:
        """The logit."""
        return "logit"

    def from_labels(self, labels: Float[Tensor, " n"], votes: Float[Tensor, " m"]) -> HeadKind:
        """The kind itself."""
        return self

    def label_problem(self, labels: Float[Tensor, " n"]) -> str:
        """Any labels fit."""
        return ""

    def scale_and_offset(self, labels: Float[Tensor, " n"]) -> tuple[float, float]:
        """Standard deviation and mean of the labels; 1 and 0 without any."""
        return (float(labels.std(correction=0)), float(labels.mean())) if len(labels) else (1.0, 0.0)

    def rating_loss(
        self, logits: Float[Tensor, " n"], labels: Float[Tensor, " n"], parameters: Float[Tensor, " P"]
    ) -> Float[Tensor, " n"]:
        """The regression loss."""
        return self.regression(logits, labels)

    def pair_loss(self, chosen: Float[Tensor, " n"], rejected: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The Bradley-Terry loss."""
        return self.bradley_terry(chosen, rejected)

    def to_score(self, logits: Float[Tensor, " n"], parameters: Float[Tensor, " P"]) -> Float[Tensor, " n"]:
        """The logits."""
        return logits

    def metrics(
        self,
        logits: Float[Tensor, " n"],
        labels: Float[Tensor, " n"],
        weights: Float[Tensor, " n"],
        parameters: Float[Tensor, " P"],
    ) -> dict[str, Any]:
        """None beside those that every head has."""
        return {}

    def metadata(self, parameters: Float[Tensor, " P"]) -> dict[str, Any] | None:
        """None: the scale and the offset of the head suffice."""
        return None


def mse() -> LinearHead:
    """Squared error on ratings, which pairs may accompany."""
    return LinearHead(name="mse", needs="ratings")


def huber(delta: float = 1.0) -> LinearHead:
    """Squared error up to `delta` standard deviations of the labels, linear beyond."""
    return LinearHead(
        name="huber", needs="ratings", regression=RegressionLoss(loss_type="huber", delta=delta)
    )


def bradley_terry(loss: BradleyTerryLoss | None = None) -> LinearHead:
    """Preference pairs alone; the scores are log-odds."""
    return LinearHead(name="bradley_terry", needs="pairs", bradley_terry=loss or BradleyTerryLoss())


def calibrated() -> LinearHead:
    """Ratings or pairs, and the pairs of `add_confidence_pairs`, which make it a calibrated head."""
    return LinearHead(name="calibrated")
