"""Throughput table: rates of each phase and their utilization of the matmul rate."""

import json

from paretune.report.run_page import write_report
from paretune.report.throughput import describe_matmul_benchmark, throughput
from paretune.run.folder import Run
from support.fake_run import make_run

MACHINE = {
    "matmul": {
        "device": "cpu", "dtype": "float32", "num_threads": 1, "matrix_size": 1024, "flops_per_second": 100e9,
    }
}  # fmt: skip
WITHOUT_COUNTS = {"stage": "align", "step": 0, "seconds": 4.0, "rollout": 1.0, "update": 3.0, "other": 0.0}
WITH_COUNTS = WITHOUT_COUNTS | {
    "step": 1,
    "tokens_per_second/rollout": 500.0,
    "tokens_per_second/update": 2000.0,
    "flops/rollout": 2e9,
    "flops/update": 150e9,
}


def test_utilization_of_each_phase():
    sft = {"stage": "sft", "step": 0, "seconds": 2.0, "tokens": 10}
    rollout, update = throughput(
        [sft, WITH_COUNTS, WITH_COUNTS | {"tokens_per_second/rollout": 700.0}], MACHINE
    )
    assert rollout == {
        "stage": "align", "phase": "rollout", "seconds": 2.0, "fraction": "25%", "tokens": "600",
        "flops": "2.0", "utilization": "2%",
    }  # fmt: skip
    assert (update["flops"], update["utilization"], update["tokens"]) == ("50.0", "50%", "2,000")
    assert (
        describe_matmul_benchmark(MACHINE)
        == "products of two 1024 x 1024 matrices in float32 on cpu with 1 thread: 100 GFLOP/s"
    )


def test_lines_without_counts_have_no_rates():
    rollout, update = throughput([WITHOUT_COUNTS], {})
    assert (rollout["seconds"], update["fraction"]) == (1.0, "75%")
    assert (update["tokens"], update["flops"], update["utilization"]) == (None, None, None)
    rollout, _ = throughput([WITHOUT_COUNTS, WITH_COUNTS], {})
    assert (rollout["seconds"], rollout["tokens"], rollout["flops"]) == (2.0, "500", "2.0"), (
        "counts are divided by the seconds of their own lines"
    )
    assert describe_matmul_benchmark({}) == ""


def test_page_shows_throughput_of_runs_with_phases(tmp_path):
    folder = make_run(tmp_path / "r", steps=2, evaluated=False)
    assert "of matmul rate" not in write_report(folder).read_text()
    with (folder / "timing.jsonl").open("a") as file:
        file.write(json.dumps(WITHOUT_COUNTS) + "\n")
    page = write_report(folder).read_text()
    assert "of matmul rate" in page
    assert "Matmul rate of this machine:" not in page
    with (folder / "timing.jsonl").open("a") as file:
        file.write(json.dumps(WITH_COUNTS) + "\n")
    Run(folder).update_environment(**MACHINE)
    page = write_report(folder).read_text()
    assert "Matmul rate of this machine: products of two 1024 x 1024 matrices" in page
    assert '<td class="num">50%</td>' in page
    assert "Python" in page, "an update of env.json keeps its other keys"
