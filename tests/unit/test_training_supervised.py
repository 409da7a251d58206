"""Supervised training: micro-batch invariance, bit-exact resume, and finite checks before the weights."""

import json
import os
import signal

import fitting_task
import pytest
import torch

from paretune.core.errors import ConfigError, DataError, NonFiniteError, RunInterrupted, WiringError
from paretune.data.records import Demonstration, Prompt
from paretune.models.forward.logprobs import compute_logprobs
from paretune.models.load import parameter_hash
from paretune.reward.checkpoint import reward_model_from_lm
from paretune.reward.heads import huber
from paretune.reward.training import RewardTask, fit_reward_model, label_scale_and_offset
from paretune.run.folder import Run
from paretune.training.optimizer import OptimizerConfig
from paretune.training.supervised import CheckpointConfig, SftTask, SupervisedConfig, SupervisedTask, fit

NAMES = ("ending", "loud", "brief")
RECORDS = [*fitting_task.ratings(24, 1), *fitting_task.pairs(14, 2)]
OPTIM = OptimizerConfig(learning_rate=3e-3, warmup_ratio=0.1, lr_scheduler_type="cosine")


def reward_model(dtype=torch.float32, **kinds):
    words = fitting_task.language(layers=1)
    words.model.to(dtype)
    model = reward_model_from_lm(words, NAMES, *label_scale_and_offset(RECORDS, NAMES), kinds=kinds)
    with torch.no_grad():
        model.network.score.weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    return model.to(dtype)


def gradient(task, max_tokens):
    """The gradient of the first optimizer step, from a step with learning rate 0 and no clipping."""
    grads = {}

    def hook(name):
        return lambda parameter: grads.__setitem__(name, parameter.grad.clone())

    for name, parameter in task.model.named_parameters():
        parameter.register_post_accumulate_grad_hook(hook(name))
    config = SupervisedConfig(
        num_train_epochs=1,
        batch_size=99,
        max_tokens_per_pass=max_tokens,
        optim_config=OptimizerConfig(learning_rate=0.0),
    )
    losses = []
    fit(task, config, seed=0, on_step=lambda step, steps, metrics: losses.append(metrics["fit/loss"]))
    return losses[0], torch.cat([grads[name].flatten() for name in sorted(grads)])


def judging():
    return RewardTask(reward_model(torch.float64, ending=huber(0.5)), RECORDS)


def imitation():
    words = fitting_task.language(layers=1)
    words.model.double()
    return SftTask(words, [*fitting_task.demonstrations(20, 0), *fitting_task.demonstrations(5, 1)])


@pytest.mark.parametrize("make", [judging, imitation])
def test_gradient_is_the_same_for_every_cut_into_microbatches(make):
    assert isinstance(make(), SupervisedTask)
    loss, whole = gradient(make(), 10**6)
    for tokens in (1, 40, 100, 333):
        other, cut = gradient(make(), tokens)
        assert other == pytest.approx(loss, rel=1e-9)
        assert (cut - whole).norm() <= 1e-6 * whole.norm()


def test_sft_loss_is_the_mean_over_response_tokens_of_the_step():
    made = imitation()
    loss, _ = gradient(made, 50)
    total, tokens = 0.0, 0
    for row, start in zip(made.token_rows, made.prompt_lengths, strict=True):
        ids = torch.tensor([row])
        where = (torch.arange(len(row)) >= start)[None]
        total -= float(compute_logprobs(made.model, ids, torch.ones_like(ids).bool(), where).sum().detach())
        tokens += len(row) - start
    assert loss == pytest.approx(total / tokens, rel=1e-6)
    assert all(row[-1] == 1 for row in made.token_rows), "EOS is trained too"


def test_sft_learns():
    words = fitting_task.language(layers=1)
    losses = []
    fit(
        SftTask(words, fitting_task.demonstrations(200, 0)),
        SupervisedConfig(num_train_epochs=6, batch_size=20, optim_config=OptimizerConfig(learning_rate=1e-2)),
        seed=0,
        on_step=lambda step, steps, metrics: losses.append(metrics["fit/loss"]),
    )
    assert len(losses) == 60
    assert losses[-1] < 0.6 < 3 < losses[0]


class Broken(Exception):
    pass


def fitted(path, *, until=None, every=3, by=None):
    """Train in a run folder; `until` ends it after that step, by a crash or by the signal `by`."""

    def on_step(step, steps, metrics):
        if step + 1 == until:
            if by is None:
                raise Broken
            os.kill(os.getpid(), by)

    model = reward_model()
    checkpoints = CheckpointConfig(
        run=Run(path, stage="reward"), checkpoint_dir=path / "reward" / "checkpoints", save_steps=every
    )
    config = SupervisedConfig(num_train_epochs=3, batch_size=12, optim_config=OPTIM)
    fit_reward_model(model, RECORDS, config, seed=7, checkpoint_config=checkpoints, on_step=on_step)
    return parameter_hash(model), model.offset, (path / "metrics.jsonl").read_bytes()


