"""The table of the phases: what was done a second, and against what the machine can do."""

import json

from madeup_run import make
from paretune.report.run_page import write_report
from paretune.report.throughput import describe_matmul_benchmark, throughput
from paretune.run.folder import Run

MACHINE = {
    "matrix": {
        "device": "cpu", "dtype": "float32", "threads": 1, "size": 1024, "flops_per_second": 100e9,
    }
}  # fmt: skip
OLD = {"stage": "align", "step": 0, "seconds": 4.0, "sample": 1.0, "learn": 3.0, "idle": 0.0}
NEW = OLD | {
    "step": 1,
    "tokens_per_second/sample": 500.0,
    "tokens_per_second/learn": 2000.0,
    "flops/sample": 2e9,
    "flops/learn": 150e9,
}


def test_each_phase_is_held_against_the_machine():
    policy = {"stage": "policy", "step": 0, "seconds": 2.0, "tokens": 10}
    sample, learn = throughput([policy, NEW, NEW | {"tokens_per_second/sample": 700.0}], MACHINE)
    assert sample == {
        "stage": "align", "phase": "sample", "seconds": 2.0, "share": "25%", "tokens": "600",
        "flops": "2.0", "of_machine": "2%",
    }  # fmt: skip
    assert (learn["flops"], learn["of_machine"], learn["tokens"]) == ("50.0", "50%", "2,000")
    assert (
        describe_matmul_benchmark(MACHINE)
        == "products of two 1024 x 1024 matrices in float32 on cpu with 1 thread: 100 GFLOP/s"
    )


def test_lines_and_machines_of_old_runs_lack_what_nobody_wrote():
    sample, learn = throughput([OLD], {})
    assert (sample["seconds"], learn["share"]) == (1.0, "75%")
    assert (learn["tokens"], learn["flops"], learn["of_machine"]) == (None, None, None)
    sample, _ = throughput([OLD, NEW], {})
    assert (sample["seconds"], sample["tokens"], sample["flops"]) == (2.0, "500", "2.0"), (
        "of the step that told"
    )
    assert describe_matmul_benchmark({}) == ""


def test_the_page_shows_the_table_where_a_run_has_phases(tmp_path):
    folder = make(tmp_path / "r", steps=2, evaluated=False)
    assert "of the machine" not in write_report(folder).read_text()
    with (folder / "timing.jsonl").open("a") as file:
        file.write(json.dumps(OLD) + "\n")
    page = write_report(folder).read_text()
    assert "of the machine" in page
    assert "The machine:" not in page
    with (folder / "timing.jsonl").open("a") as file:
        file.write(json.dumps(NEW) + "\n")
    Run(folder).update_environment(**MACHINE)
    page = write_report(folder).read_text()
    assert "The machine: products of two 1024 x 1024 matrices" in page
    assert '<td class="num">50%</td>' in page
    assert "Python" in page, "what env.json said before is still there"
