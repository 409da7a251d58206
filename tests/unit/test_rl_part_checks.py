"""The dry run sees what every part reads and writes, and names a part of the user's own that is wrong."""

import dataclasses
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from config_cases import WORLD, error_lines

from paretune.core.errors import WiringError
from paretune.credit.base import CreditStep, chain
from paretune.credit.normalization import BroadcastToTokens, GroupNormalize, Whiten
from paretune.credit.returns import Gae, ReturnToGo
from paretune.credit.score_transforms import MissingAsZero
from paretune.credit.shaping import ClipReward, KlPenalty, TerminalReward
from paretune.loss.auxiliary import EntropyBonus, SftLoss, SquaredValueLoss
from paretune.loss.base import Loss, WeightedLoss
from paretune.loss.kl import KlToReference
from paretune.loss.pairwise import Dpo
from paretune.loss.policy import ClippedSurrogate
from paretune.models.model_passes import CriticValues, OldLogprobs, PolicyEntropy, RefLogprobs
from paretune.rl.dummy_models import fake_batch
from paretune.rl.loop import train
from paretune.rl.user_parts import apply_steps, call_with_user_parts
from paretune.rl.validate import check_spec
from paretune.rollout.sampler import FrozenPolicy, StoredResponses
from paretune.run.folder import Run
from toy import OBJECTIVES, toy_recipe, toy_world

GROUP, BROADCAST, PLAIN = GroupNormalize(), BroadcastToTokens(), WeightedLoss(1.0, ClippedSurrogate())


def spec(*steps, **changes):
    return toy_recipe(kl_coef=0.0).replace(
        **({"credit": chain(*steps), "losses": (PLAIN,), "model_passes": (OldLogprobs(),)} | changes)
    )


class Step(CreditStep):
    """A step of one's own, from a function of the batch."""

    def __init__(self, function):
        self.function = function

    def apply(self, batch):
        return self.function(batch)


class FullStep(Step):
    def apply_stateful(self, batch, state, rng):
        return self.function(batch)


class OwnLoss(Loss):
    """A loss of one's own, from a function of outputs and batch."""

    def __init__(self, function, metrics=None):
        self.function, self.own_metrics = function, metrics

    def __call__(self, out, batch):
        return self.function(out, batch)

    def metrics(self, out, batch):
        return {} if self.own_metrics is None else self.own_metrics(out, batch)


def unchecked(batch, **changes):
    """As `replace`, without the checks of shapes that only these tests have."""
    changed = batch.replace()
    for name, value in changes.items():
        object.__setattr__(changed, name, value)
    return changed


def doubled(batch):
    return batch.replace(rewards=2 * batch.rewards)


def weighted(out, batch):
    return -(out.logprobs * batch.require("advantages")[..., 0] * batch.require("loss_weights")).sum()


def loss(function, metrics=None):
    return {"losses": (WeightedLoss(1.0, OwnLoss(function, metrics)),)}


