"""The public API on tiny models: scores, alignment, evaluation, reward models, and what it refuses."""

import json

import pyarrow as pa
import pytest
import torch

import paretune as pt
from paretune.core.errors import ConfigError, DataError, ScoringError, WiringError
from paretune.models.load import as_policy_model
from paretune.models.lora import LoraSpec
from support.tiny_classifiers import save_classifier
from support.tiny_models import tiny_model, tiny_tokenizer

ROW = {"prompt": "What is 6 x 7?", "response": "It is 42.", "answer": "42"}
EQUAL = {"brief": 1.0, "vowels": 1.0}
PROMPTS = [f"Question {i}" for i in range(8)]


def policy(seed=0):
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", len(tokenizer), seed=seed, width=16, layers=1, heads=2)
    return as_policy_model(model, tokenizer)


def correct(completions, answer, **columns):
    pairs = zip(completions, answer, strict=True)
    return [None if a is None else float(a in c[0]["content"]) for c, a in pairs]


def brief(completions, **columns):
    return [-float(len(c[0]["content"])) for c in completions]


def broken(completions, **columns):
    raise ValueError("no number")


class Vowels:
    names = ("vowels",)

    def __call__(self, samples):
        return torch.tensor([[sum(c in "aeiou" for c in s.response) / 10] for s in samples])


def small_grpo(**weights):
    return pt.algorithms.grpo(weights, num_generations=2, max_new_tokens=4)


def aligned(folder, model=None, **more):
    settings = {"scorers": [brief, Vowels()], "prompts": PROMPTS, "max_steps": 2, "prompts_per_step": 2}
    settings["algorithm"] = small_grpo(brief=1.0, vowels=1.0)
    return pt.align(model or policy(), output_dir=folder, **(settings | more))


@pytest.mark.parametrize(
    "rows",
    [
        [ROW],
        pa.Table.from_pylist([ROW]),
        [{**ROW, "response": [{"role": "assistant", "content": "It is 42."}]}],
        [{"completion": "It is 42.", "prompt": [{"role": "user", "content": "6 x 7?"}], "answer": "42"}],
        [
            {
                "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "It is 42."}],
                "answer": "42",
            }
        ],
    ],
)
def test_scores_of_rows_in_memory(rows):
    table = pt.score([correct, brief, Vowels(), pt.scorers.rule("length", max=2)], rows)
    assert table.column_names == ["correct", "brief", "vowels", "length"]
    (row,) = table.to_pylist()
    assert row == pytest.approx({"correct": 1.0, "brief": -9.0, "vowels": 0.1, "length": 0.5})


