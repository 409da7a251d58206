"""Evaluations during a training: held-out prompts, interruptions, usage, the kept step, and an early end."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest

from paretune.config import bundled_recipes, load_config
from paretune.core.errors import ConfigError, DataError
from paretune.data.records import Demonstration, Message, Prompt, ResponseGroup
from paretune.evaluate.evaluate import evaluate
from paretune.evaluate.generate import estimate_kl
from paretune.evaluate.judging import Judge
from paretune.experiment import step_evaluation
from paretune.experiment.console import PlainConsole
from paretune.experiment.context import RunContext
from paretune.experiment.dataset import Dataset
from paretune.experiment.evaluate import EvaluationJudges
from paretune.experiment.evaluation_checks import describe_step_evaluations, evaluation_notes
from paretune.experiment.output_folder import training_hash
from paretune.experiment.provenance import evaluation_hashes
from paretune.experiment.request_estimates import request_estimates
from paretune.experiment.resolved import resolve
from paretune.experiment.step_evaluation import StepEvaluations, step_evaluations
from paretune.experiment.validation_prompts import hold_out_validation_prompts
from paretune.models.load import PolicyModel
from paretune.rl.state import Budget
from paretune.rollout.sampler import LocalSampler
from paretune.run.compat import check_evaluation
from paretune.run.folder import Run
from paretune.run.io import read_json, read_jsonl
from paretune.training.guards import StopRequest
from support.toy import OBJECTIVES, PAD, STOP, ToyScorer, toy_prompts, toy_tokenizer
from toy import Cut, stop_after, toy_world, trained

EVERY_TWO = ("evaluate.eval_steps=2", "evaluate.eval_prompts=8")


def recipe(*more):
    return load_config(bundled_recipes()["demo"], ["run.max_steps=12", *more])


def prompts(number, category="", start=0):
    texts = [f"question {i}" for i in range(start, start + number)]
    return tuple(Prompt(messages=(Message("user", text),), category=category) for text in texts)


def held_out(pools, *more, **records):
    run = resolve(recipe(*more))
    return hold_out_validation_prompts(run, Dataset(train_prompts=pools, test_prompts=(), **records))


def test_held_out_prompts_are_in_no_data_of_the_alignment():
    pools = {"a": prompts(40, "easy"), "b": prompts(20, "hard", start=30)}  # ten are in both
    group, shown = [], []
    for prompt in pools["a"]:
        group.append(ResponseGroup(prompt=prompt, responses=("x", "y"), labels=({}, {})))
        shown.append(Demonstration(prompt=prompt, response="x"))
    dataset, issues = held_out(
        pools, *EVERY_TWO, stored_responses=tuple(group), auxiliary_demonstrations=tuple(shown)
    )
    assert issues == []
    kept = {p.messages for p in dataset.validation_prompts}
    assert len(kept) == 8
    assert {p.category for p in dataset.validation_prompts} == {"easy", "hard"}
    for pool in (
        *dataset.train_prompts.values(),
        [g.prompt for g in dataset.stored_responses],
        [d.prompt for d in dataset.auxiliary_demonstrations],
    ):
        assert pool
        assert not kept & {p.messages for p in pool}
    assert "held out for the evaluations during the training" in dataset.exclusions[-1]
    assert dataset.manifest()["validation_prompts"] == 8


def test_held_out_prompts_depend_on_the_seed_alone():
    pools = {"a": prompts(40)}
    one, same, other = (held_out(pools, *EVERY_TWO, f"run.seed={s}")[0].validation_prompts for s in (0, 0, 1))
    assert one == same != other
    without = held_out(pools)[0]
    assert (without.validation_prompts, without.train_prompts, without.exclusions) == ((), pools, ())


@pytest.mark.parametrize(
    ("pools", "more", "message"),
    [
        ({"a": prompts(8)}, (), "eval_prompts: 8 cannot be held out of 8 different training prompts"),
        ({"a": prompts(9), "b": prompts(1)}, (), ""),
        (
            {"a": prompts(9)},
            ("algorithm.name=essa",),
            "eval_steps: is not supported by methods without gradients",
        ),
    ],
)
def test_prompts_that_cannot_be_held_out(pools, more, message):
    drop = ("algorithm={name: essa}",) if more else ()
    issues = held_out(pools, *EVERY_TWO, *drop)[1]
    assert (message in issues[0]) if message else issues == []


@pytest.mark.parametrize(
    ("more", "key", "problem"),
    [
        (("evaluate.eval_prompts=9",), "eval_prompts", "has no effect without evaluate.eval_steps"),
        (("evaluate.select_checkpoint=dominance",), "select_checkpoint", "has no effect without"),
        (("evaluate.early_stopping_patience=1",), "early_stopping_patience", "has no effect without"),
        (("evaluate.eval_steps=12",), "eval_steps", "only its end is evaluated"),
        (
            ("evaluate.eval_steps=4", "evaluate.early_stopping_patience=3"),
            "early_stopping_patience",
            "never end early",
        ),
        (
            ("evaluate.eval_steps=4", "evaluate.early_stopping_patience=1", "judge=null"),
            "early_stopping_patience",
            "without a judge",
        ),
    ],
)
def test_settings_without_effect_are_errors(more, key, problem):
    with pytest.raises(ConfigError, match=rf"evaluate\.{key}: .*{problem}"):
        recipe(*more)


def test_the_settings_are_a_part_of_the_identity_of_the_training():
    plain, steps = recipe(), recipe(*EVERY_TWO)
    kept = recipe(*EVERY_TWO, "evaluate.select_checkpoint=lower_bound")
    assert len({training_hash(each) for each in (plain, steps, kept)}) == 3
    manifest = {"records": {}, "models": {}, "scorer_files": {}, "file_sha256": {}}
    assert evaluation_hashes(plain, manifest) == evaluation_hashes(kept, manifest)


def test_another_judge_cannot_replace_one_that_chose_among_the_steps(tmp_path):
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "resolved.yaml").write_text("evaluate: {seed: 1}\n")
    (tmp_path / "eval" / "step-000002").mkdir(parents=True)
    (tmp_path / "eval" / "step-000002" / "eval.json").write_text("{}")
    with pytest.raises(
        ConfigError, match=r"evaluated during its training .*fix: restore the settings, or write"
    ):
        check_evaluation(tmp_path, "evaluate: {seed: 2}\n")


def test_check_tells_number_cost_and_disk_of_the_evaluations(tmp_path):
    dataset = Dataset(train_prompts={"a": prompts(9)}, test_prompts=prompts(4), validation_prompts=prompts(8))
    config = recipe(*EVERY_TWO, "evaluate.select_checkpoint=dominance", "evaluate.early_stopping_patience=2")
    lines = list(describe_step_evaluations(config, dataset))
    assert lines[0].startswith("6 more during the training, every 2 steps and at its end, on 8 prompts")
    assert "on disk until then: 6 x the policy's weights (0.0" in lines[1]
    assert "the judge falls in 2 evaluations in a row" in lines[2]
    notes = " ".join(evaluation_notes(config, dataset))
    assert "only 8 prompts for the evaluations during the training" in notes


def test_requests_of_a_judge_are_counted_for_every_evaluation(tmp_path):
    (tmp_path / "rubric.yaml").write_text("criteria: {safety: {text: Safe, levels: {no: 0, yes: 1}}}\n")
    endpoint = f"base_url: http://127.0.0.1:9/v1, model: m, rubric: {tmp_path / 'rubric.yaml'}"
    judge = f"judges={{nice: {{type: llm_judge, {endpoint}}}}}"
    dataset = Dataset(train_prompts={"a": prompts(9)}, test_prompts=prompts(4), validation_prompts=prompts(8))
    plain, steps = (request_estimates(resolve(recipe(judge, *more)), dataset) for more in ((), EVERY_TWO))
    assert plain[0].in_evaluation == 2 * 4 * 2
    assert steps[0].in_evaluation == (2 * 4 + 7 * 8) * 2


class Judged(ToyScorer):
    """The toy's scores, of which the judge's fall once the training reward is high."""

    def __init__(self, sign=1.0):
        self.sign = sign

    def __call__(self, samples):
        return self.sign * super().__call__(samples)


class ToyContext(RunContext):
    """A run whose recipe has the toy's objectives."""

    section = None

    @property
    def config(self):
        return SimpleNamespace(
            evaluate=self.section,
            goals={},
            final_weights=dict.fromkeys(OBJECTIVES, 1.0),
            run=SimpleNamespace(max_steps=6),
            algorithm=SimpleNamespace(arguments={"max_new_tokens": 4}),
        )


