"""Recipes with one mistake each: the key that the error names, and words that it must contain."""

from pathlib import Path
from typing import NamedTuple

import pytest

from paretune.config import Config, find_recipe, load_config
from paretune.core.errors import ConfigError

WORLD = {
    "data": "{world: {}}",
    "policy": "{path: world, sft: {}}",
    "reward": "{objectives: {safety: {}, politeness: {}}}",
    "objectives": "{safety: {weight: 1}}",
    "algorithm": "{name: grpo}",
}
FILES = WORLD | {
    "data": "{prompts: {a: {file: p.jsonl}}, test_prompts: {a: {file: t.jsonl}}}",
    "policy": "{path: own/model}",
    "reward": "{objectives: {safety: {}}, ratings: {r: {file: r.jsonl, labels: {safety: safe}}}}",
}
GATED = WORLD | {
    "reward": "{objectives: {safety: {}, actionability: {}}}",
    "objectives": "{safety: {}, actionability: {gate: safety >= 0.5}}",
}


class Case(NamedTuple):
    """One mistake."""

    section: str
    value: str
    """The value of the section that has the mistake; for cases over the demo recipe, overrides."""
    key: str
    """The key that the error is reported at."""
    words: tuple[str, ...]
    """Words that the error must contain."""


def case(section: str, value: str, key: str, *words: str) -> Case:
    return Case(section, value, key, words)


def demo_case(overrides: list[str], key: str, *words: str) -> Case:
    return Case("", "\n".join(overrides), key, words)


