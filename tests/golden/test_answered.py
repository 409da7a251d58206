"""Every published case is answered by a test here, or stands in this table with the reason."""

import ast
from functools import cache
from pathlib import Path

import pytest
from cases import FOLDER, load, tolerances

NEXT = "belongs to a method that comes with a later release: "
UNUSED = "no shipped part needs it: "
ELSEWHERE: dict[str, str] = {
    "dpo_batch_logps": NEXT + "direct preference optimisation",
    "dpo_concatenated_inputs": NEXT + "direct preference optimisation",
    "dpo_loss": NEXT + "direct preference optimisation",
    "trl_dpo_losses": NEXT + "direct preference optimisation",
    "tdpo_logps_kl": NEXT + "token-level direct preference optimisation",
    "tdpo_loss": NEXT + "token-level direct preference optimisation",
    "modpo_loss": NEXT + "multi-objective direct preference optimisation",
    "pro_loss": NEXT + "preference ranking optimisation",
    "pro_loss_from_logits": NEXT + "preference ranking optimisation",
    "rto_token_rewards": NEXT + "reinforced token optimisation",
    "ppoc_reward_adjustment": NEXT + "rewards calibrated by stated confidence",
    "ppoc_confidence_parse": NEXT + "rewards calibrated by stated confidence",
    "ppom_calibrated_reward_loss": NEXT + "reward models calibrated by stated confidence",
    "ece": NEXT + "evaluation of stated confidence",
    "ece_confidence_scaling": NEXT + "evaluation of stated confidence",
    "pfppo_weights": NEXT + "policy filtration",
    "pfppo_weights_verl": NEXT + "policy filtration",
    "superhf_filter": NEXT + "supervised fine-tuning on the best of own samples",
    "superhf_loss": NEXT + "supervised fine-tuning on the best of own samples",
    "meteor_similarity": NEXT
    + "supervised fine-tuning on the best of own samples (its measure of diversity)",
    "safe_rlhf_reward_loss": NEXT + "reward and cost models of Safe RLHF",
    "safe_rlhf_cost_loss": NEXT + "reward and cost models of Safe RLHF",
    "essa_lora_svd": NEXT + "evolution of the singular values of adapters",
    "armorm_ridge": UNUSED
    + "reward models are fitted end to end; the ridge baseline chooses its own penalty",
    "armorm_gating": UNUSED + "weights are set by the user, not by a network",
    "armorm_verbosity_penalty": UNUSED + "scores are not corrected for length",
    "ric_preference_map": UNUSED + "preferences are weights, not target rewards written into prompts",
    "ric_reward_normalize": UNUSED + "labels keep the units they come in",
}
"""Topic -> why nobody here answers it."""


@cache
def answered() -> dict[str, tuple[str, ...]]:
    """Topic -> starts of the case names that some test takes; () when it takes all. From the source."""
    found: dict[str, tuple[str, ...]] = {}
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "cases":
                topic, *starts = (ast.literal_eval(argument) for argument in node.args)
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
    assert not left


def test_the_table_names_topics_that_exist_and_each_topic_has_a_tolerance():
    topics = {path.stem for path in FOLDER.glob("*.json")}
    assert not set(ELSEWHERE) - topics
    assert not topics - set(tolerances())
