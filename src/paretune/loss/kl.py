"""KL to the reference policy: estimated from the sampled tokens, or over the full vocabulary."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from paretune.core.batch import Batch, Outputs
from paretune.core.errors import WiringError
from paretune.core.kl import k1, k2, k3
from paretune.loss.base import Loss
from paretune.loss.policy import clamp_log_ratio, outside_clip, policy_ratio

KlEstimator = Literal[
    "k3_value_k2_grad",
    "k1",
    "k2",
    "k3",
    "k1_value_k2_grad",
    "k3_clamped",
    "k3_clamped_value_k2_grad",
    "abs",
]


def k3_value_k2_grad(log_ratio: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The value of k3 with the gradient of k2: unbiased, not negative, with the gradient of the KL.

    Source: the straight-through estimator "k3+" of the verl library. Differs: the value is not clamped to 10.
    """
    # Straight-through: the detached difference corrects the value and has no gradient.
    return k2(log_ratio) + (k3(log_ratio) - k2(log_ratio)).detach()


def k1_value_k2_grad(log_ratio: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The value of k1 with the gradient of k2.

    Source: the straight-through estimator "k1+" of the verl library.
    """
    return k2(log_ratio) + (k1(log_ratio) - k2(log_ratio)).detach()


def k3_clamped(log_ratio: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """k3 as in verl: the log-ratio clamped to +-20 and the value to at most 10, without gradient beyond.

    Where the policy is furthest from the reference, the penalty no longer pulls it back.

    Source: `low_var_kl` of the verl library.
    """
    # verl's own constants, written out: they must not follow ours.
    return k3(log_ratio.clamp(-20, 20)).clamp(-10, 10)


def k3_clamped_value_k2_grad(log_ratio: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The value of k3 clamped to at most 10 with the gradient of k2: exactly verl's "k3+".

    Source: `low_var_kl+` of the verl library.
    """
    return k2(log_ratio) + (k3_clamped(log_ratio) - k2(log_ratio)).detach()


def abs_kl(log_ratio: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """|log_ratio|.

    Source: `abs` of the verl library.
    """
    return log_ratio.abs()


KL_ESTIMATORS: Mapping[KlEstimator, Callable[[Tensor], Tensor]] = {
    "k1": k1,
    "k2": k2,
    "k3": k3,
    "k3_value_k2_grad": k3_value_k2_grad,
    "k1_value_k2_grad": k1_value_k2_grad,
    "k3_clamped": k3_clamped,
    "k3_clamped_value_k2_grad": k3_clamped_value_k2_grad,
    "abs": abs_kl,
}


@dataclass(frozen=True)
class KlToReference(Loss):
    """KL penalty to the reference, estimated from the sampled tokens.

    The default has the value of k3 and the gradient of k2, because the gradient of k3 itself is that of the
    other direction, KL(reference || policy). With `ratio_level` each token's estimate is multiplied by its
    probability ratio, which also has a gradient: with k1 or k3 that is unbiased, in value and in gradient,
    also for responses from an older policy. The `_k2_grad` estimators already contain the part of the
    gradient that the ratio adds, and would count it twice; they are refused with a ratio.

    Reads: ref_logprobs, loss_weights; with `ratio_level` old_logprobs and response_mask. Writes: nothing.
    Logs: the number of tokens whose log-ratio was clamped.

    Source: Shao et al. 2024, eq. 4 (arXiv:2402.03300), which is "k3" without ratio; DeepSeek-V3.2 2025
    (arXiv:2512.02556), which is "k3" with the ratio of tokens.
    """

    kl_estimator: KlEstimator = "k3_value_k2_grad"
    ratio_level: Literal["none", "token", "sequence"] = "none"

    def __post_init__(self) -> None:
        if self.ratio_level != "none" and self.kl_estimator.endswith("_k2_grad"):
            raise WiringError(
                f'KlToReference: the gradient of "{self.kl_estimator}" already contains the part that '
                f'ratio_level="{self.ratio_level}" adds; fix: kl_estimator="k3" with a ratio, or no ratio'
            )

    def __call__(self, out: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss of these rows."""
        log_ratio = clamp_log_ratio(out.logprobs - batch.require("ref_logprobs"))
        kl = KL_ESTIMATORS[self.kl_estimator](log_ratio)
        if self.ratio_level != "none":
            kl = kl * policy_ratio(
                out.logprobs, batch.require("old_logprobs"), batch.response_mask, self.ratio_level
            )
        return (kl * batch.require("loss_weights")).sum()

    def metrics(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, "B T"]]:
        """Tokens with a clamped log-ratio."""
        return {"ratio/clamped": outside_clip(out.logprobs - batch.require("ref_logprobs"))}


@dataclass(frozen=True)
class FullKl(Loss):
    """KL(reference || policy) at every token of the given responses, over the full vocabulary.

    The other direction than KlToReference: it keeps the policy from forgetting what the reference would have
    said, is never negative, and the responses need not be samples of the policy.

    Reads: loss_weights. Writes: nothing.
    Logs: its mean over response tokens.

    Source: Mukobi et al. 2023, SuperHF (arXiv:2310.16763). Differs: averaged like every other loss; their
    code sums the rows of a mini-batch, and is off by one token.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"ref_policy_kl"})

    def __call__(self, out: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss of these rows."""
        return (require_ref_policy_kl(out) * batch.require("loss_weights")).sum()

    def metrics(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, "B T"]]:
        """The KL per token."""
        return {"kl/full": require_ref_policy_kl(out).detach()}


def require_ref_policy_kl(out: Outputs) -> Float[Tensor, "B T"]:
    """KL(reference || policy) at every token.

    Raises:
        WiringError: The forward pass did not compute it.
    """
    if out.ref_policy_kl is None:
        raise WiringError(
            "a loss reads the full KL to the reference, which the forward pass did not compute; fix: add "
            '"ref_policy_kl" to the `requires` of the loss, or set Outputs.ref_policy_kl'
        )
    return out.ref_policy_kl
