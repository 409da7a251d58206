"""AdamW with 8-bit moments: memory, training, and bit-exact resume."""

import copy
import sys
from dataclasses import replace

import pytest
import torch
from torch.nn import Parameter

from paretune.core.errors import ConfigError, MissingDependencyError
from paretune.models.load import PolicyModel
from paretune.models.model_passes import Models
from paretune.rollout.sampler import LocalSampler
from paretune.training import optimizer
from paretune.training.checkpoint import load_latest_checkpoint, save_checkpoint, serialize_tree
from paretune.training.optimizer import Optimizer, OptimizerConfig
from support.tiny_models import tiny_model
from support.toy import OBJECTIVES, PAD, STOP, VOCAB, toy_tokenizer
from toy import Cut, stop_after, toy_world, trained

SHAPES = ((96, 128), (4096,), (130, 70), (5,))
"""Whole blocks of 256; the smallest that is quantized; a partial last block; too small to be quantized."""


@pytest.fixture
def installed():
    pytest.importorskip("bitsandbytes", reason="the extra low-memory (bitsandbytes) is not installed")


def random_tensors(seed, shapes=SHAPES, dtype=torch.float32):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng).to(dtype) for shape in shapes]


def take_steps(optimizer, steps, first=0):
    for step in range(first, first + steps):
        for parameter, grad in zip(optimizer.parameters, random_tensors(100 + step), strict=True):
            parameter.grad = grad.to(parameter.dtype)
        optimizer.step(1e-2, optimizer.grad_norm())
    return optimizer


def new_optimizer(optim="adamw_8bit", dtype=torch.float32, critic=False):
    weights = [Parameter(x) for x in random_tensors(0, dtype=dtype)]
    config = OptimizerConfig(learning_rate=1e-2, weight_decay=0.01, optim=optim)
    return Optimizer(config, weights[:2], weights[2:], 0.5) if critic else Optimizer(config, weights)


def size(optimizer):
    return sum(x.nbytes for x in serialize_tree(optimizer.state_dict())[1].values())


def test_steps_are_close_to_float32_at_a_quarter_of_the_memory(installed):
    ours, theirs = take_steps(new_optimizer(), 8), take_steps(new_optimizer("adamw_torch"), 8)
    for a, b, start in zip(ours.parameters, theirs.parameters, random_tensors(0), strict=True):
        assert float((a - b).detach().norm()) < 0.05 * float((b - start).detach().norm())
    torch.testing.assert_close(ours.parameters[3], theirs.parameters[3])
    assert not torch.equal(ours.parameters[0], theirs.parameters[0])
    wide = [Parameter(torch.zeros(512, 512))]
    bytes_of = {}
    for optim in ("adamw_torch", "adamw_8bit"):
        optimizer = Optimizer(OptimizerConfig(optim=optim), wide)
        wide[0].grad = torch.ones(512, 512)
        optimizer.step(1e-3, optimizer.grad_norm())
        bytes_of[optim] = size(optimizer)
    assert 0.25 <= bytes_of["adamw_8bit"] / bytes_of["adamw_torch"] < 0.27


def test_slice_size_changes_nothing(installed, monkeypatch):
    whole = take_steps(new_optimizer(), 3)
    monkeypatch.setattr(optimizer, "SLICE_SIZE", 8192)
    cut = take_steps(new_optimizer(), 3)
    assert len(cut.adamw.param_groups[0]["params"]) > len(SHAPES)
    for a, b in zip(whole.parameters[:2], cut.parameters[:2], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("critic", [False, True])
def test_resume_is_bit_exact(installed, tmp_path, dtype, critic):
    whole = take_steps(new_optimizer(dtype=dtype, critic=critic), 5)
    half = take_steps(new_optimizer(dtype=dtype, critic=critic), 2)
    save_checkpoint(tmp_path, 2, {"optimizer": half.state_dict()})
    again = new_optimizer(dtype=dtype, critic=critic)
    for ours, theirs in zip(again.parameters, half.parameters, strict=True):
        ours.data.copy_(theirs.data)
    again.load_state_dict(load_latest_checkpoint(tmp_path, print).load_tree("optimizer"))
    take_steps(again, 3, first=2)
    for a, b in zip(again.parameters, whole.parameters, strict=True):
        assert torch.equal(a, b)
    kept, found = (serialize_tree(optimizer.state_dict())[1] for optimizer in (whole, again))
    assert all(torch.equal(kept[name], found[name]) for name in kept)


def test_weight_without_gradient_is_unchanged(installed):
    optimizer = new_optimizer()
    optimizer.parameters[0].grad = torch.ones(SHAPES[0])
    optimizer.step(1e-2, optimizer.grad_norm())
    moved = [not torch.equal(a, b) for a, b in zip(optimizer.parameters, random_tensors(0), strict=True)]
    assert moved == [True, False, False, False]
    take_steps(optimizer, 1)
    moved = [not torch.equal(a, b) for a, b in zip(optimizer.parameters, random_tensors(0), strict=True)]
    assert all(moved)


def wide_world(seed=0, **more):
    """The toy task for a policy most of whose weights are in tensors that are quantized."""
    model = tiny_model("llama", VOCAB, seed=seed, width=64, layers=1, heads=2, context=32, stop=STOP, pad=PAD)
    language = PolicyModel(model=model, tokenizer=toy_tokenizer(), eos_ids=(STOP,), pad_id=PAD)
    reference = copy.deepcopy(model).requires_grad_(False)
    return replace(
        toy_world(),
        models=Models(policy=model, frozen={"reference": reference}),
        sampler=LocalSampler(language, OBJECTIVES),
        optim_config=OptimizerConfig(learning_rate=1e-2, optim="adamw_8bit"),
        **more,
    )


def test_training_learns_and_resumes_bit_exact(installed, tmp_path):
    scores = []

    def on_step(step, metrics, *rest):
        scores.append(metrics["weighted_score/even/mean"] + metrics["weighted_score/high/mean"])

    whole = trained(tmp_path / "a", wide_world(gradient_checkpointing="recompute"), steps=12, on_step=on_step)
    assert sum(scores[-3:]) > sum(scores[:3]) + 0.3
    with pytest.raises(Cut):
        trained(tmp_path / "b", wide_world(), steps=12, every=4, on_step=stop_after(7))
    assert trained(tmp_path / "b", wide_world(), steps=12, every=4) == whole


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_8bit"])
def test_checkpoint_with_another_optim_is_refused(installed, optim):
    other = "adamw_torch" if optim == "adamw_8bit" else "adamw_8bit"
    state = take_steps(new_optimizer(other), 1).state_dict()
    with pytest.raises(
        ConfigError, match=rf"made with training.optim: {other}, this run has {optim}; fix: set a new"
    ):
        new_optimizer(optim).load_state_dict(state)


def test_optim_is_not_in_the_repr():
    assert "optim" not in repr(OptimizerConfig())


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        MissingDependencyError,
        match=r'optim: adamw_8bit needs the package bitsandbytes, .*; fix: pip install "paretune\[low-',
    ) as e:
        new_optimizer()
    assert e.value.exit_code == 3
    new_optimizer("adamw_torch")
