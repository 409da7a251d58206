import re
import signal
from dataclasses import replace

import pytest
import torch

from paretune.core.errors import ConfigError, RunInterrupted, WiringError
from paretune.models.load import PolicyModel
from paretune.models.lora import AdapterDisabledModel, LoraSpec, add_lora
from paretune.models.model_passes import Models
from paretune.rl.loop import accumulate_gradients, rollout_and_score
from paretune.rl.metrics import StepMetrics
from paretune.rl.state import trainable_parameters
from paretune.rollout.sampler import LocalSampler, StoredResponses
from paretune.run.folder import Run
from paretune.run.io import read_json, read_jsonl
from paretune.training.checkpoint import load_latest_checkpoint
from paretune.training.guards import FiniteCheck
from paretune.training.optimizer import Optimizer
from support.toy import PAD, STOP, toy_tokenizer
from toy import Cut, stop_after, toy_recipe, toy_world, trained


def credited_batch(recipe, world):
    batch, samples = rollout_and_score(recipe, world, 0, 0)
    rng = torch.Generator().manual_seed(0)
    batch, _, _ = recipe.worth.advance(batch, recipe.worth.start(), rng)
    for measure in recipe.measure:
        batch = measure(batch, world.models, recipe.temperature(), 64)
    batch, _, _ = recipe.credit.advance(batch, recipe.credit.start(), rng)
    return batch, FiniteCheck.from_batch(0, batch, samples)


@pytest.mark.parametrize("double", [True, False])
def test_the_gradient_is_the_same_for_every_cut_into_micro_batches(double):
    world = toy_world()
    batch, guard = credited_batch(toy_recipe(), world)
    # Away from the sampling policy, so that ratios, clips and the KL term all matter.
    with torch.no_grad():
        for p in trainable_parameters(world.models).values():
            p.add_(0.05 * torch.sin(torch.arange(p.numel())).reshape(p.shape))
    if double:
        world.models.policy.double()
    grads = []
    for micro_tokens in (10_000, 200, 60, 1):
        optimizer = Optimizer(world.optim_config, trainable_parameters(world.models).values())
        seen = StepMetrics()
        accumulate_gradients(
            toy_recipe(kl=0.5),
            replace(world, max_tokens_per_pass=micro_tokens),
            batch,
            optimizer,
            guard,
            seen,
        )
        grads.append(torch.cat([p.grad.flatten() for p in optimizer.parameters]))
    assert grads[0].norm() > 0.05
    for other in grads[1:]:
        assert float((other - grads[0]).norm() / grads[0].norm()) < (1e-6 if not double else 1e-7)


def test_what_is_logged_does_not_depend_on_the_cut_either():
    world = toy_world()
    batch, guard = credited_batch(toy_recipe(), world)
    logs = []
    for micro_tokens in (10_000, 20):
        optimizer, seen = (
            Optimizer(world.optim_config, trainable_parameters(world.models).values()),
            StepMetrics(),
        )
        accumulate_gradients(
            toy_recipe(), replace(world, max_tokens_per_pass=micro_tokens), batch, optimizer, guard, seen
        )
        seen.finish_update(optimizer.grad_norm())
        logs.append(seen.metrics())
    assert logs[0].keys() == logs[1].keys()
    for key, value in logs[0].items():
        assert logs[1][key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


def test_a_run_is_the_same_twice_and_a_line_holds_what_it_should(tmp_path):
    heard = []
    one = trained(tmp_path / "a", on_step=lambda step, *rest: heard.append((step, len(rest[2]))))
    assert one == trained(tmp_path / "b")
    assert one != trained(tmp_path / "c", seed=1)
    assert heard == [(0, 48), (1, 48), (2, 48), (3, 48)]
    lines = read_jsonl(tmp_path / "a" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    keys = (
        "score/even/mean score/high/std score/even/unscored weighted/high/mean share/even share/high "
        "signal/mean signal/std groups/flat clip/low clip/high ratio/max ratio/clamped entropy kl/k1 kl/k3 "
        "kl/sampler truncated length grad_norm loss/Clipped loss/KlToReference loss/total lr advantage/max"
    )
    for key in re.findall(r"\S+", keys):
        assert key in lines[0], key
    assert lines[0]["variance_share/even"] + lines[0]["variance_share/high"] == pytest.approx(1, abs=1e-5)
    assert lines[0]["ratio/max"] == pytest.approx(1, abs=1e-5)
    assert lines[0]["kl/k3"] == 0
    assert lines[3]["kl/k3"] > 0


def test_the_divergence_is_measured_even_when_it_costs_nothing(tmp_path):
    trained(tmp_path, recipe=toy_recipe(kl=0.0), steps=3)
    line = read_jsonl(tmp_path / "metrics.jsonl")[-1]
    assert line["kl/k3"] > 0
    assert "loss/KlToReference" not in line


def test_epochs_and_minibatches_update_more_often_and_the_ratio_moves(tmp_path):
    trained(tmp_path, toy_world(lr=0.05), recipe=toy_recipe(epochs=3, minibatch=16, clip=0.05), steps=2)
    line = read_jsonl(tmp_path / "metrics.jsonl")[-1]
    assert line["ratio/max"] > 1.05
    assert line["clip_fraction/low"] + line["clip_fraction/high"] > 0


@pytest.mark.parametrize("recipe", [toy_recipe(), toy_recipe(epochs=2, minibatch=16)])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path, recipe):
    whole = trained(tmp_path / "whole", recipe=recipe, steps=5)

    for at in (1, 3, 4):
        with pytest.raises(Cut):
            trained(tmp_path / "cut", recipe=recipe, steps=5, on_step=stop_after(at))
    assert trained(tmp_path / "cut", recipe=recipe, steps=5) == whole
    assert trained(tmp_path / "cut", recipe=recipe, steps=5) == whole


def test_another_recipe_seed_or_length_does_not_go_on_from_a_checkpoint(tmp_path):
    trained(tmp_path)
    for more in ({"seed": 1}, {"steps": 6}, {"recipe": toy_recipe(kl=0.1)}):
        with pytest.raises(ConfigError, match="the checkpoint was made with"):
            trained(tmp_path, **more)


def test_a_broken_checkpoint_costs_steps_and_not_the_result(tmp_path):
    whole = trained(tmp_path / "whole", steps=5)
    trained(tmp_path / "run", steps=5)
    path = tmp_path / "run" / "checkpoints" / "step-000005" / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert trained(tmp_path / "run", steps=5) == whole
    assert [e["kind"] for e in read_jsonl(tmp_path / "run" / "events.jsonl")] == [
        "checkpoint_broken",
        "go_on",
    ]


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, RunInterrupted), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_stops_at_the_step_boundary_with_a_checkpoint(tmp_path, number, error):
    whole = trained(tmp_path / "whole", steps=5, every=100)
    before = signal.getsignal(number)
    with pytest.raises(error):
        trained(
            tmp_path / "run",
            steps=5,
            every=100,
            on_step=lambda step, *rest: signal.raise_signal(number) if step == 1 else None,
        )
    assert signal.getsignal(number) is before
    assert (tmp_path / "run" / "checkpoints" / "LATEST").read_text() == "step-000002\n"
    assert trained(tmp_path / "run", steps=5, every=100) == whole
    assert RunInterrupted.exit_code == 75