DEAD = [
    (
        spec(BROADCAST, GROUP),
        "GroupNormalize writes rewards after BroadcastToTokens.* put GroupNormalize bef",
    ),
    (spec(GROUP, BROADCAST, Step(doubled)), "Step writes rewards after BroadcastToTokens"),
    (
        spec(GROUP, BROADCAST, Step(lambda batch: dataclasses.replace(batch, rewards=2 * batch.rewards))),
        "Step writes rewards after BroadcastToTokens",
    ),
    (
        spec(GROUP, BROADCAST, losses=(WeightedLoss(1.0, SftLoss()),), model_passes=()),
        r"BroadcastToTokens writes advantages, and no loss reads advantages; fix: .* credit: \[\]",
    ),
    (
        spec(GROUP, BROADCAST, **loss(lambda out, batch: -(out.logprobs * batch.loss_weights).sum())),
        "no loss reads advantages",
    ),
    (
        spec(losses=(WeightedLoss(1.0, SftLoss()),), model_passes=()),
        r"WeightedSum writes rewards, and nothing after it reads rewards; fix: .* reward_steps: \[\]",
    ),
    (spec(GROUP, BROADCAST, TerminalReward()), "TerminalReward writes token_rewards, and nothing"),
    (
        spec(KlPenalty(0.1), ReturnToGo(), model_passes=(OldLogprobs(), RefLogprobs())),
        "WeightedSum writes rewards, and nothing after it reads rewards; .*TerminalReward",
    ),
    (spec(GROUP, BROADCAST, BROADCAST), "overwrites advantages before anything reads it"),
    (
        spec(
            TerminalReward(),
            Gae(),
            BROADCAST,
            losses=(PLAIN, WeightedLoss(0.1, SquaredValueLoss())),
            model_passes=(OldLogprobs(), CriticValues()),
        ),
        "Gae writes advantages, and BroadcastToTokens overwrites",
    ),
    (spec(GROUP, BROADCAST, model_passes=(OldLogprobs(), PolicyEntropy())), "PolicyEntropy writes entropy"),
    (spec(GROUP, BROADCAST, model_passes=(OldLogprobs(), CriticValues())), "CriticValues writes values"),
    (
        spec(GROUP, BROADCAST, model_passes=(OldLogprobs("policy"),), **loss(weighted)),
        "OldLogprobs writes old_logprobs, and nothing",
    ),
    (spec(GROUP, BROADCAST, losses=(WeightedLoss(-1.0, ClippedSurrogate()),)), "coefficient -1"),
    (spec(GROUP, BROADCAST, losses=(PLAIN, WeightedLoss(float("nan"), EntropyBonus()))), "coefficient nan"),
    (
        spec(GROUP, BROADCAST, losses=(PLAIN, WeightedLoss(-0.1, KlToReference()))),
        "KlToReference has coefficient -0.1",
    ),
    (spec(GROUP, BROADCAST, rollout=StoredResponses()), "OldLogprobs reads batch.rollout_logprobs.* policy"),
    (
        spec(GROUP, BROADCAST, rollout=FrozenPolicy(num_generations=4, max_new_tokens=4)),
        "OldLogprobs reads batch.rollout_logprobs",
    ),
]


@pytest.mark.parametrize(("algorithm", "message"), DEAD)
def test_a_part_without_effect_is_refused_by_its_name(algorithm, message):
    with pytest.raises(WiringError, match=message):
        check_spec(algorithm, OBJECTIVES)


@pytest.mark.parametrize(
    "algorithm",
    [
        spec(Step(doubled), BROADCAST),
        spec(Step(lambda batch: dataclasses.replace(batch, rewards=2 * batch.rewards)), BROADCAST),
        spec(GROUP, FullStep(lambda batch: (batch, None, {"size": 1.0})), BROADCAST),
        spec(Step(lambda batch: batch.select(batch.rewards[:, 0].nan_to_num().argsort())), BROADCAST),
        spec(GROUP, BROADCAST, Whiten(), ClipReward(-1.0, 1.0, apply_to="advantages")),
        spec(GROUP, BROADCAST, **loss(weighted)),
        spec(GROUP, BROADCAST, losses=(PLAIN, WeightedLoss(-0.1, EntropyBonus()))),
        spec(losses=(WeightedLoss(1.0, Dpo()),), model_passes=(RefLogprobs(),)),
        spec(losses=(WeightedLoss(1.0, SftLoss()),), model_passes=(), reward_steps=chain()),
        # A return estimator of one's own reads the token rewards.
        spec(
            TerminalReward(), Step(lambda batch: batch.replace(advantages=batch.token_rewards.nan_to_num()))
        ),
    ],
)
def test_parts_of_ones_own_that_fit_pass(algorithm):
    check_spec(algorithm, OBJECTIVES)


def normalized(batch):
    rewards = batch.rewards.clone()
    for group in batch.group.unique():
        rows = batch.group == group
        centered = rewards[rows] - rewards[rows].nanmean()
        rewards[rows] = centered / centered.square().nanmean().sqrt()
    return batch.replace(rewards=rewards)


def forgets(batch):
    batch.replace(rewards=2 * batch.rewards)
    return batch


def in_place(batch):
    batch.rewards.mul_(2)
    return batch


