"""Gates of objectives and their fallback scores."""

import pytest

from paretune.config import find_recipe, load_config
from paretune.config.issues import misspelled_category
from paretune.core.errors import ConfigError
from shared import shared


def test_the_fallback_of_a_gate_defaults_to_zero():
    demo = find_recipe("demo")
    assert load_config(demo, []).gates == (("actionability", "safety", 0.5, 0.0),)
    lower = load_config(demo, ["objectives.actionability.gate_fallback=-0.5"])
    assert lower.gates == (("actionability", "safety", 0.5, -0.5),)


def test_a_gated_objective_fitted_to_pairs_needs_a_fallback():
    given = [f"data.root={shared('data')}", f"policy.path={shared('models', 'dialogue-7m')}"]
    with pytest.raises(ConfigError, match="has no worst score"):
        load_config(find_recipe("real-small"), [*given, "objectives.helpful.gate_fallback=null"])


def test_the_refusal_categories_default_to_those_of_the_built_in_world():
    config = load_config(find_recipe("demo"), [])
    assert config.evaluate.refusal_categories == {"harmful": "up", "lookalike": "down"}


@pytest.mark.parametrize(
    ("category", "suggestion"),
    [("toxicc", "toxic"), ("Toxic", "toxic"), ("toxic", ""), ("nontoxic", ""), ("harmfull", ""), ("", "")],
)
def test_a_misspelled_refusal_category_is_recognized(category, suggestion):
    assert misspelled_category(category, ["toxic", "medical"]) == suggestion