def test_scores_of_a_file_are_those_of_its_rows(tmp_path):
    rows = [ROW, {**ROW, "answer": None}, {**ROW, "response": "No."}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert pt.score(correct, file) == pt.score(correct, rows)
    assert pt.score(correct, str(file))["correct"].to_pylist() == [1.0, None, 0.0]


def test_a_mapping_names_functions():
    assert pt.score({"short": lambda completions, **_: [1.0] * len(completions)}, [ROW]).column_names == [
        "short"
    ]


def test_function_that_raises_stops_and_never_scores_0():
    with pytest.raises(ScoringError, match=r"broken did not score 1 of 1 .*no number"):
        pt.score(broken, [ROW])  # all of them failed, however few
    with pytest.raises(ScoringError, match=r"broken did not score 8 of 8 .*no number"):
        pt.score(broken, [ROW] * 8)
    lenient = pt.scorers.python_scorer(broken, max_failure_rate=1.0)
    assert pt.score([lenient, brief], [ROW] * 8)["broken"].null_count == 8


def test_classifier_and_reward_model_by_their_settings(tmp_path):
    path = save_classifier(tmp_path / "c", "llama", ("helpful", "polite"), problem_type="regression")
    chosen = pt.scorers.classifier(path, label="polite", output="logit", reads="conversation")
    both = pt.scorers.reward_model(path, outputs={"first": "helpful", "second": 1})
    table = pt.score([chosen, both], [ROW])
    assert table.column_names == ["polite", "first", "second"]
    loaded = pt.load_reward_model(path)
    assert loaded.names == ("helpful", "polite")
    assert loaded.score([ROW]).to_pylist()[0]["helpful"] == pytest.approx(table["first"][0].as_py())


STORED = pt.algorithms.dpo(EQUAL, response_source="stored")
REFUSED = {
    "one string as prompts": (
        lambda folder: pt.sample(policy(), "hello"), DataError, "prompts are one string.*fix: pass a list"),
    "no prompts": (lambda folder: pt.sample(policy(), []), DataError, "there are no prompts"),
    "a number as prompts": (lambda folder: pt.sample(policy(), 3), DataError, "prompts are one int; fix"),
    "a prompt that is a number": (
        lambda folder: pt.sample(policy(), ["hello", 3]), DataError, "prompts:1: prompt"),
    "an empty prompt": (
        lambda folder: pt.sample(policy(), ["hello", " "]), DataError, "prompts:1: prompt: empty"),
    "a row without prompt": (
        lambda folder: pt.sample(policy(), [{"question": "hi"}]), DataError,
        "prompts:0: prompt: no such column.*rename"),
    "no rows": (lambda folder: pt.score(brief, []), DataError, "rows: there are no rows"),
    "a row without response": (
        lambda folder: pt.score(brief, [{"prompt": "hi"}]), DataError,
        "rows:0: response: no such column.*rename"),
    "a row that is text": (lambda folder: pt.score(brief, ["hi"]), DataError, "rows:0: a str, not a row"),
    "one row": (lambda folder: pt.score(brief, ROW), DataError, "rows are one dict; fix: pass a list"),
    "an empty file": (
        lambda folder: pt.score(brief, written(folder, "")), DataError, "rows.jsonl: there are no rows"),
    "a file without responses": (
        lambda folder: pt.score(brief, written(folder, '{"prompt": "hi"}\n')), DataError,
        "rows.jsonl:1: response"),
    "no such file": (lambda folder: pt.score(brief, folder / "x.jsonl"), DataError, "no such file"),
    "no scorers": (lambda folder: pt.score([], [ROW]), WiringError, "scorers is empty; fix"),
    "a scorer that is a path": (
        lambda folder: pt.score(["models/reward"], [ROW]), WiringError, "is no scorer, but a str; fix"),
    "two scorers of one objective": (
        lambda folder: pt.score([brief, brief], [ROW]), WiringError,
        '"brief" is scored by brief and by'),
    "a lambda": (lambda folder: pt.score(lambda completions: [1], [ROW]), ConfigError, "has no name; fix"),
    "a function of something else": (
        lambda folder: pt.score(round, [ROW]), ConfigError, "scorer round"),
    "a column that is not there": (
        lambda folder: pt.score(correct, [{"prompt": "a", "response": "b"}]), ConfigError,
        "scorer correct: the function needs answer"),
    "no such model": (
        lambda folder: pt.load_reward_model(folder / "x"), DataError, "no such folder; fix"),
    "no such policy": (lambda folder: pt.load_policy(str(folder / "x")), DataError, "no such folder; fix"),
    "no such classifier": (
        lambda folder: pt.score(pt.scorers.classifier(folder / "x", label="a"), [ROW]), ConfigError,
        "scorer a: path: .*no such folder"),
    "an unknown setting": (
        lambda folder: pt.scorers.rule("length", maximum=3), ConfigError,
        "scorer length: maximum: unknown key"),
    "an unknown rule": (
        lambda folder: pt.scorers.rule("size"), ConfigError, 'scorer size: rule: "size" is none of'),
    "a wrong value": (
        lambda folder: pt.scorers.classifier("x", label="a", output="prob"), ConfigError,
        'output: "prob" is none of'),
    "an unknown recipe": (lambda folder: pt.load_recipe("dmeo"), ConfigError, "dmeo"),
    "a wrong override": (lambda folder: pt.load_recipe("demo", {"run.stpes": 1}), ConfigError, "run.stpes"),
    "no judge": (
        lambda folder: pt.evaluate(policy(), policy(), judges=[], prompts=PROMPTS), WiringError,
        "judges is empty"),
    "stored responses": (
        lambda folder: aligned(folder / "r", algorithm=STORED), WiringError,
        "needs stored data; fix: write a recipe"),
    "no gradient": (
        lambda folder: aligned(folder / "r", algorithm=pt.algorithms.essa(EQUAL)), WiringError,
        "cannot be used without a recipe"),
    "a prompt that leaves no room": (
        lambda folder: aligned(folder / "r", prompts=[*PROMPTS, "x" * 300]), DataError, "too long"),
    "an unknown loss": (
        lambda folder: pt.fit_reward_model(rated(), init_from=policy(), objectives={"polite": "l2"}),
        ConfigError, "objectives.polite: 'l2' is none of"),
    "unrated rows": (
        lambda folder: pt.fit_reward_model([ROW], init_from=policy()), DataError,
        "rows:0: scores: no object"),
    "a label that is text": (
        lambda folder: pt.fit_reward_model([{**ROW, "scores": {"polite": "very"}}], init_from=policy()),
        DataError, "rows:0: scores.polite: .*not a number"),
    "no run": (pt.export, ConfigError, "holds no run; fix"),
}  # fmt: skip


def written(folder, text):
    file = folder / "rows.jsonl"
    file.write_text(text)
    return file


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_with_a_fix(name, tmp_path):
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message) as caught:
        call(tmp_path)
    assert isinstance(caught.value, pt.ParetuneError)
    assert "Traceback" not in str(caught.value)
    assert not list(tmp_path.glob("r*/*"))


