"""Gates of objectives: what stands below a shut one."""

import pytest

from paretune.config import find_recipe, load
from paretune.errors import ConfigError
from shared import shared


def test_a_gate_carries_the_worth_below_it_and_zero_is_the_default():
    demo = find_recipe("demo")
    assert load(demo, []).gates == (("actionability", "safety", 0.5, 0.0),)
    lower = load(demo, ["objectives.actionability.otherwise=-0.5"])
    assert lower.gates == (("actionability", "safety", 0.5, -0.5),)


def test_a_worth_below_no_gate_has_no_effect_and_says_so():
    with pytest.raises(ConfigError, match=r"objectives\.safety\.otherwise: has no effect without `when`"):
        load(find_recipe("demo"), ["objectives.safety.otherwise=1.0"])


def test_a_gated_head_of_pairs_must_say_its_worst_score():
    given = [f"data.root={shared('data')}", f"policy.path={shared('models', 'dialogue-7m')}"]
    with pytest.raises(ConfigError, match="has no worst score"):
        load(find_recipe("real-small"), [*given, "objectives.helpful.otherwise=null"])
