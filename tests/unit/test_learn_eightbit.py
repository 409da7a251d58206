"""Moments in 8 bits: what they take, that they lead down, and that a resume goes on to the bit."""

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
"""Whole blocks of 256; the smallest that is cut; a last block that is not full; too small to be cut."""


@pytest.fixture
def installed():
    pytest.importorskip("bitsandbytes", reason="the extra low-memory (bitsandbytes) is not installed")


def drawn(seed, shapes=SHAPES, dtype=torch.float32):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng).to(dtype) for shape in shapes]


def stepped(optimizer, steps, first=0):
    for step in range(first, first + steps):
        for parameter, grad in zip(optimizer.parameters, drawn(100 + step), strict=True):
            parameter.grad = grad.to(parameter.dtype)
        optimizer.step(1e-2, optimizer.norm())
    return optimizer


def begun(moments="int8", dtype=torch.float32, critic=False):
    weights = [Parameter(x) for x in drawn(0, dtype=dtype)]
    how = OptimizerConfig(learning_rate=1e-2, weight_decay=0.01, optim=moments)
    return Optimizer(how, weights[:2], weights[2:], 0.5) if critic else Optimizer(how, weights)


def size(optimizer):
    return sum(x.nbytes for x in serialize_tree(optimizer.state())[1].values())


def test_a_step_is_nearly_that_of_float32_and_takes_a_quarter(installed):
    ours, theirs = stepped(begun(), 8), stepped(begun("float32"), 8)
    for a, b, start in zip(ours.parameters, theirs.parameters, drawn(0), strict=True):
        assert float((a - b).detach().norm()) < 0.05 * float((b - start).detach().norm())
    torch.testing.assert_close(ours.parameters[3], theirs.parameters[3])
    assert not torch.equal(ours.parameters[0], theirs.parameters[0])
    wide = [Parameter(torch.zeros(512, 512))]
    bytes_of = {}
    for moments in ("float32", "int8"):
        optimizer = Optimizer(OptimizerConfig(optim=moments), wide)
        wide[0].grad = torch.ones(512, 512)
        optimizer.step(1e-3, optimizer.grad_norm())
        bytes_of[moments] = size(optimizer)
    assert 0.25 <= bytes_of["int8"] / bytes_of["float32"] < 0.27


def test_the_slices_in_which_weights_are_updated_change_nothing(installed, monkeypatch):
    whole = stepped(begun(), 3)
    monkeypatch.setattr(optimizer, "SLICE", 8192)
    cut = stepped(begun(), 3)
    assert len(cut.adamw.param_groups[0]["params"]) > len(SHAPES)
    for a, b in zip(whole.parameters[:2], cut.parameters[:2], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("critic", [False, True])
def test_a_stored_state_goes_on_bit_for_bit(installed, tmp_path, dtype, critic):
    whole = stepped(begun(dtype=dtype, critic=critic), 5)
    half = stepped(begun(dtype=dtype, critic=critic), 2)
    save_checkpoint(tmp_path, 2, {"optimizer": half.state_dict()})
    again = begun(dtype=dtype, critic=critic)
    for ours, theirs in zip(again.parameters, half.parameters, strict=True):
        ours.data.copy_(theirs.data)
    again.load_state_dict(load_latest_checkpoint(tmp_path, print).load_tree("optimizer"))
    stepped(again, 3, first=2)
    for a, b in zip(again.parameters, whole.parameters, strict=True):
        assert torch.equal(a, b)
    kept, found = (serialize_tree(optimizer.state_dict())[1] for optimizer in (whole, again))
    assert all(torch.equal(kept[name], found[name]) for name in kept)


def test_a_weight_without_a_gradient_stays(installed):
    optimizer = begun()
    optimizer.parameters[0].grad = torch.ones(SHAPES[0])
    optimizer.step(1e-2, optimizer.grad_norm())
    moved = [not torch.equal(a, b) for a, b in zip(optimizer.parameters, drawn(0), strict=True)]
    assert moved == [True, False, False, False]
    stepped(optimizer, 1)
    moved = [not torch.equal(a, b) for a, b in zip(optimizer.parameters, drawn(0), strict=True)]
    assert all(moved)


def wide_world(seed=0, **more):
    """The toy task before a policy most of whose weights are in tensors that are cut."""
    model = tiny_model("llama", VOCAB, seed=seed, width=64, layers=1, heads=2, context=32, stop=STOP, pad=PAD)
    language = PolicyModel(model=model, tokenizer=toy_tokenizer(), eos_ids=(STOP,), pad_id=PAD)
    reference = copy.deepcopy(model).requires_grad_(False)
    return replace(
        toy_world(),
        models=Models(policy=model, frozen={"reference": reference}),
        sampler=LocalSampler(language, OBJECTIVES),
        optim_config=OptimizerConfig(learning_rate=1e-2, optim="int8"),
        **more,
    )


def test_a_descent_learns_and_a_broken_one_goes_on_bit_for_bit(installed, tmp_path):
    scores = []

    def hear(step, metrics, *rest):
        scores.append(metrics["weighted_score/even/mean"] + metrics["weighted_score/high/mean"])

    whole = trained(tmp_path / "a", wide_world(activations="recompute"), steps=12, on_step=hear)
    assert sum(scores[-3:]) > sum(scores[:3]) + 0.3
    with pytest.raises(Cut):
        trained(tmp_path / "b", wide_world(), steps=12, every=4, on_step=stop_after(7))
    assert trained(tmp_path / "b", wide_world(), steps=12, every=4) == whole


@pytest.mark.parametrize("moments", ["float32", "int8"])
def test_a_checkpoint_with_other_moments_is_refused(installed, moments):
    other = "float32" if moments == "int8" else "int8"
    state = stepped(begun(other), 1).state_dict()
    with pytest.raises(
        ConfigError, match=rf"holds moments in {other}, and this run in {moments}; fix: choose another"
    ):
        begun(moments).load_state_dict(state)


def test_a_state_from_before_there_was_a_choice_is_float32():
    state = stepped(begun("float32"), 1).state_dict()
    del state["moments"]
    begun("float32").load_state_dict(state)


def test_moments_are_no_part_of_what_names_a_fit():
    assert "moments" not in repr(OptimizerConfig())


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        MissingDependencyError,
        match=r'moments: int8 needs the package bitsandbytes; fix: pip install "paretune\[low-',
    ) as e:
        begun()
    assert e.value.exit_code == 3
    begun("float32")
