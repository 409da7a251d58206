"""The losses of a pair, as functions of the implicit rewards of its two sides."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

PairLossType = Literal[
    "sigmoid",
    "ipo",
    "robust",
    "hinge",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "discopop",
]
"""A function of two implicit rewards; the names are TRL's. See `pair_loss`."""

SMOOTHED_LOSS_TYPES = ("sigmoid", "robust", "exo_pair")
"""Forms that know of labels which are wrong."""


def pair_loss(
    chosen_rewards: Float[Tensor, " P"],
    rejected_rewards: Float[Tensor, " P"],
    loss_type: PairLossType,
    beta: float,
    label_smoothing: float = 0.0,
) -> Float[Tensor, " P"]:
    """The loss of each pair, from the implicit rewards c and r of its two sides.

    With g = c - r, e the smoothing, s the logistic function and q = s(g):

        sigmoid    -(1 - e) log s(g) - e log s(-g)
        ipo        ((g - 1/2) / beta)^2
        robust     (-(1 - e) log s(g) + e log s(-g)) / (1 - 2e)
        hinge      max(0, 1 - g)
        exo_pair   q (log q - log(1 - e)) + (1 - q) (log(1 - q) - log e)
        nca_pair   -log s(c) - (log s(-c) + log s(-r)) / 2
        bco_pair   -log s(c) - log s(-r)
        sppo_hard  ((c - 1/2) / beta)^2 + ((r + 1/2) / beta)^2
        apo_zero   1 - s(c) + s(r)
        apo_down   s(c) + 1 - s(g)
        discopop   -(1 - m) log s(g) + m exp(-g), m = s(20 g)

    Args:
        chosen_rewards: beta times the log-ratio of policy and reference, of the better response.
        rejected_rewards: The same of the worse response.
        loss_type: Which loss.
        beta: What the rewards were multiplied by; read by ipo and sppo_hard.
        label_smoothing: Probability that a label is wrong; read by sigmoid, robust and exo_pair.

    Source: DPO, Rafailov et al. 2023 (arXiv:2305.18290); with smoothing "conservative DPO", Mitchell 2023;
    Azar et al. 2023 (arXiv:2310.12036); Chowdhury et al. 2024 (arXiv:2403.00409); SLiC, Zhao et al. 2023
    (arXiv:2305.10425); EXO, Ji et al. 2024 (arXiv:2402.00856); NCA, Chen et al. 2024 (arXiv:2402.05369); BCO,
    Jung et al. 2024 (arXiv:2404.04656); SPPO, Wu et al. 2024 (arXiv:2405.00675); APO, D'Oosterlinck et al.
    2024 (arXiv:2408.06266); DiscoPOP, Lu et al. 2024 (arXiv:2406.08414). Differs: bco_pair has no shift of
    rewards, as in TRL.
    """
    gap = chosen_rewards - rejected_rewards
    right, wrong = F.logsigmoid(gap), F.logsigmoid(-gap)
    match loss_type:
        case "sigmoid":
            return -(1 - label_smoothing) * right - label_smoothing * wrong
        case "ipo":
            return ((gap - 0.5) / beta).square()
        case "robust":
            return (label_smoothing * wrong - (1 - label_smoothing) * right) / (1 - 2 * label_smoothing)
        case "hinge":
            return F.relu(1 - gap)
        case "exo_pair":
            sure, unsure = math.log1p(-label_smoothing), math.log(label_smoothing)
            return right.exp() * (right - sure) + wrong.exp() * (wrong - unsure)
        case "discopop":
            # One exponential: apart, exp(-g) overflows where the logistic factor is smallest.
            blend = (F.logsigmoid(20 * gap) - gap).exp()
            return blend - torch.sigmoid(-20 * gap) * right
    return _per_side_loss(chosen_rewards, rejected_rewards, loss_type, beta)


def _per_side_loss(
    chosen_rewards: Tensor, rejected_rewards: Tensor, loss_type: PairLossType, beta: float
) -> Tensor:
    """The forms that look at each side against 0."""
    match loss_type:
        case "nca_pair":
            return (
                -F.logsigmoid(chosen_rewards)
                - (F.logsigmoid(-chosen_rewards) + F.logsigmoid(-rejected_rewards)) / 2
            )
        case "bco_pair":
            return -F.logsigmoid(chosen_rewards) - F.logsigmoid(-rejected_rewards)
        case "sppo_hard":
            return ((chosen_rewards - 0.5) / beta).square() + ((rejected_rewards + 0.5) / beta).square()
        case "apo_zero":
            return torch.sigmoid(-chosen_rewards) + torch.sigmoid(rejected_rewards)
    assert loss_type == "apo_down"
    return torch.sigmoid(chosen_rewards) + torch.sigmoid(rejected_rewards - chosen_rewards)
