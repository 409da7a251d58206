"""Contradicting pairs of parts are refused with both names; every shipped algorithm passes."""

import pytest

from paretune.algorithms import ALGORITHMS
from paretune.core.errors import WiringError
from paretune.credit.aggregation import WeightedSum
from paretune.credit.base import chain
from paretune.credit.constraints import Constraint, Lagrangian
from paretune.credit.importance_sampling import TruncatedImportanceSampling
from paretune.credit.normalization import (
    BatchNormalize,
    BroadcastToTokens,
    GroupNormalize,
    LeaveOneOut,
    RunningNormalize,
    Whiten,
)
from paretune.credit.returns import Gae, ReturnToGo
from paretune.credit.scalarization import HypervolumeGuidedWeighting
from paretune.credit.selection import BestOfN
from paretune.credit.shaping import ClipReward, KlPenalty, OverlongPenalty, TerminalReward
from paretune.loss.auxiliary import SftLoss
from paretune.loss.base import WeightedLoss
from paretune.loss.kl import KlToReference
from paretune.loss.listwise import PreferenceRanking
from paretune.loss.pairwise import Dpo
from paretune.loss.policy import ClippedSurrogate
from paretune.models.load import LoraSpec
from paretune.models.lora import AdapterDisabledModel, add_lora
from paretune.models.model_passes import OldLogprobs, RefLogprobs
from paretune.rl.validate import check_combinations, check_frozen_models, check_spec
from paretune.rollout.sampler import OnPolicy
from support.tiny_models import tiny_model
from toy import WEIGHTS, algorithm, toy_recipe

SUM = WeightedSum(WEIGHTS)
GROUP = GroupNormalize()
PLAIN = (WeightedLoss(1.0, ClippedSurrogate()),)
CHARGED = WeightedLoss(0.04, KlToReference())
GUIDED = HypervolumeGuidedWeighting(("even", "high"))
APART = Lagrangian(WEIGHTS, (Constraint("high", 0.5),), apply_to="advantages")


def credit(*steps, **more):
    return toy_recipe(kl_coef=0.0).replace(reward_steps=chain(SUM), credit=chain(*steps), **more)


@pytest.mark.parametrize(
    ("recipe", "names"),
    [
        (
            credit(KlPenalty(0.1, level="sequence"), GROUP, BroadcastToTokens(), losses=(*PLAIN, CHARGED)),
            (r"KlPenalty\(0.1\)", "KlToReference with coefficient 0.04"),
        ),
        (
            credit(TerminalReward(), GROUP, BroadcastToTokens()),
            ("TerminalReward writes token_rewards, and nothing after it reads", "add Gae or ReturnToGo"),
        ),
        (
            credit(KlPenalty(0.1), GROUP, BroadcastToTokens()),
            ("KlPenalty writes token_rewards, and nothing after it reads", "level: sequence"),
        ),
        (
            credit(TerminalReward(), ReturnToGo(), GROUP, BroadcastToTokens()),
            ("ReturnToGo writes advantages, and BroadcastToTokens overwrites advantages",),
        ),
        (
            credit(RunningNormalize(), GROUP, BroadcastToTokens()),
            ("RunningNormalize has no effect before Group", "ClipReward"),
        ),
        (
            credit(RunningNormalize(), LeaveOneOut("group"), BroadcastToTokens()),
            ("RunningNormalize", "LeaveOneOut"),
        ),
        (credit(GroupNormalize("none"), GROUP, BroadcastToTokens()), ("GroupNormalize has no effect",)),
        (
            credit(GUIDED, GROUP, BroadcastToTokens()),
            ("HypervolumeGuidedWeighting has no effect before GroupNormalize",),
        ),
        (
            credit(GUIDED, BatchNormalize(), BroadcastToTokens()),
            ("HypervolumeGuidedWeighting", "BatchNormalize"),
        ),
        (
            credit(GROUP, BroadcastToTokens(), Whiten(), APART),
            ("Whiten comes before Lagrangian", "put Whiten after"),
        ),
        (
            credit(TruncatedImportanceSampling(), GROUP, BroadcastToTokens()),
            ("TruncatedImportanceSampling compares", r'OldLogprobs\(source="rollout"\)'),
        ),
        (
            credit(GROUP, BroadcastToTokens(), losses=(*PLAIN, WeightedLoss(0.0, KlToReference()))),
            ("KlToReference", "0"),
        ),
        (
            credit(GROUP, BroadcastToTokens(), OverlongPenalty(6, 2)),
            ("OverlongPenalty writes rewards after BroadcastToTokens", "OverlongPenalty before Broadcast"),
        ),
        (
            credit(GROUP, BroadcastToTokens(), ClipReward(-1.0, 1.0)),
            ("ClipReward writes rewards after BroadcastToTokens, the last part that reads rewards",),
        ),
        (
            credit(BestOfN(), losses=(WeightedLoss(1.0, Dpo()),)),
            ("BestOfN keeps one", "Dpo compares several"),
        ),
        (
            credit(
                losses=(WeightedLoss(1.0, PreferenceRanking()),),
                rollout=OnPolicy(num_generations=1, max_new_tokens=4),
            ),
            ("Ranking compares the responses to a prompt, and num_generations is 1",),
        ),
    ],
)
def test_contradicting_pairs_are_refused_with_both_names(recipe, names):
    for name in names:
        with pytest.raises(WiringError, match=name):
            check_spec(recipe, ("even", "high"))


