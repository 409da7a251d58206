"""Every pair that means nothing together is refused, with both names; every shipped algorithm passes."""

import pytest

from paretune.algorithms import ALGORITHMS
from paretune.credit.adaptive import HypervolumeGuided
from paretune.credit.advantage import BatchNormalise, GroupNormalise, LeaveOneOut, Spread
from paretune.credit.aggregate import WeightedSum
from paretune.credit.constraint import Constraint, Lagrangian
from paretune.credit.gae import Gae, ReturnToGo
from paretune.credit.importance import TruncatedImportance
from paretune.credit.keep import KeepBest
from paretune.credit.penalty import Clip, EndReward, KlPenalty, OverlongPenalty
from paretune.credit.running import RunningScale
from paretune.credit.step import chain
from paretune.credit.whiten import Whiten
from paretune.errors import WiringError
from paretune.learn.check import check
from paretune.learn.recipe import Recipe
from paretune.learn.refuse import refuse, refuse_models
from paretune.loss.imitate import Likelihood
from paretune.loss.kl import KlToReference
from paretune.loss.policy import Clipped
from paretune.loss.preference import Dpo
from paretune.loss.ranking import Ranking
from paretune.loss.term import Term
from paretune.models.adapt import AdapterOff, add_lora
from paretune.models.load import Lora
from paretune.models.measure import Behaviour, Reference
from paretune.models.tiny import tiny_model
from paretune.rollout.sample import Online
from toy import WEIGHTS, algorithm, toy_recipe

SUM = WeightedSum(WEIGHTS)
GROUP = GroupNormalise()
PLAIN = (Term(1.0, Clipped()),)
CHARGED = Term(0.04, KlToReference())
GUIDED = HypervolumeGuided(("even", "high"))
APART = Lagrangian(WEIGHTS, (Constraint("high", 0.5),), on="advantages")


def credit(*steps, **more):
    return toy_recipe(kl=0.0).but(worth=chain(SUM), credit=chain(*steps), **more)


@pytest.mark.parametrize(
    ("recipe", "names"),
    [
        (
            credit(KlPenalty(0.1, on="response"), GROUP, Spread(), losses=(*PLAIN, CHARGED)),
            (r"KlPenalty\(0.1\)", "KlToReference with the coefficient 0.04"),
        ),
        (credit(EndReward(), GROUP, Spread()), ("EndReward pays on tokens", "Spread gives every token")),
        (credit(KlPenalty(0.1), GROUP, Spread()), ("KlPenalty pays on tokens", "Spread gives every token")),
        (credit(EndReward(), ReturnToGo(), GROUP, Spread()), ("Spread overwrites", "ReturnToGo")),
        (credit(RunningScale(), GROUP, Spread()), ("RunningScale has no effect before Group", "Clip")),
        (credit(RunningScale(), LeaveOneOut("std"), Spread()), ("RunningScale", "LeaveOneOut")),
        (credit(GroupNormalise("none"), GROUP, Spread()), ("GroupNormalise has no effect",)),
        (credit(GUIDED, GROUP, Spread()), ("HypervolumeGuided has no effect before GroupNormalise",)),
        (credit(GUIDED, BatchNormalise(), Spread()), ("HypervolumeGuided", "BatchNormalise")),
        (
            credit(GROUP, Spread(), Whiten(), APART),
            ("Whiten comes before Lagrangian", "put Whiten after"),
        ),
        (
            credit(TruncatedImportance(), GROUP, Spread()),
            ("TruncatedImportance compares", r'Behaviour\(by="sampler"\)'),
        ),
        (credit(GROUP, Spread(), losses=(*PLAIN, Term(0.0, KlToReference()))), ("KlToReference", "0")),
        (credit(GROUP, Spread(), OverlongPenalty(6, 2)), ("OverlongPenalty changes", "before Spread")),
        (credit(GROUP, Spread(), Clip(-1.0, 1.0)), ("Clip changes the signal after Spread",)),
        (credit(KeepBest(), losses=(Term(1.0, Dpo()),)), ("KeepBest keeps one", "Dpo compares several")),
        (
            credit(losses=(Term(1.0, Ranking()),), source=Online(n=1, max_new=4)),
            ("Ranking compares responses to one prompt, and n is 1",),
        ),
    ],
)
def test_pairs_that_mean_nothing_together(recipe, names):
    for name in names:
        with pytest.raises(WiringError, match=name):
            check(recipe, ("even", "high"))


@pytest.mark.parametrize(
    "recipe",
    [
        credit(KlPenalty(0.1, on="response"), GROUP, Spread()),
        credit(RunningScale(), Clip(-2.0, 2.0), GROUP, Spread()),
        credit(RunningScale(), GroupNormalise("none"), Spread()),
        credit(GROUP, GUIDED, Spread()),
        credit(GroupNormalise("none"), BatchNormalise(), Spread()),
        credit(TruncatedImportance(), GROUP, Spread(), measure=(Behaviour("trainer"), Reference())),
        credit(GROUP, Spread(), Clip(-1.0, 1.0, on="advantages")),
        toy_recipe(kl=0.0).but(worth=chain(), credit=chain(GROUP, Spread(), APART, Whiten())),
        credit(EndReward(), KlPenalty(0.1), ReturnToGo(), Whiten()),
        credit(KeepBest(2), losses=(Term(1.0, Dpo()),), measure=(Reference(),)),
        credit(KeepBest(), losses=(Term(1.0, Likelihood()),), measure=()),
    ],
)
def test_pairs_that_do(recipe):
    check(recipe, ("even", "high"))


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_every_algorithm_passes(name):
    made = algorithm(name)
    refuse(made if isinstance(made, Recipe) else made.fitted.recipe)


def test_gae_reads_rewards_on_tokens():
    refuse(credit(EndReward(), KlPenalty(0.1), Gae(), Whiten()))


def test_the_policy_without_its_adapter_is_no_soup():
    model = add_lora(tiny_model("llama", 11, width=8, layers=1, heads=2), Lora(r=2), 0)
    refuse_models(["reference"], {"reference": AdapterOff(model)})
    refuse_models(["soup"], {"soup": model})
    with pytest.raises(WiringError, match=r'"soup" is the policy with its adapter off \(AdapterOff\)'):
        refuse_models(["reference", "soup"], dict.fromkeys(("reference", "soup"), AdapterOff(model)))
