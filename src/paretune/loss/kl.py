"""The price of leaving the reference, estimated from the tokens that were sampled.

The divergence from the reference over the whole vocabulary, not estimated from the sampled tokens.
"""

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

KlEstimator = Literal["k3_k2", "k1", "k2", "k3", "k1_k2", "k3_cut", "k3_cut_k2", "abs"]


def k3_value_k2_grad(log_ratio: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The value of k3, the gradient of k2: unbiased and not negative, and pushing the way the KL points.

    Source: the straight-through estimator "k3+" of the verl library. Differs: no value is cut to 10 here.
    """
    return k2(log_ratio) + (k3(log_ratio) - k2(log_ratio)).detach()


def k1_value_k2_grad(log_ratio: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The value of k1, the gradient of k2.

    Source: the straight-through estimator "k1+" of the verl library.
    """
    return k2(log_ratio) + (k1(log_ratio) - k2(log_ratio)).detach()


def k3_clamped(log_ratio: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """k3 as verl has it: its exponent cut to +-20 and its value to at most 10, and no gradient beyond.

    Where the policy has strayed furthest the penalty no longer pulls it back.

    Source: `low_var_kl` of the verl library.
    """
    return k3(log_ratio.clamp(-20, 20)).clamp(-10, 10)


def k3_clamped_value_k2_grad(log_ratio: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The value of k3 cut to at most 10, the gradient of k2: verl's "k3+" to the letter.

    Source: `low_var_kl+` of the verl library.
    """
    return k2(log_ratio) + (k3_clamped(log_ratio) - k2(log_ratio)).detach()


def abs_kl(log_ratio: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """|gap|.

    Source: `abs` of the verl library.
    """
    return log_ratio.abs()


KL_ESTIMATORS: Mapping[KlEstimator, Callable[[Tensor], Tensor]] = {
    "k1": k1,
    "k2": k2,
    "k3": k3,
    "k3_k2": k3_value_k2_grad,
    "k1_k2": k1_value_k2_grad,
    "k3_cut": k3_clamped,
    "k3_cut_k2": k3_clamped_value_k2_grad,
    "abs": abs_kl,
}


@dataclass(frozen=True)
class KlToReference(Loss):
    """The price of leaving the reference, from the sampled tokens.

    The default has the value of k3 and the gradient of k2, because the gradient of k3 itself is that of the
    other direction, KL(reference || policy). With `ratio_level` each token's estimate is multiplied by its
    probability ratio, through which the gradient flows too: with k1 or k3 that is unbiased, in value and in
    gradient, also for responses that an older policy wrote. The `_k2` forms bring the part of the gradient
    that the ratio carries already and would have it twice; with a ratio they are refused.

    Reads: ref_logprobs, loss_weights; with `ratio_level` old_logprobs and response_mask. Writes: nothing.
    Logs: how many tokens had their log-ratio cut.

    Source: Shao et al. 2024, eq. 4 (arXiv:2402.03300), which is "k3" without ratio; DeepSeek-V3.2 2025
    (arXiv:2512.02556), which is "k3" with the ratio of tokens.
    """

    kl_estimator: KlEstimator = "k3_k2"
    ratio_level: Literal["none", "token", "sequence"] = "none"

    def __post_init__(self) -> None:
        if self.ratio_level != "none" and self.kl_estimator.endswith("_k2"):
            raise WiringError(
                f'KlToReference: the gradient of "{self.kl_estimator}" has in it what ratio="{self.ratio_level}" '
                'adds once more; fix: estimator="k3" with a ratio, or no ratio'
            )

    def __call__(self, out: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss of these rows."""
        gap = clamp_log_ratio(out.logprobs - batch.require("ref_logprobs"))
        each = KL_ESTIMATORS[self.kl_estimator](gap)
        if self.ratio_level != "none":
            each = each * policy_ratio(
                out.logprobs, batch.require("old_logprobs"), batch.response_mask, self.ratio_level
            )
        return (each * batch.require("loss_weights")).sum()

    def metrics(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, "B T"]]:
        """Which tokens were cut."""
        return {"ratio/clamped": outside_clip(out.logprobs - batch.require("ref_logprobs"))}


@dataclass(frozen=True)
class FullKl(Loss):
    """KL(reference || policy) at every token of the given responses.

    The other direction than KlToReference: it keeps the policy from forgetting what the reference would have
    said, is never negative, and needs no response to be the policy's own.

    Reads: loss_weights. Writes: nothing.
    Logs: its mean over response tokens.

    Source: Mukobi et al. 2023, SuperHF (arXiv:2310.16763). Differs: a mean like that of every other loss;
    their code adds up the rows of a mini-batch, and looks one token too late.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"kl_reference_policy"})

    def __call__(self, out: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss of these rows."""
        return (require_ref_policy_kl(out) * batch.require("loss_weights")).sum()

    def metrics(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, "B T"]]:
        """The divergence itself."""
        return {"kl/full": require_ref_policy_kl(out).detach()}


def require_ref_policy_kl(out: Outputs) -> Float[Tensor, "B T"]:
    """KL(reference || policy) at every token.

    Raises:
        WiringError: The forward pass did not give it.
    """
    if out.ref_policy_kl is None:
        raise WiringError(
            "a loss reads the exact divergence from the reference, which the forward pass did not give"
        )
    return out.ref_policy_kl