@pytest.mark.parametrize(
    "recipe",
    [
        credit(KlPenalty(0.1, level="sequence"), GROUP, BroadcastToTokens()),
        credit(RunningNormalize(), ClipReward(-2.0, 2.0), GROUP, BroadcastToTokens()),
        credit(RunningNormalize(), GroupNormalize("none"), BroadcastToTokens()),
        credit(GROUP, GUIDED, BroadcastToTokens()),
        credit(GroupNormalize("none"), BatchNormalize(), BroadcastToTokens()),
        credit(
            TruncatedImportanceSampling(),
            GROUP,
            BroadcastToTokens(),
            model_passes=(OldLogprobs("policy"), RefLogprobs()),
        ),
        credit(GROUP, BroadcastToTokens(), ClipReward(-1.0, 1.0, apply_to="advantages")),
        toy_recipe(kl_coef=0.0).replace(
            reward_steps=chain(), credit=chain(GROUP, BroadcastToTokens(), APART, Whiten())
        ),
        credit(TerminalReward(), KlPenalty(0.1), ReturnToGo(), Whiten()),
        credit(BestOfN(2), losses=(WeightedLoss(1.0, Dpo()),), model_passes=(RefLogprobs(),)),
        credit(BestOfN(), losses=(WeightedLoss(1.0, SftLoss()),), model_passes=()),
    ],
)
def test_similar_but_valid_pairs_pass(recipe):
    check_spec(recipe, ("even", "high"))


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_every_algorithm_passes(name):
    for spec in algorithm(name).all_specs():
        if not spec.gradient_free:
            check_combinations(spec)


def test_gae_reads_token_rewards():
    check_combinations(credit(TerminalReward(), KlPenalty(0.1), Gae(), Whiten()))


def test_adapter_disabled_policy_is_only_a_reference():
    model = add_lora(tiny_model("llama", 11, width=8, layers=1, heads=2), LoraSpec(r=2), 0)
    check_frozen_models(["reference"], {"reference": AdapterDisabledModel(model)})
    check_frozen_models(["soup"], {"soup": model})
    with pytest.raises(
        WiringError, match=r'"soup" is the policy with its adapter disabled \(AdapterDisabledModel\)'
    ):
        check_frozen_models(
            ["reference", "soup"], dict.fromkeys(("reference", "soup"), AdapterDisabledModel(model))
        )