WRONG_STEPS = [
    (Step(forgets), "Step replaces rewards, and returns the batch as it was"),
    (Step(in_place), "Step changes batch.rewards in place"),
    (Step(lambda batch: batch.replace(rewards=(batch.rewards - 0.5).sqrt())), "Step makes NaN in rewards"),
    (Step(lambda batch: batch.replace(rewards=1 / (batch.rewards * 0))), "Step makes infinity in rewards"),
    (Step(normalized), r"Step makes NaN in rewards of scored .*, on a batch with .* equal rewards; fix: "),
    (Step(lambda batch: unchecked(batch, rewards=batch.rewards[:, 0])), r"shape \[16\], .* \[B=16, J\]"),
    (
        Step(lambda batch: unchecked(batch, rewards=(batch.rewards > 0).long())),
        "writes int64 into batch.rewards",
    ),
    (Step(lambda batch: unchecked(batch, rewards=0.5)), "writes a float into batch.rewards"),
    (Step(lambda batch: batch.replace(scores=batch.scores + 1)), "writes batch.scores, which never change"),
    (Step(lambda batch: batch.replace(reward=1)), "Step raised TypeError: .*'reward'"),
    (
        Step(lambda batch: batch.replace(advantages=batch.advantages * 2)),
        "Step reads batch.advantages, and no",
    ),
    (FullStep(lambda batch: (batch, None)), "returns 2 values; fix: return batch, state, metrics"),
    (
        FullStep(lambda batch: (batch, None, {"x": batch.rewards.mean()})),
        r"metrics that are no numbers \(x\)",
    ),
]


@pytest.mark.parametrize(("step", "message"), WRONG_STEPS)
def test_what_a_step_of_ones_own_does_wrong_is_said_with_its_name(step, message):
    with pytest.raises(WiringError, match=message) as caught:
        check_spec(spec(GROUP, step, BROADCAST), OBJECTIVES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("function", "metrics", "message"),
    [
        (lambda out, batch: weighted(out, batch) * torch.nan, None, "OwnLoss is nan"),
        (
            lambda out, batch: (out.logprobs * batch.advantages[..., 0]).mean(),
            None,
            "sum over its micro-batch",
        ),
        (lambda out, batch: out.logprobs.sum(-1), None, r"OwnLoss returns a tensor \[16\]"),
        (lambda out, batch: 1.0, None, "OwnLoss returns a float"),
        (lambda out, batch: batch.advantages.sum(), None, "depends neither on the policy"),
        (
            lambda out, batch: (batch.advantages[..., 0] * (out.logprobs * 0).sqrt()).sum(),
            None,
            "gradient of OwnLoss is not finite",
        ),
        (
            lambda out, batch: out.logprobs[99].sum(),
            None,
            r"OwnLoss raised IndexError.*test_rl_part_checks.py:",
        ),
        (weighted, lambda out, batch: {"x": 1.0}, r'OwnLoss.metrics: "x" is no tensor \[B, T\]'),
    ],
)
def test_what_a_loss_of_ones_own_does_wrong_is_said_with_its_name(function, metrics, message):
    with pytest.raises(WiringError, match=message):
        check_spec(spec(GROUP, BROADCAST, **loss(function, metrics)), OBJECTIVES)


def test_advantages_of_an_unscored_response_must_be_numbers():
    step = Step(
        lambda batch: batch.replace(advantages=batch.rewards[:, None] + 0 * batch.response_mask[..., None])
    )
    with pytest.raises(
        WiringError, match=r"Step makes NaN in advantages .*, on a batch with an unscored resp"
    ):
        check_spec(spec(GROUP, step), OBJECTIVES)


def filled(batch):
    return batch.replace(rewards=batch.rewards.nan_to_num(0.0))


def averaged(batch):
    return batch.replace(rewards=batch.rewards.nanmean(-1, keepdim=True).nan_to_num(0.25))


def best_rows(batch):
    rows = torch.arange(1, len(batch))
    return filled(batch.select(rows))


def dense(batch):
    return batch.replace(token_rewards=0.5 * batch.response_mask[..., None] * batch.rewards[:, None].isnan())


def eager(batch):
    return batch.replace(advantages=batch.rewards[:, None].nan_to_num(-1) * batch.response_mask[..., None])


MISSING, SCORED = "Step gives response {}, which was not scored, the ", "; fix: leave NaN as it is"


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (spec(GROUP, Step(filled), BROADCAST), f"{MISSING.format(15)}reward 0, on a .*{SCORED}"),
        (
            spec(BROADCAST, reward_steps=chain(Step(filled), toy_recipe().reward_steps)),
            "15, .* the reward 0,",
        ),
        (spec(BROADCAST, reward_steps=Step(averaged)), f"{MISSING.format(15)}reward 0.25,"),
        (spec(Step(best_rows), BROADCAST), f"{MISSING.format(14)}reward 0,"),
        (spec(Step(dense), ReturnToGo()), f"{MISSING.format(15)}token reward 0.5,.*{SCORED}"),
        (spec(GROUP, Step(eager)), f"{MISSING.format(15)}advantage -1,.*; fix: write 0 where the reward"),
    ],
)
def test_a_step_of_ones_own_scores_no_unscored_response(algorithm, message):
    with pytest.raises(WiringError, match=message) as caught:
        check_spec(algorithm, OBJECTIVES)
    assert "\n" not in str(caught.value)