OVER_FILES = [
    case("data", "{}", "data.prompts", "is missing"),
    case("data", "{prompts: {a: {file: p.jsonl}}}", "data.test_prompts", "is missing"),
    case("data", "{world: {}, prompts: {a: {file: p.jsonl}}}", "data.prompts", "no effect", "data.world"),
    case(
        "data",
        "{prompts: {a: {file: p.jsonl}}, test_prompts: {b: {file: p.jsonl}}}",
        "data.test_prompts.b.file",
        "same rows as data.prompts.a:",
    ),
    case(
        "data",
        "{root: nowhere, prompts: {a: {file: p.jsonl}}, test_prompts: {b: {file: t.jsonl}}}",
        "data.root",
        'no folder "nowhere"',
    ),
    case(
        "data",
        "{prompts: {a: {file: p.jsonl, columns: {chosen: c}}}, test_prompts: {b: {file: t.jsonl}}}",
        "data.prompts.a.columns.chosen",
        "prompts",
        "no such column",
    ),
    case("policy", "{path: world}", "policy.path", '"world"', "built-in world"),
    case("policy", "{path: ./gone}", "policy.path", 'no folder "./gone"'),
    case("policy", "{path: own/model, sft: {}}", "policy.sft.demonstrations", "is missing"),
    case("policy", "{path: own/model, lora: {r: 0}}", "policy.lora.r", "0 must be at least 1"),
    case(
        "policy",
        "{path: own/model, lora: {target_modules: [a, 3]}}",
        "policy.lora.target_modules[1]",
        "3 is not text",
        "fix: put it in quotes",
    ),
    case(
        "policy",
        "{path: own/model, dtype: float16}",
        "policy.dtype",
        '"float16" is none of float32, bfloat16',
        "did you mean",
    ),
    case("reward", "{}", "reward.objectives", "is missing"),
    case(
        "reward",
        "{path: own/reward, training: {num_train_epochs: 9}}",
        "reward.training",
        "no effect",
        "reward.path",
    ),
    case("reward", "{objectives: {safety: {}}}", "reward.ratings", "is missing"),
    case(
        "reward",
        "{objectives: {safety: {}}, ratings: {r: {file: r.jsonl, labels: {saftey: s}}}}",
        "reward.ratings.r.labels.saftey",
        '"saftey" is not in reward.objectives',
        'did you mean "safety"?',
    ),
    case(
        "objectives",
        "{safety: {}, kind: {}}",
        "objectives.kind",
        '"kind" is not in reward.objectives',
        "fix: add it to reward.objectives and to the labels of reward.ratings; or to scorers",
    ),
    case(
        "reward",
        "{objectives: {safety: {}, a: {}}, ratings: {r: {file: r.jsonl, labels: {safety: s}}}}",
        "reward.objectives.a",
        "loss mse needs ratings",
    ),
    case(
        "reward",
        "{objectives: {safety: {}}, pairs: {r: {file: r.jsonl, objective: safety}}}",
        "reward.objectives.safety",
        "needs ratings",
        "or write loss: bradley_terry",
    ),
    case(
        "reward",
        "{objectives: {safety: {huber_delta: 2}}, ratings: {r: {file: r.jsonl, labels: {safety: s}}}}",
        "reward.objectives.safety.huber_delta",
        "no effect",
        "loss mse",
    ),
    case(
        "reward",
        "{objectives: {safety: {}}, holdout_fraction: 0.2, "
        "ratings: {r: {file: r.jsonl, labels: {safety: s}}}, "
        "test_ratings: {r: {file: t.jsonl, labels: {safety: s}}}}",
        "reward.holdout_fraction",
        "no effect",
        "test data",
    ),
    case("judge", "ground_truth", "judge", "ground truth", "built-in world only"),
    case(
        "judge",
        "{objectives: {safety: {}}, ratings: {x: {file: r.jsonl, labels: {safety: s}}}}",
        "judge.ratings.x.file",
        "same rows as reward.ratings.r",
        "other data than the reward",
    ),
    case("objectives", "{}", "objectives", "{} must not be empty"),
    case("objectives", "{safety: {weight: 0}}", "objectives", "every weight is 0"),
    case("objectives", "{saftey: {}}", "objectives.saftey", "no model provides it", 'did you mean "safety"?'),
    case(
        "objectives",
        "{safety: {gate: kindness >= 1}}",
        "objectives.safety.gate",
        '"kindness" is not in objectives',
    ),
    case("objectives", "{safety: {weight: .nan}}", "objectives.safety.weight", "nan is not a finite number"),
    case(
        "algorithm",
        "{name: gpro}",
        "algorithm.name",
        '"gpro" is not an algorithm',
        'did you mean "grpo"?',
    ),
    case("algorithm", "{name: safe_rlhf}", "algorithm", "no constraint", "fix:", "at_least"),
    case(
        "data",
        "{prompts: {a: {file: p.jsonl, category: harmfull}}, "
        "test_prompts: {a: {file: t.jsonl, category: ordinary}}}",
        "data.prompts.a.category",
        '"harmfull" is not in evaluate.refusal_categories',
        'did you mean "harmful"?',
        "fix: write harmful",
    ),
    case(
        "data",
        "{prompts: {a: {file: p.jsonl}}, test_prompts: {a: {file: t.jsonl, category: Look-alike}}}",
        "data.test_prompts.a.category",
        '"Look-alike" is not in evaluate.refusal_categories',
        'did you mean "lookalike"?',
    ),
    case("algorithm", "{name: grpo, m: 3}", "algorithm.m", "unknown key"),
    case("algorithm", "{name: grpo, weights: {}}", "algorithm.weights", "unknown key"),
    case(
        "algorithm",
        "{name: grpo, num_generations: many}",
        "algorithm.num_generations",
        '"many" is not a whole number',
    ),
    case("algorithm", "{name: grpo, kl_coef: true}", "algorithm.kl_coef", "True is not a number"),
    case("algorithm", "{name: grpo, num_generations: 1}", "algorithm.num_generations", "is 1", "grpo"),
    case("name", "Mine", "name", '"Mine" must be a-z, 0-9 and . - _ only, at most 64'),
    case("name", "My Run!", "name", "letter or digit", "fix: write my-run"),
    case(
        "evaluate",
        "{non_inferiority_margin: {saftey: 0.1}}",
        "evaluate.non_inferiority_margin.saftey",
        'did you mean "safety"?',
    ),
    case("run", "{max_steps: 1.0}", "run.max_steps", "1.0 is not a whole number", "fix: write 1"),
    case("run", '{max_steps: "3"}', "run.max_steps", '"3" is not a whole number', "remove the quotes: 3"),
    case("run", "3", "run", "3 is not a section of keys"),
    case("stpes", "3", "stpes", "unknown key"),
    case(
        "evaluate",
        "{refusal_categories: {harmful: down_}}",
        "evaluate.refusal_categories.harmful",
        "up, down",
    ),
]

OVER_WORLD = [
    case("policy", "{path: world}", "policy.sft", "is missing"),
    case(
        "reward",
        "{objectives: {safety: {}, kindness: {}}}",
        "reward.objectives.kindness",
        "no ratings",
        "built-in world",
    ),
    case(
        "reward",
        "{objectives: {safety: {loss: bradley_terry}}}",
        "reward.objectives.safety.loss",
        "bradley_terry needs pairs",
    ),
    case("judge", "{objectives: {safety: {}}}", "judge", "same data as the reward"),
]

