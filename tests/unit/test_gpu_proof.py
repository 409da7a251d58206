"""The half of `make gpu-proof` that a CPU can run: the whole script on a tiny model."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

PROOFS = Path(__file__).resolve().parents[2] / "proofs"


@pytest.fixture
def gpu_proof(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(PROOFS))
    import gpu_proof

    yield gpu_proof
    sys.modules.pop("gpu_proof")
    sys.modules.pop("synthetic_run")


def test_on_a_tiny_model(gpu_proof, tmp_path: Path) -> None:
    setting = replace(
        gpu_proof.PAPER,
        prompts=4,
        generations=2,
        prompt_tokens=8,
        response_tokens=8,
        device="cpu",
        dtype="float32",
    )
    device = gpu_proof.cpu_device(1e11, 16e9)
    results = gpu_proof.prove({"tiny": gpu_proof.TINY}, setting, device, 60.0, tmp_path)
    assert results["devices"]["logprob_gap"] == 0.0
    assert results["devices"]["sampler_gap"] < 1e-5
    tiny = results["sizes"]["tiny"]
    assert tiny["prompts"] == tiny["of_prompts"] == 4
    assert set(tiny["measured"]) == {"rollout", "score", "model_passes", "update"}
    assert tiny["measured"]["update"] > 0
    assert json.loads((tmp_path / "gpu-proof.json").read_text())["sizes"].keys() == {"tiny"}
    assert "| tiny | 4 of 4 |" in (tmp_path / "gpu-proof.md").read_text()


def test_fewer_prompts_where_the_time_is_short(gpu_proof) -> None:
    """Decoding goes by steps, the rest by tokens."""
    short = replace(gpu_proof.PAPER, prompts=2, response_tokens=64)
    trial = {"rollout": 1.0, "score": 0.0, "model_passes": 0.1, "update": 0.4}
    whole = gpu_proof._projected_seconds(trial, short, gpu_proof.PAPER)
    tokens = 64 * (256 + 8 * 512) / (2 * (256 + 8 * 64))
    assert whole == pytest.approx(1.3 * 2 * 8 + 0.5 * tokens)
    fewer = replace(gpu_proof.PAPER, prompts=16)
    assert gpu_proof._projected_seconds(trial, short, fewer) < whole / 1.9
