"""The keys of a recipe that save memory: where they are refused, and where they arrive."""

import sys

import pytest
import torch

from paretune.config import bundled_recipes, config_hash, load_config
from paretune.config.build import build_spec
from paretune.core.errors import ConfigError, MissingDependencyError, ResourceError
from paretune.data.records import Message, Prompt
from paretune.experiment import assemble, pipeline
from paretune.experiment.console import PlainConsole
from paretune.experiment.context import RunContext
from paretune.experiment.data import Dataset
from paretune.experiment.dry_run import check
from paretune.experiment.preflight import check_memory_options
from paretune.models.load import as_policy_model
from paretune.models.lora import LoraSpec, add_lora
from paretune.run.folder import Run
from paretune.training.guards import StopRequest
from support.tiny_models import tiny_model, tiny_tokenizer


def experiment(*more):
    return load_config(bundled_recipes()["demo"], more)


def test_words_that_are_none_are_refused_with_those_that_are():
    with pytest.raises(
        ConfigError, match=r"learn\.activations: .*recomputed.* is none of keep, recompute, off"
    ):
        experiment("training.gradient_checkpointing=recomputed")
    with pytest.raises(ConfigError, match=r"learn\.moments: .* is none of float32, int8"):
        experiment("training.optim=int4")


def test_nothing_is_moved_from_the_main_memory_to_the_main_memory():
    with pytest.raises(ConfigError) as caught:
        experiment("training.gradient_checkpointing=offload", "run.device=cpu")
    said = str(caught.value)
    assert (
        "training.gradient_checkpointing: offload has no effect with run.device: cpu; fix: leave it out"
        in said
    )
    assert "\n" not in said
    experiment("training.gradient_checkpointing=recompute", "run.device=cpu")
    experiment("training.gradient_checkpointing=offload", "run.device=cuda")


def test_a_machine_whose_only_device_is_the_cpu_refuses_it_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    recipe = experiment("training.gradient_checkpointing=offload", f"run.output_dir={tmp_path / 'r'}")
    with pytest.raises(ConfigError) as caught:
        pipeline.run_pipeline(recipe, PlainConsole())
    said = str(caught.value)
    assert said.startswith(
        "(override): training.gradient_checkpointing: offload has no effect: run.device: auto is the CPU"
    )
    assert "\n" not in said
    assert caught.value.exit_code == 2
    assert not (tmp_path / "r").exists()
    with pytest.raises(ResourceError, match="no CUDA device"):
        check_memory_options(experiment("training.gradient_checkpointing=offload", "run.device=cuda"))


def test_a_check_finds_it_too(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"learn\.activations: offload has no effect"):
        check(experiment("training.gradient_checkpointing=offload"))
    assert check(experiment("training.gradient_checkpointing=offload", "run.device=cuda")).startswith(
        "demo: ok"
    )


def test_a_machine_with_a_device_of_its_own_has_somewhere_to_move_them_from(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_memory_options(experiment("training.gradient_checkpointing=offload"))


def test_a_package_that_is_not_there_is_missed_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingDependencyError, match=r'learn\.moments: int8 .*"paretune\[low-memory\]"'):
        pipeline.run_pipeline(
            experiment("training.optim=int8", f"run.output_dir={tmp_path / 'r'}"), PlainConsole()
        )
    assert not (tmp_path / "r").exists()
    check_memory_options(experiment())


def test_a_run_may_go_on_with_other_activations_but_not_with_other_moments():
    one = config_hash(experiment())
    assert config_hash(experiment("training.gradient_checkpointing=recompute")) == one
    assert config_hash(experiment("training.optim=int8")) != one


def test_what_a_recipe_says_is_what_the_alignment_runs_on(tmp_path, monkeypatch):
    monkeypatch.setattr(assemble, "reward_of", lambda work, name: None)
    tokenizer, prompt = tiny_tokenizer(), Prompt(messages=(Message("user", "a question"),))
    policy = as_policy_model(add_lora(tiny_model("llama", len(tokenizer)), LoraSpec(r=2), 0), tokenizer)
    for said in (("keep", "float32"), ("recompute", "int8")):
        e = experiment(f"training.gradient_checkpointing={said[0]}", f"training.optim={said[1]}")
        work = RunContext(
            config=e,
            run=Run(tmp_path),
            console=PlainConsole(),
            dataset=Dataset(train_prompts={"ordinary": (prompt,)}, test_prompts=(prompt,)),
            stop=StopRequest(),
        )
        world = assemble.build_training_context(work, build_spec(e), policy)
        assert (world.gradient_checkpointing, world.optim_config.optim) == said
