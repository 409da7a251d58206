"""Which scorer scores which objective, and what of it is refused."""

import pytest

from paretune.config import load_config
from paretune.config.scorers import objective_columns, reward_model_objectives
from paretune.core.errors import ConfigError

BASE = """
name: x
data: {world: {}}
policy: {path: world, sft: {}}
algorithm: {name: grpo}
"""
RULES = "scorers: {brief: {type: rule, rule: length, max: 9}, tidy: {type: rule, rule: repetition}}\n"


def config_of(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(BASE + text)
    return load_config(path)


def test_objectives_take_the_scorer_of_their_name_or_the_one_that_they_name(tmp_path):
    config = config_of(
        tmp_path,
        RULES + "reward: {objectives: {safety: {}}}\n"
        "objectives: {brief: {}, safety: {}, order: {scorer: tidy}}\n",
    )
    assert objective_columns(config) == {"brief": ("brief", "brief"), "order": ("tidy", "tidy")}
    assert reward_model_objectives(config) == ["safety"]


def test_a_rule_may_score_another_objective_than_its_name(tmp_path):
    config = config_of(
        tmp_path,
        "scorers: {a: {type: rule, rule: length, max: 9, objective: brief}}\nobjectives: {brief: {}}\n"
        "judge: ground_truth\n",
    )
    assert objective_columns(config) == {"brief": ("a", "brief")}


def test_no_reward_section_is_needed(tmp_path):
    config = config_of(tmp_path, RULES + "objectives: {brief: {}, tidy: {}}\n")
    assert config.reward is None
    assert reward_model_objectives(config) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RULES + "objectives: {brief: {}}", "r.yaml:6:54: scorers.tidy: no objective uses it"),
        (RULES + "objectives: {breif: {}, tidy: {}}", 'no scorer scores it; did you mean "brief"?'),
        ("objectives: {brief: {}}", "objectives.brief: no scorer scores it; fix: add it to `scorers`"),
        (
            RULES + "objectives: {brief: {scorer: tidi}, tidy: {}}",
            '"tidi" is not in scorers; did you mean "tidy"?',
        ),
        (
            RULES + "reward: {objectives: {brief: {}}}\nobjectives: {brief: {}, tidy: {}}",
            "objectives.brief: is scored by brief and by reward; fix: name one: objectives.brief.scorer",
        ),
        (
            RULES + "reward: {objectives: {polite: {}}}\nobjectives: {brief: {}, tidy: {}}",
            "reward: has no effect: the scorers score every objective",
        ),
        (
            "scorers: {reward: {type: rule, rule: length, max: 9}}\nobjectives: {reward: {}}",
            "scorers.reward: is the name of the section reward",
        ),
        (
            "scorers: {a: {type: python, function: f.py:g, objectives: [x, y]}}\n"
            "objectives: {z: {scorer: a}, x: {}, y: {}}",
            "objectives.z.scorer: a scores several objectives, none of this name",
        ),
        (
            RULES + "objectives: {brief: {}, tidy: {}}\nevaluate: {verdict: majority}",
            "evaluate.verdict: has no effect with fewer than two judges",
        ),
        (
            RULES + "objectives: {brief: {}, tidy: {}}\nevaluate: {verdict: mine}",
            'evaluate.verdict: "mine" is no judge; fix: one of all, majority',
        ),
        (
            RULES + "objectives: {brief: {}, tidy: {}}\nalgorithm: {name: ppo}",
            "algorithm.critic_init_from: is the reward model, and other scorers score objectives too",
        ),
        ("scorers: {a: {type: rul, max: 9}}\nobjectives: {a: {}}", "scorers.a.type"),
        ("scorers: {a: {type: rule, rule: lenght}}\nobjectives: {a: {}}", "scorers.a.rule"),
        (
            "scorers: {a: {type: rule, rule: length, maxi: 3}}\nobjectives: {a: {}}",
            'did you mean "scorers.a.max"',
        ),
        ("scorers: {a: {rule: length}}\nobjectives: {a: {}}", "scorers.a"),
        (
            "scorers: {a: {type: classifier, path: /nope, label: x}}\nobjectives: {a: {}}",
            "scorers.a.path: there is no",
        ),
    ],
)
def test_what_does_not_fit_is_one_line_at_its_key(tmp_path, text, message):
    base = BASE.replace("algorithm: {name: grpo}\n", "") if "algorithm" in text else BASE
    path = tmp_path / "r.yaml"
    path.write_text(base + text + "\n")
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert message in str(error.value), str(error.value)