RESOLVED = resolve(recipe(*EVERY_TWO))


@dataclass
class Toy:
    """The run context of the toy task, as far as evaluations during the training use it."""

    folder: object
    section: object
    sign: float = 1.0
    calls: list = field(default_factory=list)

    def evaluator(self, world, *, cut_at=None):
        prompts = tuple(toy_prompts(9, 24))
        dataset = Dataset(train_prompts={}, test_prompts=(), validation_prompts=prompts)
        ctx = ToyContext(
            resolved=RESOLVED,
            run=Run(self.folder),
            console=PlainConsole(),
            dataset=dataset,
            stop=StopRequest(),
        )
        ctx.section = self.section
        policy = PolicyModel(
            model=world.models.policy, tokenizer=toy_tokenizer(), eos_ids=(STOP,), pad_id=PAD
        )
        evaluator = StepEvaluations(ctx, policy, world.models.frozen["reference"])
        reference = replace(policy, model=world.models.frozen["reference"])
        evaluator.__dict__["_samplers"] = tuple(
            LocalSampler(each, OBJECTIVES) for each in (reference, policy)
        )
        judge = Judge(name="judge", scorer=Judged(self.sign))
        reward = Judge(name="reward", scorer=ToyScorer())
        evaluator.__dict__["_judges"] = EvaluationJudges((judge,), (reward,))

        def compare(ctx, before, after, model, scored_by):
            self.calls.append(len(self.calls))
            if cut_at == len(self.calls):
                raise Cut
            return evaluate(
                before,
                after,
                scored_by.judges,
                objectives=OBJECTIVES,
                reward_judges=scored_by.reward_judges,
                kl=estimate_kl(after, model),
                bootstrap_samples=200,
            )

        return evaluator, compare


