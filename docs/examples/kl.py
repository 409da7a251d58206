"""KL estimators: their values and gradients.

python docs/examples/kl.py
"""

import torch
from small import after, block, column, graded, table

from paretune.core.batch import Outputs
from paretune.credit.shaping import KlPenalty, TerminalReward
from paretune.loss.kl import KL_ESTIMATORS, KlToReference

GAPS = torch.tensor([-5.0, -0.5, 0.0, 0.2, 5.0])


def values() -> None:
    """The value of each estimator for one token, and its gradient in log p(token)."""
    for name, pick in (("values", 0), ("gradients", 1)):
        block(name)
        rows: list[list[object]] = []
        for estimator, function in KL_ESTIMATORS.items():
            gap = GAPS.clone().requires_grad_()
            value = function(gap)
            (slope,) = torch.autograd.grad(value.sum(), gap)
            rows.append([estimator, *column((value.detach(), slope)[pick])])
        table(("log p - log p_ref", *(f"{gap:g}" for gap in GAPS.tolist())), rows)


def directions() -> None:
    """Expected value and gradient over the policy's own samples, in the logits of two tokens."""
    block("directions")
    reference = torch.tensor([0.25, 0.75])
    policy = torch.tensor([0.5, 0.5])
    logits = policy.log().requires_grad_()
    exact = {
        "KL(policy || reference)": lambda p: (p * (p / reference).log()).sum(),
        "KL(reference || policy)": lambda p: (reference * (reference / p).log()).sum(),
    }
    rows: list[list[object]] = []
    for name, function in exact.items():
        value = function(logits.softmax(-1))
        rows.append([name, float(value.detach()), *column(torch.autograd.grad(value, logits)[0])])
    for name, estimator in KL_ESTIMATORS.items():
        each = estimator(logits.log_softmax(-1) - reference.log())
        expected = (policy * each).sum()
        rows.append([name, float(expected.detach()), *column(torch.autograd.grad(expected, logits)[0])])
    table(("", "value", "token 1", "token 2"), rows)


def off_policy() -> None:
    """The same for responses of an older policy (0.8, 0.2): unbiased only with the ratio."""
    block("off policy")
    reference, old = torch.tensor([0.25, 0.75]), torch.tensor([0.8, 0.2])
    logits = torch.tensor([0.5, 0.5]).log().requires_grad_()
    batch = graded([0.0, 0.0])
    on = batch.response_mask
    rows: list[list[object]] = []
    for estimator, ratios in (("k3", ("none", "token")), ("k3_value_k2_grad", ("none",))):
        for ratio in ratios:
            batch = batch.replace(
                ref_logprobs=torch.where(on, reference.log()[:, None], 0.0),
                old_logprobs=torch.where(on, old.log()[:, None], 0.0),
                loss_weights=torch.where(on, old[:, None], 0.0),
            )
            out = Outputs(logprobs=torch.where(on, logits.log_softmax(-1)[:, None], 0.0))
            loss = KlToReference(estimator, ratio)(out, batch)
            rows.append(
                [estimator, ratio, float(loss.detach()), *column(torch.autograd.grad(loss, logits)[0])]
            )
    table(("estimator", "ratio_level", "value", "token 1", "token 2"), rows)


def in_the_reward() -> None:
    """One response of three tokens and reward 1."""
    block("in the reward")
    batch = graded([1.0], lengths=[3])
    batch = batch.replace(
        old_logprobs=torch.tensor([[0.0, -0.2, -0.5, -1.0]]),
        ref_logprobs=torch.tensor([[0.0, -0.4, -0.4, -1.5]]),
    )
    for estimator in ("k1", "k2", "k3"):
        paid = after(batch, TerminalReward(), KlPenalty(0.1, estimator)).require("token_rewards")
        whole = after(batch, KlPenalty(0.1, estimator, level="sequence")).rewards
        numbers = "  ".join(f"{x:7.4f}" for x in column(paid[:, 1:]))
        print(f"{estimator}  token {numbers}   sequence {float(whole):.4f}")


def main() -> None:
    """Print the numbers of the page."""
    values()
    directions()
    off_policy()
    in_the_reward()


if __name__ == "__main__":
    main()
