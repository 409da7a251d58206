"""The arithmetic of the benchmark: ratios of paired runs, their table and file. Nothing is timed."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from shared import shared

ROOT = Path(__file__).parents[2]


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("bench.table")


OURS = [
    {"step": 2.0, "generate": 0.5, "memory": 2.0**30, "response_tokens": 100.0},
    {"step": 1.0, "generate": 0.5, "memory": 2.0**30, "response_tokens": 50.0},
    {"step": 4.0, "generate": 1.0, "memory": 2.0**30, "response_tokens": 100.0},
]
PEERS = [
    {"step": 6.0, "generate": 1.5, "memory": 2.0**31, "response_tokens": 100.0},
    {"step": 5.0, "generate": 0.5, "memory": 2.0**31, "response_tokens": 100.0},
    {"step": 8.0, "generate": 4.0, "memory": 2.0**31, "response_tokens": 200.0},
]
NAMES = {"workload": "short", "dtype": "float32", "peer": "a peer"}


def test_ratios_are_per_pair_and_above_one_if_ours_is_better(table):
    """Steps 6/2, 5/1, 8/4 = 3, 5, 2: the median is 3, the range 2 to 5."""
    rows = {row.figure: row for row in table.comparison_rows(OURS, PEERS, **NAMES)}
    assert set(rows) == {"step", "generate", "train", "memory"}
    step = rows["step"]
    assert (step.ratio_median, step.ratio_min, step.ratio_max) == (3.0, 2.0, 5.0)
    assert (step.ours, step.peers, step.runs, step.unit) == (2.0, 6.0, 3, "s")


def test_train_is_the_step_without_generation(table):
    """(6 - 1.5)/(2 - 0.5), (5 - 0.5)/(1 - 0.5), (8 - 4)/(4 - 1) = 3, 9, 4/3."""
    rows = {row.figure: row for row in table.comparison_rows(OURS, PEERS, **NAMES)}
    assert rows["train"].ratio_median == 3.0
    assert rows["train"].ratio_max == 9.0


def test_memory_ratio_is_above_one_if_the_peer_needs_more(table):
    memory = next(row for row in table.comparison_rows(OURS, PEERS, **NAMES) if row.figure == "memory")
    assert (memory.ours, memory.peers, memory.ratio_median, memory.unit) == (1024.0, 2048.0, 2.0, "MiB")
    assert memory.ratio_per_token is None


def test_ratio_per_token_corrects_for_response_length(table):
    """Seconds per token: ours .02, .02, .04; the peer's .06, .05, .04; ratios 3, 2.5, 1."""
    step = next(row for row in table.comparison_rows(OURS, PEERS, **NAMES) if row.figure == "step")
    assert step.ratio_per_token == pytest.approx(2.5)


def test_figures_that_a_side_did_not_measure_have_no_row(table):
    rows = table.comparison_rows([{"step": 1.0, "memory": 1.0}], [{"step": 2.0, "memory": 1.0}], **NAMES)
    assert [row.figure for row in rows] == ["step", "memory"]


@pytest.mark.parametrize(("ours", "peers"), [([], []), ([1.0], [1.0, 2.0])])
def test_unpaired_runs_are_an_error(table, ours, peers):
    with pytest.raises(ValueError, match="cannot pair"):
        table.ratios(ours, peers)


def test_results_of_other_workloads_are_kept(table, tmp_path):
    path = tmp_path / "results.json"
    table.merge_into_file(table.comparison_rows(OURS, PEERS, **NAMES), path)
    table.merge_into_file(table.comparison_rows(OURS[:1], PEERS[:1], **(NAMES | {"workload": "long"})), path)
    table.merge_into_file(table.comparison_rows(OURS[:1], PEERS[:1], **NAMES), path)
    rows = json.loads(path.read_text())
    assert sorted({(row["workload"], row["runs"]) for row in rows}) == [("long", 1), ("short", 1)]
    assert len(rows) == 8
    keys = "workload dtype device peer figure ours peers ratio_median ratio_min ratio_max runs".split()
    assert set(keys) <= set(rows[0])


