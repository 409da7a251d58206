"""Gates of objectives: what stands below a shut one."""

import pytest

from paretune.config import find_recipe, load_config
from paretune.core.errors import ConfigError
from shared import shared


def test_a_gate_carries_the_worth_below_it_and_zero_is_the_default():
    demo = find_recipe("demo")
    assert load_config(demo, []).gates == (("actionability", "safety", 0.5, 0.0),)
    lower = load_config(demo, ["objectives.actionability.gate_fallback=-0.5"])
    assert lower.gates == (("actionability", "safety", 0.5, -0.5),)


def test_a_worth_below_no_gate_has_no_effect_and_says_so():
    with pytest.raises(ConfigError, match=r"objectives\.safety\.otherwise: has no effect without `when`"):
        load_config(find_recipe("demo"), ["objectives.safety.gate_fallback=1.0"])


def test_a_gated_head_of_pairs_must_say_its_worst_score():
    given = [f"data.root={shared('data')}", f"policy.path={shared('models', 'dialogue-7m')}"]
    with pytest.raises(ConfigError, match="has no worst score"):
        load_config(find_recipe("real-small"), [*given, "objectives.helpful.gate_fallback=null"])