OVER_AGGREGATE = [
    case(
        "aggregate",
        "{name: min_objectvie}",
        "aggregate.name",
        '"min_objectvie" is not an aggregate',
        'did you mean "min_objective"?',
    ),
    case(
        "aggregate", "{name: min_objective, sharpnes: 1}", "aggregate.sharpnes", "unknown key", "did you mean"
    ),
    case(
        "aggregate", "{sharpness: 1}", "aggregate.sharpness", "unknown key", "weighted_sum takes no arguments"
    ),
    case("aggregate", "{name: min_objective, sharpness: x}", "aggregate.sharpness", "not a number"),
    case("aggregate", "{name: min_objective, sharpness: 0.0}", "aggregate.sharpness", "0.0 must be above 0"),
    case("aggregate", "{name: chebyshev, rho: -1}", "aggregate.rho", "-1 must be at least 0"),
    case(
        "aggregate",
        "{name: chebyshev, freeze_ideal_after: -1}",
        "aggregate.freeze_ideal_after",
        "-1 must be at least 0",
    ),
    case("aggregate", "{name: lexicographic, bin_width: -1}", "aggregate.bin_width", "-1 must be at least 0"),
    case("aggregate", "{name: lagrangian, window_size: 0}", "aggregate.window_size", "0 must be at least 1"),
    case("aggregate", "{missing: zero}", "aggregate.missing", '"zero" is none of drop'),
    case(
        "aggregate",
        "{name: min_objective, missing: renormalize}",
        "aggregate.missing",
        "renormalize",
        "weighted sum",
        "min_objective",
    ),
    case("aggregate", "{name: lagrangian}", "aggregate.name", "lagrangian", "constraints", "no objective"),
    case(
        "objectives",
        "{safety: {at_least: 0.9}}",
        "objectives.safety.at_least",
        "no effect with aggregate.name weighted_sum",
        "fix: write aggregate: {name: lagrangian}",
    ),
    case(
        "objectives",
        "{safety: {constraint_param: 0.9}}",
        "objectives.safety.constraint_param",
        "no effect without at_least",
    ),
    case("objectives", "{safety: {cap: 1.0, target: 0.5}}", "objectives.safety.target", "cap"),
    case(
        "objectives", "{safety: {weight: -1}}", "objectives.safety.weight", "is -1", "goal: lower, with the"
    ),
    case(
        "objectives",
        "{safety: {goal: lower, weight: -1}}",
        "objectives.safety.weight",
        "its goal is lower already",
    ),
    case(
        "objectives",
        "{safety: {by_category: {harmful: -2}}}",
        "objectives.safety.by_category.harmful",
        "is -2",
        "an objective has one goal",
    ),
    case(
        "objectives",
        "{safety: {weight_schedule: [[0, 1.0], [5, -1.0]]}}",
        "objectives.safety.weight_schedule[1][1]",
        "an objective has one goal",
    ),
    case("objectives", "{safety: {goal: target}}", "objectives.safety.target", "is missing"),
    case("objectives", "{safety: {goal: lower, target: 3}}", "objectives.safety.target", "no effect"),
    case("objectives", "{safety: {goal: down}}", "objectives.safety.goal", "lower"),
    case(
        "aggregate+objectives",
        "{name: lagrangian}|{safety: {goal: lower, at_least: 0.2}}",
        "objectives.safety.at_least",
        "write at_most",
    ),
    case(
        "aggregate+objectives",
        "{name: lagrangian}|{safety: {at_most: 0.2}}",
        "objectives.safety.at_most",
        "write at_least, or goal: lower",
    ),
    case(
        "aggregate+objectives",
        "{name: lagrangian}|{safety: {target: 0.2, at_least: 0.1}}",
        "objectives.safety.at_least",
        "cannot be combined with a target",
    ),
    case(
        "objectives",
        "{safety: {weight: 2, weight_schedule: [[0, 1.0]]}}",
        "objectives.safety.weight",
        "no effect with weight_schedule",
    ),
    case(
        "objectives",
        "{safety: {by_category: {harmful: 2.0}}, actionability: {weight_schedule: [[0, 1.0]]}}",
        "objectives.safety.by_category",
        "cannot be combined with a weight_schedule",
    ),
    case(
        "objectives",
        "{safety: {weight_schedule: [[3, 1.0], [1, 2.0]]}}",
        "objectives.safety.weight_schedule",
        "steps [3, 1]",
        "must increase",
    ),
    case(
        "objectives",
        "{safety: {weight_schedule: [[0, x]]}}",
        "objectives.safety.weight_schedule[0][1]",
        "not a number",
    ),
    case(
        "objectives",
        "{safety: {by_category: {harmfull: 2.0}}}",
        "objectives.safety.by_category.harmfull",
        'category "harmfull"',
        'did you mean "harmful"?',
    ),
    case(
        "algorithm+objectives",
        "{name: lagrangian_grop}|{safety: {at_least: 0.9}}",
        "algorithm.name",
        '"lagrangian_grop" is not an algorithm',
        'did you mean "lagrangian_grpo"?',
    ),
    case(
        "aggregate+objectives",
        "{name: min_objective}|{safety: {weight: 2}, actionability: {}}",
        "aggregate",
        "weights are not equal",
    ),
    case(
        "aggregate+objectives",
        "{name: chebyshev}|{safety: {at_least: 0.9}}",
        "objectives.safety.at_least",
        "no effect with aggregate",
    ),
    case(
        "aggregate+objectives",
        "{name: min_objective}|{safety: {weight_schedule: [[0, 1.0]]}}",
        "objectives.safety.weight_schedule",
        "no effect with aggregate.name",
    ),
    case(
        "aggregate+objectives",
        "{name: lexicographic}|{safety: {at_least: 0.9, constraint: rate, constraint_param: 0.5}}",
        "objectives.safety.constraint",
        "no effect with aggregate.name lexicographic",
    ),
    case(
        "aggregate+objectives",
        "{name: lagrangian}|{safety: {at_least: 0.9, constraint: rate}}",
        "objectives.safety.at_least",
        "constraint",
    ),
    case(
        "aggregate+objectives",
        "{name: chebyshev, ideal_point: {safety: 1.0}}|{safety: {}, actionability: {}}",
        "aggregate",
        "actionability",
    ),
    *(
        case(
            "algorithm+objectives",
            f"{{name: safe_rlhf}}|{objectives}",
            "algorithm",
            "safe_rlhf",
            '"safety"',
            "ppo",
        )
        for objectives in (
            "{safety: {at_least: 0.7}}",
            "{safety: {at_least: 0.7, weight: 0.5}}",
            "{safety: {at_least: 0.7}, actionability: {weight: 0}}",
        )
    ),
]

