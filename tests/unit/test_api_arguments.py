"""Wrong arguments of public functions: one line that names the argument, what is wrong, and the fix."""

import inspect
from dataclasses import dataclass

import pytest

import paretune as pt
from paretune.api.arguments import RULES, check_arguments, check_weights
from paretune.core.errors import ConfigError

RATED = [{"prompt": "a", "response": "b", "scores": {"polite": 1}}]
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}


def brief(completions, **columns):
    return [1.0 for _ in completions]


def aligned(**settings):
    return pt.align("models/none", scorers=brief, prompts=["a"], **({"output_dir": "x"} | settings))


def evaluated(**settings):
    return pt.evaluate("models/none", "models/none", judges=brief, prompts=["a"], **settings)


def fitted(rows=RATED, **settings):
    return pt.fit_reward_model(rows, **({"init_from": "models/none"} | settings))


REFUSED = {
    "an unknown device": (lambda: pt.sample("m", ["a"], device="gpu"), "sample: device: 'gpu' is not one of"),
    "a device that is a number": (lambda: pt.score(brief, RATED, device=0), "score: device: 0 is not one of"),
    "no responses": (lambda: pt.sample("m", ["a"], num_generations=0), "num_generations: 0 is not a whole"),
    "a text as number": (lambda: pt.sample("m", ["a"], max_new_tokens="8"), "max_new_tokens: '8' is not a"),
    "a truth value as number": (lambda: aligned(max_steps=True), "align: max_steps: True is not a whole"),
    "no steps between checkpoints": (lambda: aligned(save_steps=0), "save_steps: 0 is not.*save_steps=10"),
    "a negative seed": (lambda: pt.sample("m", ["a"], seed=-1), "seed: -1 is not a whole"),
    "a temperature of 0": (lambda: evaluated(temperature=0), "temperature: 0 is not a finite number above 0"),
    "an infinite temperature": (
        lambda: pt.sample("m", ["a"], temperature=float("inf")), "temperature: inf is not a finite number"),
    "a negative rate": (lambda: aligned(learning_rate=-1.0), "learning_rate: -1.0 is not a number above"),
    "a share of 1": (lambda: fitted(holdout_fraction=1), "holdout_fraction: 1 is not a number between"),
    "a policy that is a number": (lambda: pt.sample(3, ["a"]), "policy: 3 is not a model folder"),
    "no path": (lambda: pt.load_policy(None), "load_policy: path: None is not a folder"),
    "an empty path": (lambda: pt.export(" "), "export: run_dir: ' ' is not a path"),
    "a folder that is a number": (lambda: aligned(output_dir=3), "align: output_dir: 3 is not a path"),
    "a report of nothing": (lambda: pt.report(None), "report: run_dir: None is not a path"),
    "a recipe that is a number": (lambda: pt.run(3), "run: recipe: 3 is not a file"),
    "an unknown stage": (lambda: pt.run("demo", until="sft"), "until: 'sft' is not one of judge, align"),
    "an unknown precision": (lambda: pt.load_policy("m", dtype="f16"), "dtype: 'f16' is not one of"),
    "an adapter that is a number": (lambda: aligned(lora=8), "lora: 8 is not a LoraSpec"),
    "a callback that is none": (lambda: aligned(on_step=3), "on_step: 3 is not a function"),
    "a sampler that is none": (lambda: evaluated(sampler=3), "sampler: 3 is not a function"),
    "objectives as one text": (
        lambda: pt.scorers.python_scorer(brief, objectives="ab"), "objectives: 'ab' is not a list of names"),
    "objectives as one text, fitted": (lambda: fitted(objectives="ab"), "objectives: 'ab' is not a list"),
    "arguments as text": (lambda: pt.scorers.python_scorer(brief, arguments="ab"), "arguments: 'ab' is not"),
    "a function that is a number": (lambda: pt.scorers.python_scorer(3), "function: 3 is not a function"),
    "outputs as a list": (lambda: pt.scorers.reward_model("m", outputs=["a"]), "outputs: .'a'. is not a map"),
    "a label that is a list": (lambda: pt.scorers.classifier("m", label=["a"]), "label: .'a'. is not the"),
    "labels as text": (lambda: fitted(labels="a"), "labels: 'a' is not a mapping"),
    "a margin for all": (lambda: evaluated(non_inferiority_margin=0.1), "non_inferiority_margin: 0.1 is not"),
    "a negative margin": (lambda: evaluated(non_inferiority_margin={"brief": -1}), "numbers of at least 0"),
    "an algorithm's name": (lambda: aligned(algorithm="grpo"), "algorithm: 'grpo' is not the result of"),
    "an algorithm not called": (lambda: aligned(algorithm=pt.algorithms.grpo), "algorithm: <function.* is"),
    "overrides as one text": (
        lambda: pt.load_recipe("demo", "run.seed=1"), "overrides: 'run.seed=1' is neither a mapping nor"),
    "overrides as a number": (lambda: pt.load_recipe("demo", 3), "overrides: 3 is neither"),
    "overrides of numbers": (lambda: pt.check("demo", [3]), "overrides: .3. is neither"),
    "an override of an object": (
        lambda: pt.load_recipe("demo", {"run.seed": object()}), "overrides: run.seed: .*cannot be written"),
    "overrides of a loaded recipe": (
        lambda: pt.check(pt.load_recipe("demo"), ["run.seed=1"]), "overrides: have no effect"),
    "ragged points": (lambda: pt.pareto_front([[1, 2], [3]]), "points: .*no table of numbers"),
    "points that are texts": (lambda: pt.pareto_front([["a", "b"]]), "points: .*no table of numbers"),
    "points that are mappings": (lambda: pt.pareto_front([{"a": 1}]), "points: .*no table of numbers"),
    "points that are NaN": (
        lambda: pt.pareto_front([[1, 2], [0, float("nan")]]), "objective 2 of point 2 is NaN; fix: leave"),
    "points that are infinite": (lambda: pt.pareto_front([[-float("inf")]]), "point 1 is -inf"),
    "a flat list of points": (lambda: pt.pareto_front([1, 2]), "got shape .2,.; fix: one list of numbers"),
    "a label beyond float32": (
        lambda: fitted([*RATED, {**RATED[0], "scores": {"polite": 1e210}}]),
        "rows:1: scores.polite: 1e.210 is too large for training in float32 .up to 1e.18.; fix: write a"),
    "a label whose square is beyond float32": (
        lambda: fitted([{**RATED[0], "scores": {"polite": -1e38}}]), "scores.polite: -1e.38 is too large"),
    "a label of its own column beyond float32": (
        lambda: fitted([{**RATED[0], "kind": 2e18}], labels={"k": "kind"}), "kind: 2e.18 is too large"),
    "objectives that are named twice": (
        lambda: pt.scorers.python_scorer(brief, objectives=["l", "m", "l"]),
        "objectives: .* is not allowed: l is named twice; fix: name each objective once"),
    "a rubric that is a mapping": (
        lambda: pt.scorers.llm_judge("http://127.0.0.1:1/v1", "m", {"criteria": {}}),
        "rubric: a dict is not the name of a YAML file; fix: write the criteria into a file"),
    "a rubric that is a list": (
        lambda: pt.scorers.llm_judge("http://127.0.0.1:1/v1", "m", ["a"]), "rubric: a list is not the name"),
    "a rule as judge": (
        lambda: pt.rate(pt.scorers.rule("length", max=60), RATED),
        "^.[a-z]*., a rule scorer, is no LLM judge; fix: pass paretune.scorers.llm_judge"),
    "a function as judge": (lambda: pt.rate(brief, RATED), "^a function is no LLM judge"),
    "neither ratings nor pairs": (lambda: fitted(None), "neither ratings nor pairs"),
    "labels of pairs": (lambda: fitted(None, pairs=[PAIR], labels={"a": "b"}), "labels: pairs have none"),
    "one pair": (lambda: fitted(None, pairs=PAIR), "pairs: are one row"),
    "pairs without objective": (lambda: fitted(None, pairs=[PAIR]), "pairs:0: objective: no name"),
    "equal sides": (lambda: fitted(None, pairs={"a": [{**PAIR, "chosen": "c"}]}), "pairs:0: chosen: equal"),
    "no pairs": (lambda: fitted(None, pairs={"a": []}), "there are no pairs"),
    "a misspelled argument": (
        lambda: pt.sample("m", ["a"], max_tokens=3), 'max_tokens: unknown .* mean "max_new_tokens"'),
    "a misspelled argument of an algorithm": (
        lambda: pt.algorithms.grpo({"a": 1.0}, num_generation=4),
        'paretune.algorithms.grpo: num_generation: unknown argument; did you mean "num_generations"'),
    "TRL's name": (
        lambda: pt.algorithms.grpo({"a": 1.0}, beta=0.04), "beta: unknown .* TRL's name; here: kl_coef"),
    "TRL's name in an algorithm that has another": (
        lambda: pt.algorithms.dpo({"a": 1.0}, kl_coef=0.1), "dpo: kl_coef: unknown argument; fix: "),
    "TRL's name for a step": (
        lambda: aligned(per_device_train_batch_size=4), "this is TRL's name; here: prompts_per_step"),
    "an argument of the algorithm": (
        lambda: aligned(num_generations=4), "it is one of the algorithm: algorithm=.*num_generations=...."),
    "a text as number of an algorithm": (
        lambda: pt.algorithms.grpo({"a": 1.0}, num_generations="4"), "grpo: num_generations: '4' is not a"),
    "a number out of range of an algorithm": (
        lambda: pt.algorithms.grpo({"a": 1.0}, clip_range=2), "clip_range: 2 must be .* fix: clip_range=0.2"),
    "an unknown choice of an algorithm": (
        lambda: pt.algorithms.gdpo({"a": 1.0}, variant="nvlab"), 'variant: "nvlab" is none .* mean "nvlabs"'),
    "weights as a list": (lambda: pt.algorithms.ppo(["a"]), "ppo: weights: .'a'. is not a mapping of obj"),
    "no weights": (pt.algorithms.grpo, "grpo: weights: is missing; fix: weights={.polite.: 1.0}"),
    "an argument by position": (lambda: pt.algorithms.grpo({"a": 1.0}, 4), "takes 1 by position .weights."),
    "a missing argument": (pt.pareto_front, "paretune.pareto_front: points: is missing; fix: po"),
    "an argument twice": (lambda: pt.load_policy("m", path="m"), "load_policy: path: is given twice"),
    "a misspelled argument of a scorer": (
        lambda: pt.scorers.classifier("m", lable="a"), 'paretune.scorers.classifier: lable: .* "label"'),
    "an unknown verdict rule": (lambda: evaluated(verdict="both"), "verdict: 'both' is none of all"),
    "a margin of another objective": (
        lambda: evaluated(non_inferiority_margin={"polite": 1}), 'nothing scores "polite"'),
    "a goal of another objective": (
        lambda: evaluated(goals={"polite": "lower"}), 'goals: nothing scores "polite"; fix: the objectives'),
    "a word that is no goal": (lambda: evaluated(goals={"brief": "down"}), "goals: .* is not a mapping of"),
    "a weight below 0": (
        lambda: aligned(algorithm=pt.algorithms.grpo({"brief": -1.0})),
        'the weight of brief is below 0.*goals=.*"lower"'),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_argument_is_one_line_with_a_fix(name, monkeypatch):
    from paretune.models.load import as_policy_model
    from support.tiny_models import tiny_model, tiny_tokenizer

    def load(path, **_):
        tokenizer = tiny_tokenizer()
        return as_policy_model(
            tiny_model("llama", len(tokenizer), seed=0, width=16, layers=1, heads=2), tokenizer
        )

    if "verdict" in name or "another objective" in name:
        monkeypatch.setattr("paretune.api.policies.load_policy", load)
    call, message = REFUSED[name]
    with pytest.raises(pt.ParetuneError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert "; fix: " in str(caught.value)


@dataclass
class Part:
    weights: object


@dataclass
class Spec:
    parts: tuple


@pytest.mark.parametrize("weights", ["ab", ["brief"], {"brief": "x"}, {"brief": float("nan")}])
def test_weights_are_numbers_by_objective(weights):
    with pytest.raises(ConfigError, match=r"the weights .* are no numbers by objective; fix"):
        check_weights("mine", Spec((Part(weights),)))
    check_weights("mine", Spec((Part({"brief": 1, "polite": 0.5}),)))


def test_defaults_and_none_are_accepted():
    @check_arguments
    def call(path, *, device="auto", learning_rate=None, outputs=None):
        """Docstring."""
        return path, device, learning_rate, outputs

    assert call("m") == ("m", "auto", None, None)
    assert call("m", device="cuda:1", learning_rate=None, outputs={}) == ("m", "cuda:1", None, {})
    assert list(inspect.signature(call).parameters) == ["path", "device", "learning_rate", "outputs"]
    assert call.__doc__ == "Docstring."
    with pytest.raises(
        ConfigError, match=r'call: devise: unknown argument; did you mean "device"\?; fix: one'
    ):
        call("m", devise="cpu")


def test_defaults_of_public_functions_fit_their_rules():
    for name in ("align", "evaluate", "export", "fit_reward_model", "load_policy", "rate", "run", "sample"):
        function = getattr(__import__(f"paretune.{pt._EXPORTS[name]}", fromlist=[name]), name)
        for parameter in inspect.signature(function).parameters.values():
            default, rule = parameter.default, RULES.get(parameter.name)
            if rule is not None and default is not parameter.empty and default not in (None, ()):
                assert rule.accepts(default), (name, parameter.name)
