"""Memory options of a recipe: where they are rejected, and that they reach the training."""

import sys

import pytest
import torch

from paretune.config import bundled_recipes, config_hash, load_config
from paretune.core.errors import ConfigError, MissingDependencyError, ResourceError
from paretune.data.records import Message, Prompt
from paretune.experiment import assemble, pipeline
from paretune.experiment.console import PlainConsole
from paretune.experiment.context import RunContext
from paretune.experiment.data import Dataset
from paretune.experiment.dry_run import check
from paretune.experiment.preflight import check_memory_options
from paretune.experiment.resolved import resolve
from paretune.models.load import as_policy_model
from paretune.models.lora import LoraSpec, add_lora
from paretune.run.folder import Run
from paretune.training.guards import StopRequest
from support.tiny_models import tiny_model, tiny_tokenizer


def load(*overrides):
    return load_config(bundled_recipes()["demo"], overrides)


def test_invalid_options_are_rejected_with_the_valid_ones():
    with pytest.raises(
        ConfigError, match=r"training\.gradient_checkpointing: .*recomputed.* is none of none, recompute, off"
    ):
        load("training.gradient_checkpointing=recomputed")
    with pytest.raises(ConfigError, match=r"training\.optim: .* is none of adamw_torch, adamw_8bit"):
        load("training.optim=adamw_4bit")


def test_offloading_on_a_cpu_is_rejected():
    with pytest.raises(ConfigError) as caught:
        load("training.gradient_checkpointing=offload", "run.device=cpu")
    message = str(caught.value)
    assert (
        "training.gradient_checkpointing: offload has no effect with run.device: cpu; fix: remove it"
        in message
    )
    assert "\n" not in message
    load("training.gradient_checkpointing=recompute", "run.device=cpu")
    load("training.gradient_checkpointing=offload", "run.device=cuda")


def test_offloading_on_a_machine_without_gpu_is_rejected_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    recipe = load("training.gradient_checkpointing=offload", f"run.output_dir={tmp_path / 'r'}")
    with pytest.raises(ConfigError) as caught:
        pipeline.run_pipeline(recipe, PlainConsole())
    message = str(caught.value)
    assert message.startswith(
        "(override): training.gradient_checkpointing: offload has no effect: run.device: auto is the CPU"
    )
    assert "\n" not in message
    assert caught.value.exit_code == 2
    assert not (tmp_path / "r").exists()
    with pytest.raises(ResourceError, match="no CUDA device"):
        check_memory_options(resolve(load("training.gradient_checkpointing=offload", "run.device=cuda")))


def test_check_rejects_offloading_without_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    # A small world: generating the usual one takes a minute under type checks.
    small = ("data.world.num_ratings=100", "data.world.num_demonstrations=100", "data.world.num_prompts=60")
    offload = "training.gradient_checkpointing=offload"
    with pytest.raises(ConfigError, match=r"training\.gradient_checkpointing: offload has no effect"):
        check(load(offload, *small))
    assert check(load(offload, "run.device=cuda", *small)).startswith("demo: ok")


def test_offloading_from_a_gpu_is_valid(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_memory_options(resolve(load("training.gradient_checkpointing=offload")))


def test_a_missing_package_is_reported_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        MissingDependencyError, match=r'training\.optim: adamw_8bit .*"paretune\[low-memory\]"'
    ):
        pipeline.run_pipeline(
            load("training.optim=adamw_8bit", f"run.output_dir={tmp_path / 'r'}"), PlainConsole()
        )
    assert not (tmp_path / "r").exists()
    check_memory_options(resolve(load()))


def test_a_resume_may_change_gradient_checkpointing_but_not_the_optimizer():
    one = config_hash(load())
    assert config_hash(load("training.gradient_checkpointing=recompute")) == one
    assert config_hash(load("training.optim=adamw_8bit")) != one


def test_the_options_reach_the_training_context(tmp_path, monkeypatch):
    monkeypatch.setattr(assemble, "load_trained_reward_model", lambda ctx, name: None)
    tokenizer, prompt = tiny_tokenizer(), Prompt(messages=(Message("user", "a question"),))
    policy = as_policy_model(add_lora(tiny_model("llama", len(tokenizer)), LoraSpec(r=2), 0), tokenizer)
    for options in (("none", "adamw_torch"), ("recompute", "adamw_8bit")):
        run = resolve(load(f"training.gradient_checkpointing={options[0]}", f"training.optim={options[1]}"))
        ctx = RunContext(
            resolved=run,
            run=Run(tmp_path),
            console=PlainConsole(),
            dataset=Dataset(train_prompts={"ordinary": (prompt,)}, test_prompts=(prompt,)),
            stop=StopRequest(),
        )
        context = assemble.build_training_context(ctx, run.algorithm, policy)
        assert (context.gradient_checkpointing, context.optim_config.optim) == options