def section(rule="lower_bound", patience=None, **more):
    plain = recipe(*EVERY_TWO).evaluate
    return plain.model_copy(
        update={
            "select_checkpoint": rule,
            "early_stopping_patience": patience,
            "bootstrap_samples": 200,
            "num_generations": 1,
            **more,
        }
    )


def run_toy(monkeypatch, toy, *, cut_at=None, finish=True, **more):
    """Train six steps: the digest of the weights that are kept, and the bytes of metrics.jsonl."""
    world = toy_world(lr=3e-2)
    evaluator, compare = toy.evaluator(world, cut_at=cut_at)
    monkeypatch.setattr(step_evaluation, "compare_arms", compare)
    weights, metrics = trained(toy.folder, world, steps=6, evaluator=evaluator, **more)
    if finish:
        evaluator.finish(int(read_json(toy.folder / "run.json")["step"]))
    return weights, metrics, world


def test_every_evaluation_is_saved_logged_and_counted_and_the_best_step_is_kept(tmp_path, monkeypatch):
    toy = Toy(tmp_path, section(patience=1))  # the judge agrees with the reward, so the training does not end
    run_toy(monkeypatch, toy)
    assert len(toy.calls) == 3
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if "eval/gain" in line] == [1, 3, 5]
    keys = {
        f"eval/{name}/{key}" for name in OBJECTIVES for key in ("mean", "change", "low", "high", "reward")
    }
    assert keys | {"eval/gain/low", "eval/gain/reward", "eval/kl"} <= lines[1].keys()
    results = read_json(tmp_path / "eval" / "step-000004" / "eval.json")
    assert (results["schema"], results["step"], results["num_prompts"]) == ("paretune/eval/3", 4, 24)
    assert lines[3]["eval/even/mean"] == results["objectives"]["even"]["after"]
    timing = read_jsonl(tmp_path / "timing.jsonl")
    assert ["evaluate" in line for line in timing] == [False, True] * 3
    calls = [line["reward_calls"] for line in timing]
    per_evaluation = 24
    assert calls[1] - calls[0] == 2 * per_evaluation  # the initial policy's responses too
    assert calls[3] - calls[2] == per_evaluation
    assert timing[3]["rollout_tokens"] > timing[2]["rollout_tokens"]
    selection = read_json(tmp_path / "eval" / "selection.json")
    lows = {each["step"]: each["low"] for each in selection["evaluations"]}
    assert selection["selected_step"] == max(lows, key=lows.get)
    assert read_json(tmp_path / "run.json")["selected_step"] == selection["selected_step"]
    kept = [each.name for each in (tmp_path / "checkpoints" / "candidates").iterdir()]
    assert kept == [f"step-{selection['selected_step']:06d}"]
    assert not list((tmp_path / "checkpoints" / "evaluate-steps").glob("step-*"))


