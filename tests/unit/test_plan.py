"""The forecast of memory, time and scaling: against hand-counted values, and its text and page."""

import dataclasses
import re
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from paretune.cli import app
from paretune.config import load_config
from paretune.config.shipped import bundled_recipes
from paretune.core.errors import ConfigError
from paretune.experiment.planning import plan
from paretune.models.flops import ModelFlops
from paretune.models.model_size import ModelSize
from paretune.plan.devices import DEVICES, cpu_device
from paretune.plan.memory import SHARDINGS, estimate_memory, layer_activation_bytes
from paretune.plan.roofline import estimate_step
from paretune.plan.scaling import choose_sharding, placements, scaling_curve
from paretune.plan.workload import Workload
from paretune.report.plan_page import plan_text, write_plan_page

H200, CPU = DEVICES["h200"], cpu_device(1e11, 16e9)


def model_size(billions=1.0, layers=10, width=1000, vocab=10_000):
    body = int(billions * 1e9)
    flops = ModelFlops(
        trainable_params=body,
        frozen_params=0,
        attention_width=width,
        layers_by_window={None: layers},
        head_params=vocab * width,
        head_trainable=True,
    )
    return ModelSize(
        num_params=body + vocab * width,
        num_trainable=body + vocab * width,
        width=width,
        ffn_width=4 * width,
        gated=True,
        num_layers=layers,
        vocab_size=vocab,
        kv_numbers_per_token=2 * layers * width,
        adapter_params_per_rank=layers * 7 * 2 * width,
        flops=flops,
    )


def workload(size=None, *, lora=None, **changes):
    size = size or model_size()
    values = {
        "policy": size.with_lora(lora),
        "lora": lora is not None,
        "weight_bytes": 2,
        "moment_bytes": 8,
        "references": 0 if lora else 1,
        "scorers": (),
        "critic": False,
        "prompts": 64,
        "generations": 8,
        "prompt_tokens": 256,
        "response_tokens": 512,
        "max_tokens_per_pass": 8192,
        "scorer_bytes": 0.0,
        "gradient_checkpointing": "none",
        "model_passes": 1,
        "iterations": 1,
        "generates": True,
    }
    return Workload(**(values | changes))


def test_memory_of_what_is_trained() -> None:
    """All weights in bfloat16: weights 2, reference 2, masters 4, moments 8 and gradients 2 bytes each."""
    work = workload()
    n, parts = work.policy.num_params, estimate_memory(work, H200).components()
    expected = {"weights": 2, "reference": 2, "masters": 4, "moments": 8, "gradients": 2}
    assert {name: parts[name] / n for name in expected} == expected
    adapter = workload(lora=16)
    parts = estimate_memory(adapter, H200).components()
    assert parts["moments"] == 8 * adapter.policy.num_trainable == 8 * 16 * 140_000
    assert parts["weights"] == 2 * n + 4 * 16 * 140_000
    assert "reference" not in parts


def test_weights_of_reward_models_are_always_there() -> None:
    """Beside an adapter they are as large as the policy; a workload without their size is an error."""
    adapter = workload(lora=16)
    n = adapter.policy.num_params
    scored = replace(adapter, scorers=(adapter.policy,), scorer_bytes=2.0 * n)
    more, less = (estimate_memory(work, CPU).peak for work in (scored, adapter))
    assert more - less == 2 * n
    fields = {f.name: getattr(adapter, f.name) for f in dataclasses.fields(adapter)}
    del fields["scorer_bytes"]
    with pytest.raises(TypeError, match="scorer_bytes"):
        Workload(**fields)


@pytest.mark.parametrize("ranks", [2, 8])
def test_memory_of_divided_weights(ranks: int) -> None:
    work = workload()
    n = work.policy.num_params
    parts = {way: estimate_memory(work, H200, ranks, way).components() for way in SHARDINGS}
    assert parts["no_shard"]["moments"] == 8 * n
    for way in ("shard_grad_op", "full_shard"):
        assert parts[way]["moments"] == pytest.approx(8 * n / ranks)
        assert parts[way]["masters"] == pytest.approx(4 * n / ranks)
    assert parts["shard_grad_op"]["weights"] == 2 * n
    assert parts["shard_grad_op"]["gradients"] == 4 * n
    assert parts["full_shard"]["weights"] == pytest.approx(2 * n / ranks)
    assert parts["full_shard"]["gradients"] == pytest.approx(4 * n / ranks)


def test_activations_are_those_that_the_layer_saves() -> None:
    """Counted by hand on a layer of width 10 with a gated layer of 40: float32, then LoRA on bfloat16."""
    size = model_size(width=10)
    work = workload(size, weight_bytes=4)
    norms, inputs, attention, ffn = 4 * 10, 2 * 10 + 10 + 40, 4 * 10, 3 * 40
    keys = 4 * 768 * 2 * 10
    assert layer_activation_bytes(work, size, 100, 4) == 4 * (100 * (norms + inputs + attention + ffn) + keys)
    adapter = workload(size, lora=4)
    width = 4 * (2 * 10 + 5 * 10 + 10 + 40) + 2 * (attention + ffn)
    assert layer_activation_bytes(adapter, size, 100, 4) == 100 * width + 2 * keys


@pytest.mark.parametrize(
    ("limit", "tokens", "rows"), [(9000, 8704, 16), (100, 768, 1), (6000, 5120 + 256 + 512, 10 - 1)]
)
def test_tokens_of_a_pass(limit: int, tokens: int, rows: int) -> None:
    """Whole groups of 256 + 8 x 512 = 4,352 tokens, then rows of the next one; at least one row."""
    found = workload().tokens_of_pass(limit)
    if limit == 6000:  # one group of 4,352, and 1,648 tokens of room: a prompt and 2 responses
        tokens, rows = 4352 + 256 + 2 * 512, 10
    assert found == (tokens, rows)


