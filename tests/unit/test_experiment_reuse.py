"""Reuse of the stages before the alignment: of which runs, and what is told where recipes differ."""

import json

import pytest

from paretune.config import bundled_recipes, load_config, resolved_yaml
from paretune.core.errors import ConfigError
from paretune.experiment.resolved import resolve
from paretune.experiment.reuse import require_same_inputs, reuse_stages
from paretune.run.folder import Run


def demo(*overrides):
    return load_config(bundled_recipes()["demo"], overrides)


def source_run(folder, config, **state):
    """A run folder of this recipe, without the files of its stages."""
    (folder / "config").mkdir(parents=True)
    (folder / "config" / "resolved.yaml").write_text(resolved_yaml(config))
    state = {"status": "done", "stage": "report", "config_hash": "that of its training"} | state
    (folder / "run.json").write_text(json.dumps(state))
    return folder


@pytest.mark.parametrize(
    "state", [{}, {"status": "stopped", "stage": "align"}, {"status": "failed", "stage": "align"}]
)
def test_run_past_its_judge_is_reused_whatever_its_algorithm_weights_and_length(tmp_path, state):
    source = source_run(tmp_path / "run", demo("run.max_steps=5", "objectives.safety.weight=3"), **state)
    require_same_inputs(source, resolve(demo("algorithm={name: rloo}", "training.prompts_per_step=4")))


@pytest.mark.parametrize("stage", ["data", "sft", "reward", "judge"])
def test_run_that_stopped_before_is_not(tmp_path, stage):
    source = source_run(tmp_path / "run", demo(), status="stopped", stage=stage)
    with pytest.raises(ConfigError, match="its stages are not complete; fix: resume that run first"):
        require_same_inputs(source, resolve(demo()))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["run.seed=3"], "run.seed is 0 there, 3 here"),
        (["reward.training.num_train_epochs=2"], "reward.training.num_train_epochs is 6 there, 2 here"),
        (["data.world.num_ratings=99", "run.max_steps=7"], "data.world.num_ratings is 3600 there, 99 here"),
    ],
)
def test_message_names_the_keys_that_differ_and_only_these(tmp_path, overrides, told):
    source = source_run(tmp_path / "run", demo())
    with pytest.raises(ConfigError) as caught:
        require_same_inputs(source, resolve(demo(*overrides)))
    assert f"its recipe differs ({told})" in str(caught.value)
    assert "fix: remove --reuse-from" in str(caught.value)
    (source / "reward" / "model").mkdir(parents=True)
    with pytest.raises(ConfigError) as caught:
        require_same_inputs(source, resolve(demo(*overrides)))
    assert f"reward={{path: {source}/reward/model}}" in str(caught.value)


def test_only_the_log_lines_of_the_reused_stages_are_copied_byte_for_byte(tmp_path):
    source = source_run(tmp_path / "run", demo())
    kept = b'{"stage": "sft", "loss":1.50}\n{"stage":"reward","step":1}\n'
    (source / "metrics.jsonl").write_bytes(kept + b'{"stage": "align", "step": 0}\n')
    (source / "timing.jsonl").write_bytes(b'{"stage": "evaluate", "seconds": 1}\n')
    run = Run(tmp_path / "new")
    reuse_stages(run, source, resolve(demo()))
    assert (run.path / "metrics.jsonl").read_bytes() == kept
    assert (run.path / "timing.jsonl").read_bytes() == b""