def test_the_weights_of_the_kept_step_become_the_policy(tmp_path, monkeypatch):
    """A judge for whom every step is worse than the one before keeps the first, whose weights come back."""
    toy = Toy(tmp_path / "run", section(), sign=-1.0)
    *_, world = run_toy(monkeypatch, toy)
    selection = read_json(tmp_path / "run" / "eval" / "selection.json")
    assert selection["selected_step"] == 2
    stored = toy_world(lr=3e-2)
    with pytest.raises(Cut):
        trained(tmp_path / "cut", stored, steps=6, on_step=stop_after(2))
    expected = dict(stored.models.policy.named_parameters())
    for name, weight in world.models.policy.named_parameters():
        assert np.array_equal(weight.detach().numpy(), expected[name].detach().numpy()), name
    for file in (tmp_path / "run" / "checkpoints" / "candidates").glob("*/*/weights.safetensors"):
        file.write_bytes(b"damaged")
    evaluator, _ = toy.evaluator(stored)
    with pytest.raises(DataError, match="the weights of the chosen step cannot be read"):
        evaluator.finish(6)


def test_a_run_that_is_cut_in_and_between_evaluations_ends_as_the_unbroken_one(tmp_path, monkeypatch):
    whole = run_toy(monkeypatch, Toy(tmp_path / "whole", section("dominance")))
    toy = Toy(tmp_path / "cut", section("dominance"))
    with pytest.raises(Cut):
        run_toy(monkeypatch, toy, cut_at=2)  # in the second evaluation
    with pytest.raises(Cut):
        run_toy(monkeypatch, toy, on_step=stop_after(4))  # after it, before the checkpoint
    assert read_json(tmp_path / "cut" / "run.json")["step"] == 2
    num_calls = len(toy.calls)
    broken = run_toy(monkeypatch, toy)
    assert len(toy.calls) == num_calls + 1  # the last one alone
    assert broken[:2] == whole[:2]
    for name in ("eval/selection.json", "eval/step-000004/eval.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_judge_that_falls_ends_the_training_and_a_resume_does_not_go_on(tmp_path, monkeypatch):
    toy = Toy(tmp_path, section(patience=1), sign=-1.0)
    run_toy(monkeypatch, toy, finish=False)
    state = read_json(tmp_path / "run.json")
    assert state["step"] == 4
    metrics = (tmp_path / "metrics.jsonl").read_bytes()
    run_toy(monkeypatch, toy)
    assert (tmp_path / "metrics.jsonl").read_bytes() == metrics
    selection = read_json(tmp_path / "eval" / "selection.json")
    stopping = selection["early_stopping"]
    assert (stopping["stopped_at"], stopping["max_steps"]) == (4, 6)
    assert stopping["saved_fraction"] == pytest.approx(1 / 3)
    assert read_json(tmp_path / "run.json")["stopped_early_at"] == 4
    assert [e["type"] for e in read_jsonl(tmp_path / "events.jsonl")].count("stopped_early") == 1


def test_evaluations_use_up_the_budget_and_its_last_step_is_evaluated(tmp_path, monkeypatch):
    toy = Toy(tmp_path, section("last"))
    # 48 responses a step; the first evaluation scores twice 24, each later one 24.
    run_toy(monkeypatch, toy, budget=Budget(resource="reward_calls", limit=200))
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    assert len(lines) == 3
    assert "eval/gain" in lines[-1]
    assert lines[-1]["budget/used"] == pytest.approx((3 * 48 + 2 * 24 + 24) / 200)
    assert not (tmp_path / "checkpoints" / "candidates").exists()
    assert read_json(tmp_path / "eval" / "selection.json")["last_step"] == 3


def test_divided_weights_are_refused(tmp_path):
    world, dataset = toy_world(), Dataset(train_prompts={}, test_prompts=())
    policy = PolicyModel(model=world.models.policy, tokenizer=toy_tokenizer(), eos_ids=(STOP,), pad_id=PAD)

    def evaluations(resolved, is_sharded):
        parts = {"run": Run(tmp_path), "console": PlainConsole(), "dataset": dataset, "stop": StopRequest()}
        ctx = RunContext(resolved=resolved, **parts)
        return step_evaluations(ctx, policy, world.models.frozen["reference"], is_sharded=is_sharded)

    with pytest.raises(ConfigError, match=r"eval_steps: .*fix: write training\.fsdp: no_shard"):
        evaluations(RESOLVED, True)
    assert evaluations(RESOLVED, False) is not None
    assert evaluations(resolve(recipe()), True) is None