def test_checkpointing_keeps_less() -> None:
    kept = {
        mode: estimate_memory(workload(gradient_checkpointing=mode), H200).components()["activations"]
        for mode in ("none", "recompute", "offload")
    }
    assert kept["none"] > 4 * kept["recompute"] > 4 * kept["offload"]


def test_the_first_way_that_fits_is_chosen() -> None:
    small, large = workload(model_size(0.5)), workload(model_size(7.0), gradient_checkpointing="recompute")
    assert choose_sharding(placements(small, H200, 8)).sharding == "no_shard"
    assert choose_sharding(placements(large, H200, 8)).sharding == "shard_grad_op"
    forced = replace(small, fsdp="full_shard")
    assert [way.sharding for way in placements(forced, H200, 8)] == ["full_shard"]
    assert choose_sharding(placements(workload(model_size(30.0)), DEVICES["4090"], 2)) is None
    huge = workload(model_size(20.0), gradient_checkpointing="recompute")
    assert choose_sharding(placements(huge, H200, 16)).sharding == "full_shard"
    assert len(placements(small, H200, 1)) == 1


def test_decoding_is_bound_by_memory_on_a_large_model() -> None:
    time = estimate_step(workload(model_size(14.0, layers=20), lora=16, prompts=2), H200)
    assert time.phases["rollout"].bound == "memory"
    assert "sync" not in time.phases
    assert time.total == pytest.approx(sum(phase.seconds for phase in time.phases.values()))
    graphs = estimate_step(workload(model_size(0.5), lora=16, engine="in_process"), H200)
    eager = estimate_step(workload(model_size(0.5), lora=16), H200)
    assert eager.phases["rollout"].bound == "launches"
    assert graphs.phases["rollout"].seconds < eager.phases["rollout"].seconds


def test_sync_grows_with_what_is_exchanged() -> None:
    work = workload(model_size(7.0))
    sync = {way: estimate_step(work, H200, 8, way).phases["sync"].seconds for way in SHARDINGS}
    assert sync["no_shard"] < sync["shard_grad_op"] < sync["full_shard"]
    across = estimate_step(work, H200, 16, "no_shard").phases["sync"].seconds
    assert across > 5 * sync["no_shard"]


def test_scaling_names_where_it_breaks() -> None:
    strong = scaling_curve(workload(lora=16), H200, weak=False, base_ranks=1)
    assert [point.num_ranks for point in strong.points] == [2**i for i in range(11)]
    assert strong.points[0].efficiency == 1.0
    assert strong.break_ranks is not None
    assert "rollout" in strong.reason
    weak = scaling_curve(workload(lora=16), H200, weak=True, base_ranks=1)
    assert weak.points[-1].prompts == 64 * 1024
    assert weak.points[8].efficiency > 0.9
    assert "every process holds the rows of all" in weak.reason
    few = scaling_curve(replace(workload(lora=16, model_passes=0), prompts=1), H200, weak=False, base_ranks=1)
    assert few.break_ranks == 2
    assert "2 GPUs share 1 prompts" in few.reason
    none = scaling_curve(workload(model_size(900.0)), DEVICES["4090"], weak=False, base_ranks=1)
    assert all(point.sharding is None for point in none.points)


@pytest.fixture(scope="module")
def paper_plan():
    config = load_config(bundled_recipes()["paper-7b"], check_files=False)
    return plan(config, num_gpus=8, device_name="h200")


def test_plan_of_a_paper_recipe(paper_plan, tmp_path) -> None:
    text = plan_text(paper_plan)
    assert text.startswith("paper-7b on 8 x h200\npolicy: Qwen/Qwen2.5-7B-Instruct (published shape), 7.62B")
    assert "LoRA of rank 16, trains 40.4M" in text
    assert "training.fsdp: no_shard" in text
    assert max(map(len, text.splitlines())) <= 80
    html = write_plan_page(tmp_path / "plan.html", paper_plan).read_text(encoding="utf-8")
    assert "default-src 'none'" in html
    assert "<script" not in html
    assert html.count("<svg") == 6
    assert not re.search(r"(?:src|href)=", html)
    named = {**paper_plan, "name": "<b>x</b>"}
    assert "<b>x</b>" not in write_plan_page(tmp_path / "plan.html", named).read_text(encoding="utf-8")


def test_models_without_files(tmp_path) -> None:
    config = load_config(
        bundled_recipes()["paper-7b"], ["policy.path=someone/unknown-model"], check_files=False
    )
    with pytest.raises(
        ConfigError, match=r"policy.path: someone/unknown-model is not on this machine.*--config"
    ):
        plan(config, num_gpus=1, device_name="h200")
    file = tmp_path / "config.json"
    with pytest.raises(ConfigError, match=r"--config: .*cannot be read"):
        plan(config, num_gpus=1, device_name="h200", config_file=file)
    file.write_text('{"hidden_size": 64}')
    with pytest.raises(ConfigError, match="has no model_type"):
        plan(config, num_gpus=1, device_name="h200", config_file=file)
    file.write_text(
        '{"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, '
        '"intermediate_size": 128, "vocab_size": 100}'
    )
    values = plan(config, num_gpus=1, device_name="l40s", config_file=file)
    assert values["chosen"] == "no_shard"
    assert values["policy"]["source"] == str(file)


def test_the_command(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["plan", "demo", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "demo on 1 x cpu" in result.output
    assert result.output.endswith("page: runs/demo-1xcpu-plan.html\n")
    assert (tmp_path / "runs" / "demo-1xcpu-plan.html").is_file()
