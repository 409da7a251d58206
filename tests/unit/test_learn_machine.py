"""The machine's rate: as it is said, and without touching anybody's chance."""

import pytest
import torch

from paretune.rl import throughput
from paretune.rl.throughput import matmul_throughput


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_says_what_was_measured_and_moves_no_chance(monkeypatch, dtype):
    monkeypatch.setattr(throughput, "SIZE", 64)
    monkeypatch.setattr(throughput, "PATIENCE", 0.0)
    before = torch.get_rng_state()
    found = matmul_throughput(torch.device("cpu"), dtype)
    assert torch.equal(torch.get_rng_state(), before)
    assert found.pop("flops_per_second") > 0
    assert found == {"device": "cpu", "dtype": dtype, "threads": torch.get_num_threads(), "size": 64}
