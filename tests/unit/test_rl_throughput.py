"""The matmul benchmark: its result, and no effect on the global random generator."""

import pytest
import torch

from paretune.rl import throughput
from paretune.rl.throughput import matmul_throughput


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_reports_setting_and_leaves_global_generator(monkeypatch, dtype):
    monkeypatch.setattr(throughput, "MATMUL_SIZE", 64)
    monkeypatch.setattr(throughput, "TIME_LIMIT_SECONDS", 0.0)
    before = torch.get_rng_state()
    result = matmul_throughput(torch.device("cpu"), dtype)
    assert torch.equal(torch.get_rng_state(), before)
    assert result.pop("flops_per_second") > 0
    assert result == {
        "device": "cpu",
        "dtype": dtype,
        "num_threads": torch.get_num_threads(),
        "matrix_size": 64,
    }
