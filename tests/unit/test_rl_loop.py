import re
import signal
from dataclasses import replace

import pytest
import torch

from paretune.core.errors import ConfigError, RunInterrupted, WiringError
from paretune.models.load import PolicyModel
from paretune.models.lora import AdapterDisabledModel, LoraSpec, add_lora
from paretune.models.model_passes import Models, OldLogprobs, RefLogprobs
from paretune.rl.hooks import MetricsHook, StepHooks
from paretune.rl.loop import accumulate_gradients
from paretune.rl.rollout import rollout_and_score
from paretune.rl.state import trainable_parameters
from paretune.rollout.sampler import LocalSampler, StoredResponses
from paretune.run.folder import Run
from paretune.run.io import read_json, read_jsonl
from paretune.training.checkpoint import load_latest_checkpoint
from paretune.training.optimizer import Optimizer
from support.toy import PAD, STOP, toy_tokenizer
from toy import Cut, stop_after, toy_recipe, toy_world, trained


def credited_batch(recipe, world):
    batch, _ = rollout_and_score(recipe, world, 0, 0)
    rng = torch.Generator().manual_seed(0)
    batch, _, _ = recipe.reward_steps.apply_stateful(batch, recipe.reward_steps.init_state(), rng)
    for model_pass in recipe.model_passes:
        batch = model_pass(batch, world.models, recipe.temperature, 64)
    batch, _, _ = recipe.credit.apply_stateful(batch, recipe.credit.init_state(), rng)
    return batch


@pytest.mark.parametrize("double", [True, False])
def test_gradient_is_the_same_for_every_cut_into_microbatches(double):
    world = toy_world()
    batch = credited_batch(toy_recipe(), world)
    # Away from the sampling policy, so that ratios, clips and the KL term all matter.
    with torch.no_grad():
        for p in trainable_parameters(world.models).values():
            p.add_(0.05 * torch.sin(torch.arange(p.numel())).reshape(p.shape))
    if double:
        world.models.policy.double()
    grads = []
    for max_tokens in (10_000, 200, 60, 1):
        optimizer = Optimizer(world.optim_config, trainable_parameters(world.models).values())
        optimizer.zero_grad()
        context = replace(world, max_tokens_per_pass=max_tokens)
        accumulate_gradients(toy_recipe(kl_coef=0.5), context, batch, 0, StepHooks())
        grads.append(torch.cat([p.grad.flatten() for p in optimizer.parameters]))
    assert grads[0].norm() > 0.05
    for other in grads[1:]:
        assert float((other - grads[0]).norm() / grads[0].norm()) < (1e-6 if not double else 1e-7)


