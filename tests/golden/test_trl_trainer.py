"""`trl_grpo` and TRL's trainer on the same completions; proofs/trl_equal.py recorded the numbers."""

import pytest
import torch
from cases import Case, cases
from lossbatch import batch_of, outputs, shifted

from paretune.algorithms.trl import trl_grpo
from paretune.loss.base import total_loss

pytestmark = pytest.mark.usefixtures("double")
NAMES = ("first", "second", "third")
NUM_GENERATIONS, MAX_NEW_TOKENS = 4, 5


def trl_batch(case):
    """The batch as it is before the reward steps; what model passes compute is there already."""
    mask, rewards = case.input("mask"), case.input("rewards")
    where = {key: torch.where(mask.bool(), case.input(key), 0.0) for key in ("old", "ref", "entropy")}
    batch = batch_of(
        mask,
        weight=mask,
        rollout_logprobs=where["old"],
        old_logprobs=where["old"],
        ref_logprobs=where["ref"],
        entropy=where["entropy"],
    )
    return batch.replace(
        group=torch.arange(len(mask)) // NUM_GENERATIONS,
        truncated=case.input("truncated").bool(),
        objectives=NAMES,
        scores=rewards,
        rewards=rewards,
    )


@pytest.mark.parametrize("case", cases("trl_grpo_trainer"))
def test_trainer_matches_trl(case: Case):
    weights = dict(zip(NAMES, case.inputs["weights"], strict=True))
    spec = trl_grpo(weights, num_generations=NUM_GENERATIONS, max_new_tokens=MAX_NEW_TOKENS, **case.params)
    batch = trl_batch(case)
    for steps in (spec.reward_steps, spec.credit):
        batch, _, _ = steps.apply_stateful(batch, steps.init_state(), torch.Generator())
    batch = batch.replace(loss_weights=spec.loss_aggregation(batch.response_mask))
    logp, mask = case.input("logps").requires_grad_(), batch.response_mask[:, 1:]
    out = outputs(logp, mask, entropy=torch.where(batch.response_mask, shifted(case.input("entropy")), 0.0))
    loss, _ = total_loss(spec.losses, out, batch)
    (slope,) = torch.autograd.grad(loss, logp)
    kept = ~batch.truncated if case.params.get("mask_truncated_completions") else torch.ones(len(mask)).bool()
    case.check(
        batch.advantages[kept, 1, 0],
        [a for a, keep in zip(case.expected["advantages"], kept.tolist(), strict=True) if keep],
    )
    assert not batch.response_mask[~kept].any()
    case.check(loss, case.expected["loss"])
    case.check(slope, case.grad["logps"])