CONFIDENCE = "data.world.confidence=true"
THINKING = ("data.world.thinking=true", "thinking={invalid_format: penalize}")
CALIBRATED = "reward.objectives.meaningfulness={loss: calibrated, correct_threshold: 0.7}"


def ppo(name: str) -> str:
    return f"algorithm={{name: {name}, max_new_tokens: 64}}"


OVER_DEMO = [
    demo_case(["thinking={}"], "thinking.invalid_format", "is missing"),
    demo_case(["thinking={invalid_format: best}"], "thinking.invalid_format", "penalize, drop"),
    demo_case([THINKING[1]], "data.world.thinking", "is missing", "data.world.thinking: true"),
    demo_case([ppo("ppo_c")], "data.world.confidence", "is missing"),
    demo_case([CONFIDENCE, *THINKING], "data.world.confidence", "cannot be combined"),
    demo_case([CONFIDENCE, ppo("ppo_m")], "reward.objectives", "ppo_m needs a head", "loss: calibrated"),
    demo_case(
        [CONFIDENCE, ppo("ppo_c"), CALIBRATED],
        "reward.objectives.meaningfulness.loss",
        "calibrated has no effect",
    ),
    demo_case([CALIBRATED], "reward.objectives.meaningfulness.loss", "calibrated has no effect"),
    demo_case(
        ["reward.objectives.safety={correct_threshold: 0.5}"],
        "reward.objectives.safety.correct_threshold",
        "has no effect with loss mse",
    ),
    demo_case(
        ["data.world.confidence_bias=0.3"],
        "data.world.confidence_bias",
        "has no effect without confidence",
    ),
    demo_case(["evaluate.correct_if=safety >= 0.9"], "evaluate.correct_if", "has no effect: grpo asks"),
    demo_case(
        [CONFIDENCE, "evaluate.correct_if=safety"], "evaluate.correct_if", '"safety" is not a threshold'
    ),
    demo_case(
        [CONFIDENCE, "evaluate.correct_if=safty >= 0.5"],
        "evaluate.correct_if",
        '"safty" is not judged',
        'did you mean "safety"',
    ),
    demo_case(
        [*THINKING, "aggregate.missing=group_mean"], "aggregate.missing", "is group_mean, which contradicts"
    ),
    demo_case([*THINKING, "aggregate.missing=drop"], "aggregate.missing", "is drop, which contradicts"),
    demo_case(
        ["objectives.quiet={scored_text: thinking, scores_from: safety}"],
        "objectives.quiet.scored_text",
        "thinking",
    ),
    demo_case(
        [*THINKING, "objectives.quiet={scored_text: thinking}"], "objectives.quiet.scores_from", "is missing"
    ),
    demo_case(
        [*THINKING, "objectives.quiet={scored_text: thinking, scores_from: safty}"],
        "objectives.quiet.scores_from",
        '"safty" is not in',
    ),
    demo_case(
        ["objectives.safety.scores_from=safety"],
        "objectives.safety.scores_from",
        "has no effect without scored_text: thinking",
    ),
    demo_case(
        ["algorithm={name: dpo, response_source: stored, max_new_tokens: 64}", *THINKING],
        "thinking",
        "dpo",
        "stored responses",
    ),
    demo_case(
        [CONFIDENCE, "algorithm={name: dpo, response_source: stored, max_new_tokens: 64}"],
        "data.world.confidence",
        "dpo",
        "stored responses",
    ),
    demo_case(
        ["objectives.safety.gate_fallback=1.0"],
        "objectives.safety.gate_fallback",
        "has no effect without `gate`",
    ),
    demo_case(
        ["algorithm={name: essa, lora_r: 4}", "policy.lora={r: 2}"],
        "algorithm.lora_r",
        "has no effect",
        "policy.lora",
    ),
    demo_case(
        ["algorithm={name: essa, mean_lr: 0.5}"], "algorithm.mean_lr", "has no effect with strategy cma"
    ),
    demo_case(
        ["algorithm={name: essa}", "run.budget={resource: trained_tokens, limit: 9}"],
        "run.budget.resource",
        "is never used",
        "essa",
    ),
    demo_case(["run.num_workers=2"], "run.num_workers", "has no effect: grpo"),
    demo_case(
        ["algorithm={name: essa, population_size: 3}"], "algorithm.population_size", "is 3", "at least 4"
    ),
    demo_case(["algorithm={name: essa, singular_value_fraction: 0.0}"], "algorithm", "essa"),
    demo_case(["algorithm={name: essa, strategy: sep}"], "algorithm.strategy", "cma, isotropic"),
    demo_case(
        ["algorithm={name: essa, sft_response_source: stored}"],
        "algorithm.sft_response_source",
        "needs stored responses, and there are none",
    ),
    demo_case(
        ["algorithm={name: dpo, response_source: stored, max_new_tokens: 64}"],
        "algorithm.response_source",
        "needs stored responses, and there are none",
    ),
]