def test_the_table_has_a_line_per_row(table):
    lines = table.format_table(table.comparison_rows(OURS, PEERS, **NAMES)).splitlines()
    assert len(lines) == 5
    assert lines[1].split()[:2] == ["short", "float32"]
    assert "3.00" in lines[1]


def test_our_side_imports_no_peer(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    for name in ("trl", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)  # an import would fail
    for name in ("table", "wire", "workloads", "ours", "ours_fits", "limits", "growth", "__main__"):
        importlib.import_module(f"bench.{name}")


def test_sides_that_did_different_work_are_an_error(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    main = importlib.import_module("bench.__main__")
    main.require_same_work(
        "short", {"": {"prompt_tokens": 100.0, "step": 1.0}, "a peer": {"prompt_tokens": 100.0}}
    )
    with pytest.raises(SystemExit, match="the sides differ in prompt_tokens"):
        main.require_same_work("short", {"": {"prompt_tokens": 100.0}, "a peer": {"prompt_tokens": 120.0}})


def test_every_workload_has_our_side_first_and_a_peer(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    main = importlib.import_module("bench.__main__")
    for name in (*main.WORKLOADS, *main.FIT_WORKLOADS):
        first, *others = main.sides(name, "float32")
        assert first[0] == ""
        assert others


def test_required_flops_count_a_prompt_once(monkeypatch):
    """Body 10, head 3, a layer of width 2; a prompt of 2 tokens with responses of 1 and 2.

    Tokens 2 + 3: 2*10*5 = 100; logits of 3: 2*3*3 = 18; pairs (1 + 2) + (1*2 + 1) + (2*2 + 3) = 13 by 4*1*2.
    """
    monkeypatch.syspath_prepend(str(ROOT))
    limits = importlib.import_module("bench.limits")
    shape = limits.Shape(body=10, head=3, layers=1, width=2)
    assert limits.forward_flops(shape, [2], [[1, 2]]) == 100 + 18 + 104
    assert limits.step_flops(shape, [2], [[1, 2]])["step"] == 5 * 222


def test_the_peers_micro_batches_respect_the_token_limit(monkeypatch):
    """2048 tokens hold 22 rows of 28 + 64, and four of 384 + 64, in powers of two that divide 64 rows."""
    monkeypatch.syspath_prepend(str(ROOT))
    workloads = importlib.import_module("bench.workloads")
    assert workloads.WORKLOADS["short"].micro_batch_size() == 16
    assert workloads.WORKLOADS["dialogue"].micro_batch_size() == 4
    assert (
        workloads.WORKLOADS["short"]
        .replace(max_prompt_tokens=4096, min_prompt_tokens=4096)
        .micro_batch_size()
        == 1
    )
    assert workloads.WORKLOADS["short"].replace(num_generations=2, prompts=4).micro_batch_size() == 8


@pytest.mark.parametrize("name", ["short", "world"])
def test_full_length_workloads_are_sampled_to_the_limit(monkeypatch, tmp_path, name):
    shared("models", "dialogue-7m")
    monkeypatch.syspath_prepend(str(ROOT))
    workloads = importlib.import_module("bench.workloads")
    monkeypatch.setattr(workloads, "SHARED", shared())
    monkeypatch.setattr(workloads, "BUILD_DIR", tmp_path)
    ours = importlib.import_module("bench.ours")
    workload = workloads.WORKLOADS[name].replace(prompts=2, num_generations=2, max_new_tokens=12)
    spec, context, sampler = ours.grpo_setup(workload, "float32")
    sampler(context.prompts_for_step(0), spec.rollout, seed=0, step=0)
    assert sampler.num_tokens[1] == 2 * 2 * 12
