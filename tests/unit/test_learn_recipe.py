"""A recipe as a person reads it."""

from paretune.algorithms import ALGORITHMS
from paretune.rl.algorithm_spec import describe

GATE = (("helpful", "safety", 0.5, 0.0),)


def test_one_line_a_part_in_the_order_they_act():
    recipe = ALGORITHMS["dapo"]({"helpful": 1.0, "safety": 0.5}, gates=GATE, kl=0.1, n=4)
    assert describe(recipe) == [
        "algorithm  dapo",
        "source     Online(n=4, max_new=256, temperature=1.0, frame='')",
        "worth      Gate(objective='helpful', on='safety', at_least=0.5, otherwise=0.0)",
        "           WeightedSum(weights={'helpful': 1.0, 'safety': 0.5})",
        "           DropFlatGroups(below=0.05)",
        "           OverlongPenalty(longest=256, buffer=51, factor=1.0)",
        "measure    Behaviour(by='sampler')",
        "           Reference(role='reference')",
        "credit     GroupNormalise(divide='std', form='sample', eps=0.0001, floor=1e-05, alone='zero')",
        "           Spread()",
        "losses     1 x Clipped(low=0.2, high=0.28, most=None, level='token')",
        "           0.1 x KlToReference(estimator='k3_k2', ratio='none')",
        "weigh      Weigh(by='token', length=1, empty='count')",
        "updates    epochs=1, minibatch=all rows",
    ]


def test_what_a_recipe_does_not_have_has_no_line():
    lines = describe(ALGORITHMS["gdpo"]({"helpful": 1.0}, minibatch=8))
    assert not any(line.startswith("worth") for line in lines)
    assert lines[-1] == "updates    epochs=1, minibatch=8"


def test_a_phase_is_a_block_of_parts_below_its_name():
    recipe = ALGORITHMS["rto"]({"helpful": 1.0})
    (phase,) = recipe.phases
    inner = describe(phase.spec)
    lines = describe(recipe)
    assert lines[1] == f"before     Phase(role='dpo', steps={phase.max_steps}), its recipe:"
    assert lines[2 : 2 + len(inner)] == [f"           {line}" for line in inner]
    assert inner[0] == "algorithm  dpo"
    assert lines[2 + len(inner)].startswith("source     ")


def test_the_fit_before_a_search_is_a_block_too():
    evolution = ALGORITHMS["essa"]({"helpful": 1.0})
    lines = evolution.describe()
    assert lines[1:3] == [
        "before     Phase(role='warm', steps=20), its recipe:",
        "           algorithm  sft",
    ]
    assert max(map(len, lines)) < 150