def test_resume_is_bit_exact(tmp_path):
    whole = fitted(tmp_path / "a")
    assert len(whole[2].splitlines()) == 9
    for until in (2, 5, 6):
        with pytest.raises(Broken):
            fitted(tmp_path / f"b{until}", until=until)
        assert fitted(tmp_path / f"b{until}") == whole
    assert fitted(tmp_path / "a") == whole, "a finished training is only loaded"
    line = json.loads(whole[2].splitlines()[0])
    assert {"fit/loss", "fit/ending/loss", "grad_norm", "learning_rate", "stage", "step"} <= set(line)


def test_sigterm_stops_with_a_checkpoint(tmp_path):
    whole = fitted(tmp_path / "a", every=99)
    with pytest.raises(RunInterrupted, match="step 4 of 9"):
        fitted(tmp_path / "b", every=99, until=4, by=signal.SIGTERM)
    assert fitted(tmp_path / "b", every=99) == whole


def test_checkpoint_of_another_training_is_refused(tmp_path):
    fitted(tmp_path / "a")
    checkpoints = CheckpointConfig(
        run=Run(tmp_path / "a", stage="reward"), checkpoint_dir=tmp_path / "a" / "reward" / "checkpoints"
    )
    with pytest.raises(
        ConfigError, match=r"seed: the checkpoint was made with 7, this run has 8.*run\.output_dir"
    ):
        fit_reward_model(
            reward_model(),
            RECORDS,
            SupervisedConfig(num_train_epochs=3, batch_size=12, optim_config=OPTIM),
            seed=8,
            checkpoint_config=checkpoints,
        )


def test_non_finite_loss_does_not_reach_the_weights():
    model = reward_model()
    before = parameter_hash(model)
    made = RewardTask(model, RECORDS)
    made.standardized_labels[3, 1] = float("inf")
    with pytest.raises(
        NonFiniteError, match=rf"supervised step 0: the loss is inf, on {made.example_name(3)}; .* reach"
    ) as found:
        fit(made, SupervisedConfig(batch_size=99, optim_config=OPTIM), seed=0)
    assert str(found.value).endswith("and there is no checkpoint yet; fix: look at these records")
    assert found.value.exit_code == 4
    assert parameter_hash(model) == before


def test_non_finite_gradient_does_not_reach_the_weights():
    model = reward_model()
    model.network.score.weight.register_hook(lambda g: g * float("nan"))
    before = parameter_hash(model)
    with pytest.raises(NonFiniteError, match="gradient norm is nan"):
        fit(RewardTask(model, RECORDS), SupervisedConfig(optim_config=OPTIM), seed=0)
    assert parameter_hash(model) == before


def test_later_failure_names_the_last_checkpoint(tmp_path):
    model = reward_model()
    made = RewardTask(model, RECORDS)
    steps = [0]

    def break_at_three(step, *rest):
        steps[0] = step + 1
        if steps[0] == 2:
            model.network.score.weight.register_hook(lambda g: g * float("nan"))

    checkpoints = CheckpointConfig(
        run=Run(tmp_path, stage="reward"), checkpoint_dir=tmp_path / "kept", save_steps=2
    )
    with pytest.raises(
        NonFiniteError,
        match=r"supervised step 2: .* the last checkpoint is intact; .*lower the learning rate",
    ):
        fit(
            made,
            SupervisedConfig(batch_size=4, optim_config=OPTIM),
            seed=0,
            checkpoint_config=checkpoints,
            on_step=break_at_three,
        )


def test_no_examples_and_no_trainable_parameters_are_refused():
    words = fitting_task.language(layers=1)
    with pytest.raises(WiringError, match="no examples"):
        fit(SftTask(words, []), SupervisedConfig(), seed=0)
    for parameter in words.model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(WiringError, match="nothing to train"):
        fit(SftTask(words, fitting_task.demonstrations(2, 0)), SupervisedConfig(), seed=0)


def test_all_rows_that_are_too_long_are_named():
    words = fitting_task.language(layers=1, context=40)
    records = [
        Demonstration(prompt=Prompt(messages=(), id=f"row {n}"), response="a" * n) for n in (3, 60, 70, 38)
    ]
    with pytest.raises(DataError) as found:
        SftTask(words, records)
    lines = str(found.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["row 60", "row 70"]
    assert "the model has a context of 40" in lines[0]
