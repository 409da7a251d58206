"""Every published case is answered by a test here, or stands in this table with the reason."""

import ast
from functools import cache
from pathlib import Path

import pytest
from cases import FOLDER, load, tolerances

UNUSED = "no shipped part needs it: "
ELSEWHERE: dict[str, str] = {
    "pfppo_weights_verl": UNUSED + "ranks are among the responses to one prompt, not over the whole batch",
    "armorm_ridge": UNUSED
    + "reward models are fitted end to end; the ridge baseline chooses its own penalty",
    "armorm_gating": UNUSED + "weights are set by the user, not by a network",
    "armorm_verbosity_penalty": UNUSED + "scores are not corrected for length",
    "ric_preference_map": UNUSED + "preferences are weights, not target rewards written into prompts",
    "ric_reward_normalize": UNUSED + "labels keep the units they come in",
}
"""Topic -> why nobody here answers it."""
PARTLY: dict[str, tuple[tuple[str, ...], str]] = {
    "trl_dpo_losses": (
        ("a/aot", "b_tie/aot", "c_extreme/aot"),
        UNUSED + "they sort whole batches of pairs, so the losses of micro-batches would not add up",
    ),
}
"""Topic -> starts of the names of cases that nobody here answers, and why."""


def literals(argument: ast.expr) -> tuple[str, ...]:
    """The strings an argument stands for: one, or those of a starred tuple."""
    if isinstance(argument, ast.Starred):
        return tuple(ast.literal_eval(argument.value))
    return (ast.literal_eval(argument),)


@cache
def answered() -> dict[str, tuple[str, ...]]:
    """Topic -> starts of the case names that some test takes; () when it takes all. From the source."""
    found: dict[str, tuple[str, ...]] = {}
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "cases":
                topic, *starts = (name for argument in node.args for name in literals(argument))
                known = found.get(topic)
                found[topic] = () if not starts or known == () else (*(known or ()), *starts)
    return found


@pytest.mark.parametrize("topic", sorted(path.stem for path in FOLDER.glob("*.json")))
def test_every_case_is_answered(topic):
    if topic in ELSEWHERE:
        assert topic not in answered(), "answered, so it need not stand in the table"
        return
    assert topic in answered(), "nobody answers it"
    starts = answered()[topic]
    left = [case.name for case in load(topic) if starts and not case.name.startswith(starts)]
    told, _ = PARTLY.get(topic, ((), ""))
    assert not [name for name in left if not name.startswith(told)]
    assert all(any(name.startswith(start) for name in left) for start in told), "answered, or no such case"


def test_the_table_names_topics_that_exist_and_each_topic_has_a_tolerance():
    topics = {path.stem for path in FOLDER.glob("*.json")}
    assert not (set(ELSEWHERE) | set(PARTLY)) - topics
    assert not topics - set(tolerances())
