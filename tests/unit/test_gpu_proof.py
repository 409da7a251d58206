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


def test_on_a_tiny_model(gpu_proof, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(gpu_proof.PAPER, prompt_tokens=8, response_tokens=8)
    monkeypatch.setattr(gpu_proof, "PAPER", small)
    monkeypatch.setattr(gpu_proof, "TRL_PACKAGES", ("no_such_package",))

    def measure(name: str, seconds: float):
        return gpu_proof.measure_part(name, seconds, cuda=False, wheels=None)

    results = gpu_proof.prove(["tiny"], measure, "CPU", 6000.0, tmp_path)
    assert results["devices"]["logprob_gap"] == 0.0
    assert results["devices"]["sampler_gap"] < 1e-5
    tiny = results["sizes"]["tiny"]
    assert tiny["prompts"] == tiny["of_prompts"] == 4
    assert set(tiny["measured"]) == {"rollout", "score", "model_passes", "update"}
    assert tiny["measured"]["update"] > 0
    assert json.loads((tmp_path / "gpu-proof.json").read_text())["sizes"].keys() == {"tiny"}
    page = (tmp_path / "gpu-proof.md").read_text()
    assert "| tiny | 4 of 4 |" in page
    assert "TRL left out: no_such_package cannot be imported" in page


def test_a_part_is_stopped_at_the_end_of_its_share(gpu_proof, tmp_path: Path) -> None:
    """Whatever it does: the parts together never take more than the minutes."""
    shares = []

    def measure(name: str, seconds: float):
        shares.append((name, seconds))
        return gpu_proof.run_apart([sys.executable, "-c", "import time; time.sleep(60)"], 0.0)

    results = gpu_proof.prove(["a"], measure, "CPU", 30.0, tmp_path)
    assert [name for name, _ in shares] == ["devices", "a", "trl"]
    assert shares[0][1] == pytest.approx(10.0, abs=0.1)
    assert shares[2][1] == pytest.approx(28.0, abs=1.5)
    assert "stopped after 0 s" in results["sizes"]["a"]["error"]
    assert "| a | stopped after 0 s" in (tmp_path / "gpu-proof.md").read_text()


@pytest.mark.parametrize(
    ("code", "result"),
    [
        ("print('noise'); print('{\"seconds\": 1.5}')", {"seconds": 1.5}),
        ("raise SystemExit('no room')", {"error": "exit code 1: no room"}),
    ],
)
def test_the_result_of_a_part(gpu_proof, code, result) -> None:
    assert gpu_proof.run_apart([sys.executable, "-c", code], 20.0) == result


def test_fewer_prompts_where_the_time_is_short(gpu_proof) -> None:
    """Decoding goes by steps, the rest by tokens."""
    short = replace(gpu_proof.PAPER, prompts=2, response_tokens=64)
    trial = {"rollout": 1.0, "score": 0.0, "model_passes": 0.1, "update": 0.4}
    whole = gpu_proof._projected_seconds(trial, short, gpu_proof.PAPER)
    tokens = 64 * (256 + 8 * 512) / (2 * (256 + 8 * 64))
    assert whole == pytest.approx(1.3 * 2 * 8 + 0.5 * tokens)
    fewer = replace(gpu_proof.PAPER, prompts=16)
    assert gpu_proof._projected_seconds(trial, short, fewer) < whole / 1.9