def write_recipe(sections: dict[str, str], extra: str = "") -> Path:
    path = Path("r.yaml")
    path.write_text("".join(f"{key}: {value}\n" for key, value in sections.items()) + extra, encoding="utf-8")
    return path


def load_sections(sections: dict[str, str], *overrides: str, extra: str = "") -> Config:
    return load_config(write_recipe(sections, extra), overrides)


def error_lines(sections: dict[str, str], *overrides: str, extra: str = "") -> list[str]:
    """The lines of the error of a recipe with these sections."""
    with pytest.raises(ConfigError) as caught:
        load_sections(sections, *overrides, extra=extra)
    return str(caught.value).split("\n")


def case_lines(base: dict[str, str], mistake: Case) -> list[str]:
    """The lines of the error of one case; a case of several sections has their values separated by |."""
    if not mistake.section:
        with pytest.raises(ConfigError) as caught:
            load_config(find_recipe("demo"), mistake.value.split("\n"))
        return str(caught.value).split("\n")
    values = dict(zip(mistake.section.split("+"), mistake.value.split("|"), strict=True))
    return error_lines(base | values)


def at_key(lines: list[str], key: str) -> list[str]:
    """The lines that are reported at this key."""
    return [line for line in lines if f": {key}: " in line]


ALL_CASES: list[tuple[str, dict[str, str], list[Case]]] = [
    ("files", FILES, OVER_FILES),
    ("world", WORLD, OVER_WORLD),
    ("aggregate", GATED, OVER_AGGREGATE),
    ("demo", {}, OVER_DEMO),
]
"""Name, base recipe and mistakes."""