def test_a_step_of_ones_own_may_fill_in_some_of_the_rewards_and_punish_a_bad_format():
    def some(batch):
        return batch.replace(rewards=batch.rewards.nanmean(-1, keepdim=True))

    batch, rng = fake_batch(OBJECTIVES, 2), torch.Generator()
    scores = batch.scores.clone()
    scores[0, 0] = torch.nan
    partial_scores = batch.replace(rewards=scores, scores=scores)
    assert apply_steps(Step(some), partial_scores, None, rng)[0].rewards.isfinite().all()
    scores = scores.clone()
    scores[0] = torch.nan
    unscored = batch.replace(rewards=scores, scores=scores)
    with pytest.raises(WiringError, match="Step gives response 0, which was not scored, the reward 0; fix"):
        apply_steps(Step(filled), unscored, None, rng)
    malformed = unscored.replace(format_valid=torch.tensor([False, True, True, True]))
    assert apply_steps(Step(filled), malformed, None, rng)[0].rewards.isfinite().all()
    # Shipped rules for missing scores come first: what they score is scored.
    check_spec(spec(MissingAsZero("all"), Step(filled), BROADCAST), OBJECTIVES)


def test_a_function_can_be_a_model_pass_and_is_named():
    def my_pass(batch, models, temperature, rows_per_pass):
        return unchecked(batch, old_logprobs=batch.input_ids)

    with pytest.raises(WiringError, match=r"my_pass writes int64 into batch\.old_logprobs"):
        check_spec(spec(GROUP, BROADCAST, model_passes=(my_pass,)), OBJECTIVES)


@pytest.mark.parametrize(
    ("section", "place"),
    [
        ("credit: [{type: GroupNormalize}, {type: BroadcastToTokens}, {type: GroupNormalize}]", "credit[2]"),
        ("model_passes: [{type: OldLogprobs}, {type: PolicyEntropy}]", "model_passes[1]"),
        ("losses: [{type: ClippedSurrogate}, {type: KlToReference}]", "losses[1]"),
    ],
)
def test_the_place_is_that_of_the_part_even_of_two_with_one_name(tmp_path, monkeypatch, section, place):
    monkeypatch.chdir(tmp_path)
    (line,) = error_lines(WORLD | {"algorithm": f"\n  name: custom\n  {section}"})
    assert f": algorithm.{place}: " in line


def failing(message):
    def fail(batch):
        if message:
            raise ValueError(message)
        return unchecked(batch, rewards=batch.rewards[:1])

    return fail


@pytest.mark.parametrize(
    ("message", "start"),
    [
        ("no idea", "training step 7: Step raised ValueError: no idea (test_rl_part_checks.py:"),
        ("", "training step 7: Step writes batch.rewards of shape [1, 2], and its shape is [B=4, J]"),
    ],
)
def test_a_part_that_fails_on_a_real_batch_is_named_with_the_step(message, start):
    other, bad = Step(doubled), Step(failing(message))
    algorithm, batch = spec(other, bad, BROADCAST), fake_batch(OBJECTIVES, 2)
    steps = algorithm.credit

    def call():
        return apply_steps(steps, batch, steps.init_state(), torch.Generator())

    with pytest.raises(WiringError) as caught:
        call_with_user_parts(algorithm, call, 7)
    first, *others = str(caught.value).splitlines()
    assert first.startswith(start)
    assert "; fix: " in first
    assert bool(others) == bool(message)
    assert not message or "raise ValueError(message)" in others[-1]


def test_an_error_of_shipped_code_stays_a_bug():
    with pytest.raises(RuntimeError, match="size"):
        call_with_user_parts(spec(Step(doubled), BROADCAST), partial(torch.ones(2).reshape, 3), 7)


@dataclass(frozen=True)
class FailsLater(CreditStep):
    """Works in the dry run, whose prompts are two, and fails on six."""

    def apply(self, batch):
        if len(batch.group.unique()) > 2:
            raise LookupError("too many prompts")
        return doubled(batch)


def test_training_ends_with_the_name_of_the_part(tmp_path):
    algorithm = spec(FailsLater(), BROADCAST)
    with pytest.raises(WiringError, match=r"^training step 0: FailsLater raised LookupError: too many"):
        train(algorithm, toy_world(), max_steps=1, seed=0, run=Run(tmp_path))
