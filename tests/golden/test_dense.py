"""Token rewards of a model tuned to preferences, against the numbers of published code."""

import pytest
import torch
from cases import Case, cases

from paretune.credit.base import chain
from paretune.credit.returns import Gae
from paretune.credit.shaping import ClipReward, KlPenalty, TerminalReward
from paretune.models.model_passes import implicit_reward
from toy import advance, graded

pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.parametrize("case", cases("rto_token_rewards"))
def test_token_rewards_match_rto(case: Case) -> None:
    p, want = case.params, case.expected
    respond = case.input("action_mask").bool()
    reference = case.input("ref_logps")
    # A scale of 0 leaves theirs as it is; for ours that is 1, and a beta of 0 is refused.
    beta, clip = p["dpo_reward_scale"] or 1.0, p["dpo_reward_clip"] or None
    dense = implicit_reward(case.input("dpo_logps"), reference, respond, beta, clip)
    case.check(dense, want["token_reward"])
    batch = graded(case.input("r"), respond=respond).replace(
        token_rewards=dense[..., None],
        old_logprobs=case.input("actor_logps"),
        ref_logprobs=reference,
        values=torch.where(respond, case.input("values"), 0.0)[..., None],
    )
    paid = chain(ClipReward(-10.0, 10.0), TerminalReward(), KlPenalty(max(p["kl_coef"], 0.0)))
    batch, _ = advance(chain(paid, Gae(p["gamma"], p["lam"])), batch)
    # A row that nobody wrote is paid at its last place by theirs, and not at all by ours.
    some = respond.any(-1)
    case.check(batch.token_rewards[some, :, 0], torch.tensor(want["reward"])[some].tolist())
    gap = (batch.old_logprobs - batch.ref_logprobs) * respond
    case.check(gap, want["kl"])
    case.check(batch.advantages[..., 0], want["advantages"])
    case.check(batch.returns[..., 0], want["returns"])