def test_alignment_resumes_and_refuses_another_run(tmp_path):
    def stop(step, *_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        aligned(tmp_path / "a", save_steps=1, on_step=stop)
    resumed, whole = aligned(tmp_path / "a", save_steps=1), aligned(tmp_path / "b", save_steps=1)
    for first, second in zip(resumed.policy.model.parameters(), whole.policy.model.parameters(), strict=True):
        assert torch.equal(first, second)
    assert (tmp_path / "a" / "final" / "config.json").exists()
    changed = zip(whole.policy.model.parameters(), whole.initial_policy.model.parameters(), strict=True)
    assert any(not torch.equal(after, before) for after, before in changed)
    with pytest.raises(ConfigError, match="another"):
        aligned(tmp_path / "a", prompts=PROMPTS[:4])
    assert pt.report(tmp_path / "a").exists()
    assert len(pt.sample(tmp_path / "a", PROMPTS[:2], num_generations=3, max_new_tokens=3)[1]) == 3


def test_adapter_and_critic_are_trained(tmp_path):
    model = policy()
    before = [parameter.clone() for parameter in model.model.parameters()]
    algorithm = pt.algorithms.ppo(EQUAL, num_generations=1, max_new_tokens=4, critic_init_from="policy")
    result = aligned(tmp_path / "a", model, algorithm=algorithm, lora=LoraSpec(r=2, alpha=4), max_steps=1)
    assert (tmp_path / "a" / "final" / "adapter" / "adapter_config.json").exists()
    base = [p for n, p in result.policy.model.named_parameters() if "lora" not in n]
    assert all(torch.equal(a, b) for a, b in zip(before, base, strict=True))


def test_evaluation_knows_which_judges_are_independent():
    judges = [brief, pt.Judge(name="the linguists", scorer=Vowels(), weights_hash="v1")]
    result = pt.evaluate(
        policy(0), policy(1), judges=judges, rewards=[brief], prompts=PROMPTS, max_new_tokens=4,
        bootstrap_samples=100,
    )  # fmt: skip
    rows = result.results["objectives"]
    assert [rows[name]["independent"] for name in ("brief", "vowels")] == [False, True]
    assert rows["vowels"]["judge"] == "the linguists"
    assert "the linguists" in str(result)


def test_several_judges_of_an_objective_agree_or_not(tmp_path):
    judges = {
        "strict": pt.scorers.rule("length", target=1, unit="characters", objective="short"),
        "mild": pt.scorers.rule("length", max=4, unit="characters", objective="short"),
    }
    result = pt.evaluate(
        policy(0), policy(1), judges=judges, prompts=PROMPTS, max_new_tokens=4, bootstrap_samples=100
    )
    assert set(result.results["judges"]) == {"strict", "mild"}
    result.save(tmp_path / "e")
    assert (tmp_path / "e" / "eval.json").exists()


def test_alignment_shows_its_progress_as_a_run_does(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("paretune.experiment.console.PROGRESS_INTERVAL", 0.0)
    aligned(tmp_path / "a", max_steps=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[:2]] == [["[1/1]", "align", f"{i}/2"] for i in (1, 2)]
    assert "brief -" in lines[0]
    assert "grpo, 2 steps; training reward: brief" in lines[2]
    assert len(lines) == 3


def test_reward_model_is_fitted_to_pairs():
    pairs = [{"prompt": f"q{i}", "chosen": "yes " * (1 + i % 3), "rejected": "no"} for i in range(20)]
    settings = {"init_from": policy(), "holdout_fraction": 0.3, "learning_rate": 1e-2}
    model = pt.fit_reward_model(pairs={"polite": pairs}, **settings)
    assert model.names == ("polite",)
    assert model.report["objectives"]["polite"]["num_pairs"] == 6
    better, worse = model.score([{"prompt": "q", "response": each} for each in ("yes yes", "no")])["polite"]
    assert better.as_py() > worse.as_py()
    rows = [{**pair, "objective": "kind"} for pair in pairs]
    mixed = pt.fit_reward_model(rated(12), pairs=rows, num_train_epochs=1, **settings)
    assert mixed.names[-1] == "kind"


def rated(count=40):
    return [
        {"prompt": f"Question {i}", "response": "yes" * (i % 4 + 1), "scores": {"long": i % 4, "odd": i % 2}}
        for i in range(count)
    ]


def test_reward_model_is_fitted_tested_and_loaded(tmp_path):
    fitted = pt.fit_reward_model(
        rated(),
        init_from=policy(),
        objectives={"long": "mse", "odd": "ordinal"},
        batch_size=16,
        holdout_fraction=0.3,
    )
    assert fitted.names == ("long", "odd")
    assert fitted.report["objectives"]["long"]["num_ratings"] > 0
    scores = fitted.score(rated(4))
    fitted.save(tmp_path / "m")
    loaded = pt.load_reward_model(tmp_path / "m").score(rated(4))
    for name in fitted.names:
        assert loaded[name].to_pylist() == pytest.approx(scores[name].to_pylist(), abs=1e-4)
    result = aligned(tmp_path / "a", scorers=fitted, algorithm=small_grpo(long=1.0, odd=1.0), max_steps=1)
    evaluation = pt.evaluate(
        result.initial_policy, result.policy, judges=pt.load_reward_model(tmp_path / "m"), rewards=fitted,
        prompts=PROMPTS, max_new_tokens=4, bootstrap_samples=100,
    )  # fmt: skip
    assert not evaluation.results["objectives"]["long"]["independent"]


def test_recipes_from_python():
    recipe = pt.load_recipe("demo", {"run.seed": 3, "run.max_steps": 2})
    assert (recipe.run.seed, recipe.run.max_steps) == (3, 2)
    with pytest.raises(ConfigError, match="overrides: have no effect"):
        pt.check(recipe, {"run.seed": 1})


def test_pareto_front():
    assert pt.pareto_front([[1, 2], [2, 1], [0, 0]]).tolist() == [True, True, False]


def test_a_scorer_is_never_an_independent_judge_of_itself():
    from paretune.evaluate.judging import Judge
    from paretune.experiment.scorers import identity_of
    from paretune.reward.failures import GuardedScorer

    class Own:
        names = ("a",)

    own = Own()
    assert identity_of(own) == ("", None), "of an object of one's own nothing is known"
    judge, reward = (Judge(name=name, scorer=GuardedScorer(name, own)) for name in ("judge", "reward"))
    assert judge.overlaps_with(reward)
