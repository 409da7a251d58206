"""Every published case is compared by a test here, or listed with the reason why not."""

import ast
from functools import cache
from pathlib import Path

import pytest
from cases import DATA, load, tolerances

UNUSED = "no shipped part needs it: "
NOT_COMPARED: dict[str, str] = {
    "pfppo_weights_verl": UNUSED + "ranks are among the responses to one prompt, not over the whole batch",
    "armorm_ridge": UNUSED
    + "reward models are fitted end to end; the ridge baseline chooses its own penalty",
    "armorm_gating": UNUSED + "weights are set by the user, not by a network",
    "armorm_verbosity_penalty": UNUSED + "scores are not corrected for length",
    "ric_preference_map": UNUSED + "preferences are weights, not target rewards written into prompts",
    "ric_reward_normalize": UNUSED + "labels keep the units they come in",
    "ppom_calibrated_reward_loss": UNUSED + "confidence is calibrated by pairs of a pairwise head",
    "safe_rlhf_reward_loss": UNUSED + "pairwise heads have no such regularization",
    "safe_rlhf_cost_loss": UNUSED + "safety is an objective, not a separate cost model",
    "ece_confidence_scaling": UNUSED + "confidence is parsed as a number in [0, 1]",
    "mo_indicators": UNUSED + "fronts are compared by hypervolume, not by distance to a reference set",
}
"""Topic -> why no test compares it."""
PARTLY_COMPARED: dict[str, tuple[tuple[str, ...], str]] = {
    "trl_dpo_losses": (
        ("a/aot", "b_tie/aot", "c_extreme/aot"),
        UNUSED + "they sort whole batches of pairs, so the losses of micro-batches would not add up",
    ),
}
"""Topic -> prefixes of the names of cases that no test compares, and why."""


def literals(argument: ast.expr) -> tuple[str, ...]:
    """The strings an argument stands for: one, or those of a starred tuple."""
    if isinstance(argument, ast.Starred):
        return tuple(ast.literal_eval(argument.value))
    return (ast.literal_eval(argument),)


@cache
def compared() -> dict[str, tuple[str, ...]]:
    """Topic -> prefixes of the case names that some test compares; () for all. Read from the source."""
    prefixes: dict[str, tuple[str, ...]] = {}
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "cases":
                topic, *starts = (name for argument in node.args for name in literals(argument))
                known = prefixes.get(topic)
                prefixes[topic] = () if not starts or known == () else (*(known or ()), *starts)
    return prefixes


@pytest.mark.parametrize("topic", sorted(path.stem for path in DATA.glob("*.json")))
def test_every_case_is_compared_or_listed(topic):
    if topic in NOT_COMPARED:
        assert topic not in compared(), "a test compares it: remove it from NOT_COMPARED"
        return
    assert topic in compared(), "no test compares it"
    starts = compared()[topic]
    rest = [case.name for case in load(topic) if starts and not case.name.startswith(starts)]
    listed, _ = PARTLY_COMPARED.get(topic, ((), ""))
    assert not [name for name in rest if not name.startswith(listed)]
    assert all(any(name.startswith(start) for name in rest) for start in listed), "compared, or no such case"


def test_tables_name_existing_topics_and_each_topic_has_a_tolerance():
    topics = {path.stem for path in DATA.glob("*.json")}
    assert not (set(NOT_COMPARED) | set(PARTLY_COMPARED)) - topics
    assert not topics - set(tolerances())