def test_sigterm_twice_is_harmless_and_ctrl_c_twice_is_at_once(tmp_path):
    def twice(number):
        def hear(step, *rest):
            signal.raise_signal(number)
            signal.raise_signal(number)

        return hear

    with pytest.raises(RunInterrupted):
        trained(tmp_path / "a", on_step=twice(signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "b", every=100, on_step=twice(signal.SIGINT))
    assert not (tmp_path / "b" / "checkpoints").exists()


def test_an_adapter_is_trained_and_stored_alone(tmp_path):
    def adapted():
        world = toy_world(lr=0.02)
        model = add_lora(world.models.policy, LoraSpec(r=2, alpha=4), seed=0)
        language = PolicyModel(model=model, tokenizer=toy_tokenizer(), eos_ids=(STOP,), pad_id=PAD)
        models = Models(policy=model, frozen={"reference": AdapterDisabledModel(model)})
        return replace(world, models=models, sampler=LocalSampler(language, world.objectives))

    whole, cut = adapted(), adapted()
    base = {n: p.clone() for n, p in whole.models.policy.named_parameters() if not p.requires_grad}
    want = trained(tmp_path / "whole", whole, steps=4)
    line = read_jsonl(tmp_path / "whole" / "metrics.jsonl")[-1]
    assert line["kl/k3"] > 1e-6
    after = dict(whole.models.policy.named_parameters())
    assert all(torch.equal(after[name], before) for name, before in base.items())
    with pytest.raises(Cut):
        trained(tmp_path / "cut", cut, steps=4, on_step=stop_after(3))
    assert trained(tmp_path / "cut", adapted(), steps=4) == want
    stored = load_latest_checkpoint(tmp_path / "cut" / "checkpoints", print).load_tree("weights")
    assert all("lora_" in name for name in stored)
    with pytest.raises(ConfigError, match="other weights than this policy learns"):
        trained(tmp_path / "cut", toy_world(lr=0.02), steps=4)


def test_stored_responses_are_told_at_the_door(tmp_path):
    with pytest.raises(WiringError, match="needs stored responses"):
        trained(tmp_path, recipe=toy_recipe().replace(rollout=StoredResponses()))


def test_run_json_tells_the_step_that_is_gone_on_from(tmp_path):
    with pytest.raises(Cut):
        trained(tmp_path, steps=5, on_step=stop_after(4))
    newest = load_latest_checkpoint(tmp_path / "checkpoints", print).step
    Run(tmp_path).update_state(step=99)
    seen = []

    def hear(step, *rest):
        seen.append((step, read_json(tmp_path / "run.json")["step"]))
        raise Cut

    with pytest.raises(Cut):
        trained(tmp_path, steps=5, on_step=hear)
    assert seen == [(newest, newest)]
