"""The keys of a recipe that save memory: where they are refused, and where they arrive."""

import sys

import pytest
import torch

from paretune.config import config_hash, load, shipped
from paretune.config.algorithm import recipe_of
from paretune.data.records import Message, Prompt
from paretune.errors import ConfigError, MissingExtra, ResourceError
from paretune.learn.stop import StopRequest
from paretune.models.adapt import Lora, add_lora
from paretune.models.load import as_language
from paretune.models.tiny import tiny_model, tiny_tokenizer
from paretune.rundir import Run
from paretune.stages import assemble, pipeline
from paretune.stages.check import check
from paretune.stages.console import PlainConsole
from paretune.stages.gather import Material
from paretune.stages.memory import possible
from paretune.stages.work import Work


def experiment(*more):
    return load(shipped()["demo"], more)


def test_words_that_are_none_are_refused_with_those_that_are():
    with pytest.raises(
        ConfigError, match=r"learn\.activations: .*recomputed.* is none of keep, recompute, off"
    ):
        experiment("learn.activations=recomputed")
    with pytest.raises(ConfigError, match=r"learn\.moments: .* is none of float32, int8"):
        experiment("learn.moments=int4")


def test_nothing_is_moved_from_the_main_memory_to_the_main_memory():
    with pytest.raises(ConfigError) as caught:
        experiment("learn.activations=offload", "run.device=cpu")
    said = str(caught.value)
    assert "learn.activations: offload has no effect with run.device: cpu; fix: leave it out" in said
    assert "\n" not in said
    experiment("learn.activations=recompute", "run.device=cpu")
    experiment("learn.activations=offload", "run.device=cuda")


def test_a_machine_whose_only_device_is_the_cpu_refuses_it_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    recipe = experiment("learn.activations=offload", f"run.folder={tmp_path / 'r'}")
    with pytest.raises(ConfigError) as caught:
        pipeline.run(recipe, PlainConsole())
    said = str(caught.value)
    assert said.startswith(
        "(override): learn.activations: offload has no effect: run.device: auto is the CPU"
    )
    assert "\n" not in said
    assert caught.value.exit_code == 2
    assert not (tmp_path / "r").exists()
    with pytest.raises(ResourceError, match="no CUDA device"):
        possible(experiment("learn.activations=offload", "run.device=cuda"))


def test_a_check_finds_it_too(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"learn\.activations: offload has no effect"):
        check(experiment("learn.activations=offload"))
    assert check(experiment("learn.activations=offload", "run.device=cuda")).startswith("demo: ok")


def test_a_machine_with_a_device_of_its_own_has_somewhere_to_move_them_from(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    possible(experiment("learn.activations=offload"))


def test_a_package_that_is_not_there_is_missed_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtra, match=r'learn\.moments: int8 .*"paretune\[low-memory\]"'):
        pipeline.run(experiment("learn.moments=int8", f"run.folder={tmp_path / 'r'}"), PlainConsole())
    assert not (tmp_path / "r").exists()
    possible(experiment())


def test_a_run_may_go_on_with_other_activations_but_not_with_other_moments():
    one = config_hash(experiment())
    assert config_hash(experiment("learn.activations=recompute")) == one
    assert config_hash(experiment("learn.moments=int8")) != one


def test_what_a_recipe_says_is_what_the_alignment_runs_on(tmp_path, monkeypatch):
    monkeypatch.setattr(assemble, "reward_of", lambda work, name: None)
    tokenizer, prompt = tiny_tokenizer(), Prompt(messages=(Message("user", "a question"),))
    policy = as_language(add_lora(tiny_model("llama", len(tokenizer)), Lora(r=2), 0), tokenizer)
    for said in (("keep", "float32"), ("recompute", "int8")):
        e = experiment(f"learn.activations={said[0]}", f"learn.moments={said[1]}")
        work = Work(
            experiment=e,
            run=Run(tmp_path),
            console=PlainConsole(),
            material=Material(pools={"ordinary": (prompt,)}, test=(prompt,)),
            stop=StopRequest(),
        )
        world = assemble.assembled(work, recipe_of(e), policy)
        assert (world.activations, world.optim.moments) == said