def test_metrics_are_the_same_for_every_cut_into_microbatches():
    world = toy_world()
    batch = credited_batch(toy_recipe(), world)
    logs = []
    for max_tokens in (10_000, 20):
        optimizer = Optimizer(world.optim_config, trainable_parameters(world.models).values())
        optimizer.zero_grad()
        context, hook = replace(world, max_tokens_per_pass=max_tokens), MetricsHook(toy_recipe(), world)
        accumulate_gradients(toy_recipe(), context, batch, 0, StepHooks((hook,)))
        hook.on_update(optimizer.grad_norm())
        logs.append(hook.step_metrics.metrics())
    assert logs[0].keys() == logs[1].keys()
    for key, value in logs[0].items():
        assert logs[1][key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


def test_run_is_deterministic_and_logs_all_metrics(tmp_path):
    calls = []
    one = trained(tmp_path / "a", on_step=lambda step, *rest: calls.append((step, len(rest[2]))))
    assert one == trained(tmp_path / "b")
    assert one != trained(tmp_path / "c", seed=1)
    assert calls == [(0, 48), (1, 48), (2, 48), (3, 48)]
    lines = read_jsonl(tmp_path / "a" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    keys = (
        "score/even/mean score/high/std score/even/unscored_fraction weighted_score/high/mean "
        "variance_share/even variance_share/high reward/mean reward/std groups/zero_variance "
        "clip_fraction/low clip_fraction/high ratio/max ratio/clamped entropy kl/k1 kl/k3 kl/rollout "
        "responses/truncated responses/length grad_norm loss/ClippedSurrogate loss/KlToReference loss/total "
        "learning_rate advantages/max_abs rollout/prob_diff_max"
    )
    for key in re.findall(r"\S+", keys):
        assert key in lines[0], key
    assert lines[0]["variance_share/even"] + lines[0]["variance_share/high"] == pytest.approx(1, abs=1e-5)
    assert lines[0]["ratio/max"] == pytest.approx(1, abs=1e-5)
    assert lines[0]["kl/k3"] == 0
    assert lines[3]["kl/k3"] > 0


def test_kl_is_measured_without_a_kl_penalty(tmp_path):
    trained(tmp_path, recipe=toy_recipe(kl_coef=0.0), steps=3)
    line = read_jsonl(tmp_path / "metrics.jsonl")[-1]
    assert line["kl/k3"] > 0
    assert "loss/KlToReference" not in line


def test_iterations_and_minibatches_move_the_ratio(tmp_path):
    trained(
        tmp_path,
        toy_world(lr=0.05),
        recipe=toy_recipe(num_iterations=3, minibatch_size=16, clip_range=0.05),
        steps=2,
    )
    line = read_jsonl(tmp_path / "metrics.jsonl")[-1]
    assert line["ratio/max"] > 1.05
    assert line["clip_fraction/low"] + line["clip_fraction/high"] > 0


@pytest.mark.parametrize("recipe", [toy_recipe(), toy_recipe(num_iterations=2, minibatch_size=16)])
def test_resume_is_bit_exact(tmp_path, recipe):
    whole = trained(tmp_path / "whole", recipe=recipe, steps=5)

    for at in (1, 3, 4):
        with pytest.raises(Cut):
            trained(tmp_path / "cut", recipe=recipe, steps=5, on_step=stop_after(at))
    assert trained(tmp_path / "cut", recipe=recipe, steps=5) == whole
    assert trained(tmp_path / "cut", recipe=recipe, steps=5) == whole


def test_checkpoint_of_another_spec_seed_or_length_is_refused(tmp_path):
    trained(tmp_path)
    for more in ({"seed": 1}, {"steps": 6}, {"recipe": toy_recipe(kl_coef=0.1)}):
        with pytest.raises(ConfigError, match="the checkpoint was made with"):
            trained(tmp_path, **more)


def test_corrupt_checkpoint_does_not_change_the_result(tmp_path):
    whole = trained(tmp_path / "whole", steps=5)
    trained(tmp_path / "run", steps=5)
    path = tmp_path / "run" / "checkpoints" / "step-000005" / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert trained(tmp_path / "run", steps=5) == whole
    assert [e["type"] for e in read_jsonl(tmp_path / "run" / "events.jsonl")] == [
        "checkpoint_corrupt",
        "resumed_from_checkpoint",
    ]


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, RunInterrupted), (signal.SIGINT, KeyboardInterrupt)]
)
def test_signal_stops_after_the_step_with_a_checkpoint(tmp_path, number, error):
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


def test_second_sigterm_is_ignored_and_second_ctrl_c_interrupts(tmp_path):
    def twice(number):
        def on_step(step, *rest):
            signal.raise_signal(number)
            signal.raise_signal(number)

        return on_step

    with pytest.raises(RunInterrupted):
        trained(tmp_path / "a", on_step=twice(signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "b", every=100, on_step=twice(signal.SIGINT))
    assert not (tmp_path / "b" / "checkpoints").exists()


def test_only_the_adapter_is_trained_and_saved(tmp_path):
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
    with pytest.raises(ConfigError, match="other weights than this policy trains"):
        trained(tmp_path / "cut", toy_world(lr=0.02), steps=4)


def test_missing_stored_responses_are_refused(tmp_path):
    passes = (OldLogprobs("policy"), RefLogprobs())
    with pytest.raises(WiringError, match="needs stored responses"):
        trained(tmp_path, recipe=toy_recipe().replace(rollout=StoredResponses(), model_passes=passes))


def test_run_json_has_the_step_of_the_resume(tmp_path):
    with pytest.raises(Cut):
        trained(tmp_path, steps=5, on_step=stop_after(4))
    newest = load_latest_checkpoint(tmp_path / "checkpoints", print).step
    Run(tmp_path).update_state(step=99)
    steps = []

    def on_step(step, *rest):
        steps.append((step, read_json(tmp_path / "run.json")["step"]))
        raise Cut

    with pytest.raises(Cut):
        trained(tmp_path, steps=5, on_step=on_step)
    assert steps == [(newest, newest)]
