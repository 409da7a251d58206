"""The stages of a run: signals between them, resuming, and which weights are evaluated."""

import os
import signal
from dataclasses import replace

import pytest
import torch
from tiny import SMALL

from paretune.config import bundled_recipes, load_config
from paretune.core.errors import ConfigError, ResourceError, RunInterrupted
from paretune.data.records import Message, Prompt
from paretune.experiment import align, evaluate, phases, pipeline
from paretune.experiment import dry_run as checking
from paretune.experiment.console import PlainConsole
from paretune.experiment.data import Dataset
from paretune.experiment.resolved import resolve
from paretune.models.forward.logprobs import compute_logprobs
from paretune.models.load import as_policy_model, load_policy
from paretune.reward.checkpoint import load_reward_model, provenance_hashes
from paretune.reward.evaluation import reward_report
from paretune.run.folder import read_json, read_jsonl, to_json
from support.tiny_models import tiny_model, tiny_tokenizer
from tinyrows import batch_of, rows


def recipe(folder, *more):
    return load_config(bundled_recipes()["demo"], [f"run.output_dir={folder}", *SMALL, *more])


def run(folder, *more):
    return pipeline.run_pipeline(recipe(folder, *more), PlainConsole())


def stages(monkeypatch, *bodies):
    """A run of these stages alone, on a few prompts."""
    prompts = tuple(Prompt(messages=(Message("user", f"question {i}"),)) for i in range(3))
    material = Dataset(train_prompts={"ordinary": prompts}, test_prompts=prompts[:1])
    monkeypatch.setattr(checking, "load_data", lambda run, on_progress: material)
    monkeypatch.setattr(
        pipeline, "pipeline_stages", lambda run, *until: [(f"s{i}", body) for i, body in enumerate(bodies)]
    )


@pytest.mark.parametrize(
    ("number", "error", "code"),
    [(signal.SIGTERM, RunInterrupted, 75), (signal.SIGINT, KeyboardInterrupt, 130)],
)
def test_a_signal_outside_a_loop_stops_the_run_after_the_stage(tmp_path, monkeypatch, number, error, code):
    def struck(ctx):
        os.kill(os.getpid(), number)
        ctx.path("struck").touch()
        return "done"

    stages(monkeypatch, struck, lambda ctx: pytest.fail("the stage after the signal was started"))
    phases = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(error) as raised:
        run(tmp_path / "r")
    assert (tmp_path / "r" / "struck").exists()
    book = read_json(tmp_path / "r" / "run.json")
    assert (book["status"], book["exit_code"]) == ("stopped", code)
    assert not (tmp_path / "r" / "LOCK").exists()
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == phases
    if error is RunInterrupted:
        assert 'after the stage "s0"' in str(raised.value)


def test_a_signal_in_the_last_stage_leaves_a_complete_run(tmp_path, monkeypatch):
    stages(monkeypatch, lambda work: os.kill(os.getpid(), signal.SIGTERM) or "done")
    run(tmp_path / "r")
    assert read_json(tmp_path / "r" / "run.json")["status"] == "done"


def test_a_signal_during_generation_stops_the_run_between_batches(tmp_path, monkeypatch):
    class NotStopped(Exception):
        pass

    def asking(sampler, prompts, *, on_progress, **how):
        os.kill(os.getpid(), signal.SIGTERM)
        on_progress(1, 2)
        raise NotStopped

    monkeypatch.setattr(evaluate, "generate", asking)
    tokenizer = tiny_tokenizer()
    language = as_policy_model(tiny_model("llama", len(tokenizer)), tokenizer)
    monkeypatch.setattr(evaluate, "load_policy", lambda spec, seed: language)
    stages(monkeypatch, evaluate.evaluate_policies)
    with pytest.raises(RunInterrupted):
        run(tmp_path / "r")


def test_a_resume_with_other_data_is_rejected(tmp_path, monkeypatch):
    stages(monkeypatch, lambda work: "done")
    run(tmp_path / "r")
    run(tmp_path / "r")
    book = (tmp_path / "r" / "run.json").read_text()
    material = checking.load_data(None, None)
    other = replace(material, train_prompts={"ordinary": material.train_prompts["ordinary"][::-1]})
    monkeypatch.setattr(checking, "load_data", lambda run, on_progress: other)
    with pytest.raises(
        ConfigError, match=r"the data changed since this run started \(records: train_prompts/"
    ):
        run(tmp_path / "r")
    assert (tmp_path / "r" / "run.json").read_text() == book


def test_stages_that_cannot_be_reused_are_rejected_before_the_records_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(checking, "load_data", lambda run, on_progress: pytest.fail("records were read"))
    e = recipe(tmp_path / "r")
    with pytest.raises(ConfigError, match="nowhere: cannot be reused: it holds no run"):
        pipeline.run_pipeline(e, PlainConsole(), reuse_from=tmp_path / "nowhere")
    assert not (tmp_path / "r").exists()


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A run with an adapter on a bfloat16 policy and a bfloat16 reward model; the policy as trained."""
    folder = tmp_path_factory.mktemp("runs") / "adapted"
    trained = {}
    with pytest.MonkeyPatch.context() as patch:
        save = align.save_model

        def keep(model, tokenizer, at):
            trained["policy"] = model
            save(model, tokenizer, at)

        patch.setattr(align, "save_model", keep)
        patch.setattr(
            evaluate,
            "load_policy",
            lambda spec, seed: trained.setdefault(spec.adapter_path or "start", load_policy(spec, seed=seed)),
        )
        bfloat16 = ("policy.dtype=bfloat16", "policy.lora={r: 4, alpha: 64}", "reward.dtype=bfloat16")
        run(folder, *bfloat16, "training.learning_rate=5e-2", "run.max_steps=2", "algorithm.max_new_tokens=6")
    return folder, trained


def test_the_evaluated_policy_is_the_trained_one(adapted):
    folder, trained = adapted
    judged = trained[str(folder / "final" / "adapter")]
    tokens = torch.arange(3, 43).reshape(2, 20)
    attend = torch.ones_like(tokens, dtype=torch.bool)
    with torch.no_grad():
        one, two, start = (
            compute_logprobs(model, tokens, attend, attend)
            for model in (trained["policy"], judged.model, trained["start"].model)
        )
    assert torch.equal(one, two)
    assert not torch.equal(one, start)


def test_the_reward_report_is_about_the_model_that_scores(adapted):
    folder, _ = adapted
    e = recipe(folder, "reward.dtype=bfloat16")
    material = checking.load_data(resolve(e))
    stored = load_reward_model(str(folder / "reward" / "model"), dtype="bfloat16")
    found = reward_report(stored, material.reward.test, train=material.reward.train)
    reported = read_json(folder / "reward" / "report.json")
    for name, head in found["objectives"].items():
        assert head["mae"] == pytest.approx(reported["objectives"][name]["mae"], abs=1e-12)
    assert next(stored.network.parameters()).dtype is torch.bfloat16
    assert provenance_hashes(stored.provenance)


def test_the_manifest_has_the_hashes_of_the_records(adapted):
    folder, _ = adapted
    found = read_json(folder / "data" / "manifest.json")
    assert found["models"] == {}
    assert {"reward train", "reward test", "test_prompts", "sft_demonstrations"} <= found["records"].keys()


def test_a_rollout_mismatch_is_reported_once(tmp_path, monkeypatch, capsys):
    def stage(work):
        hear = align._warn_rollout_mismatch
        for step, apart in enumerate((0.0, 0.019, 0.03, 0.5)):
            hear(work, step, apart)
        return "done"

    stages(monkeypatch, stage)
    pipeline.run_pipeline(recipe(tmp_path / "r"), PlainConsole())
    told = [e["text"] for e in read_jsonl(tmp_path / "r" / "events.jsonl") if e["type"] == "rollout_mismatch"]
    assert len(told) == 1
    assert told[0].startswith("step 2: sampler and trainer differ by 0.030")
    assert capsys.readouterr().out.count("warning: ") == 1


def test_a_negative_variance_share_is_reported_once_and_not_for_a_single_batch(tmp_path, monkeypatch, capsys):
    def stage(work):
        shares = [{"safety": -0.1}] * 4 + [{}] + [{"safety": -0.2, "politeness": -0.3}] * 7
        for step in range(len(shares)):
            align._warn_negative_share(work, step, shares[: step + 1][-align.NEGATIVE_SHARE_PATIENCE :])
        return "done"

    stages(monkeypatch, stage)
    pipeline.run_pipeline(recipe(tmp_path / "r"), PlainConsole())
    told = [
        e["text"]
        for e in read_jsonl(tmp_path / "r" / "events.jsonl")
        if e["type"] == "negative_variance_share"
    ]
    assert [text.partition(":")[0] for text in told] == ["safety", "politeness"]
    assert "negative for 5 steps (-0.20) (step 9)" in told[0]
    assert capsys.readouterr().out.count("warning: ") == 2


def test_the_progress_line_reports_kl_per_token(tmp_path, monkeypatch):
    notes = []

    class Heard(PlainConsole):
        def progress(self, done, total, note, values=()):
            notes.append((done, total, note, tuple(values)))

    batch = batch_of(*rows()).replace(objectives=("safety",))

    def stage(work):
        align._step_callback(work)(1, {"score/safety/mean": 0.25, "kl/k3": 0.0625}, batch, ())
        return "done"

    stages(monkeypatch, stage)
    pipeline.run_pipeline(recipe(tmp_path / "r"), Heard())
    assert (2, 4, "KL/token 0.062", ("safety 0.25",)) in notes


def test_a_share_that_is_negative_by_chance_is_not_reported(tmp_path, monkeypatch, capsys):
    def stage(work):
        for share in (-0.0, -1e-9, -0.004, -0.04):
            align._warn_negative_share(work, 9, [{"safety": share}] * align.NEGATIVE_SHARE_PATIENCE)
        return "done"

    stages(monkeypatch, stage)
    pipeline.run_pipeline(recipe(tmp_path / "r"), PlainConsole())
    assert "warning: " not in capsys.readouterr().out


def test_a_run_notes_names_that_are_taken_as_hub_names(tmp_path, monkeypatch, capsys):
    stages(monkeypatch, lambda work: "done")
    monkeypatch.setattr(pipeline, "probe_scorers", lambda ctx: None)
    monkeypatch.setattr(checking, "prompt_readings", lambda run, dataset: ())
    monkeypatch.setattr(pipeline, "model_descriptions", lambda run: [])
    pipeline.run_pipeline(recipe(tmp_path / "r", "reward.init_from=own/body"), PlainConsole())
    assert (
        "reward.init_from: own/body is not a local folder: taken as a hub name\n" in capsys.readouterr().out
    )


def test_a_missing_device_is_reported_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ResourceError, match="no CUDA device"):
        run(tmp_path / "r", "run.device=cuda")
    assert not (tmp_path / "r").exists()


def test_json_of_a_manifest_is_stable(adapted):
    folder, _ = adapted
    text = (folder / "data" / "manifest.json").read_text()
    assert to_json(read_json(folder / "data" / "manifest.json")) == text


def test_an_average_of_models_without_common_pretrained_weights_is_rejected(tmp_path, monkeypatch):
    salsa = "algorithm={name: salsa, max_new_tokens: 12}"
    run(tmp_path / "r", salsa)
    assert (tmp_path / "r" / "phases" / "weight_average" / "model.safetensors").exists()
    monkeypatch.setattr(phases, "MAX_MERGE_LOGPROB_DROP", -9.0)
    with pytest.raises(
        ConfigError,
        match=r"algorithm\.other_path: .*were not fine-tuned from the same pretrained weights; fix: name",
    ):
        run(tmp_path / "s", salsa)
