import pytest

from paretune.run import system


def test_peak_rss_grows_with_allocations_and_never_falls():
    before = system.peak_rss_bytes()
    block = bytearray(b"x") * 200_000_000
    during = system.peak_rss_bytes()
    del block
    assert before > 1e7
    assert during >= 190_000_000
    # The kernel counts pages per thread and may report a little less later.
    assert system.peak_rss_bytes() >= 0.99 * during


def test_rusage_fallback_is_in_bytes():
    # VmHWM and ru_maxrss may differ by the memory of the parent process at the fork, not by a factor of 1024.
    assert system._rusage_peak_rss_bytes() == pytest.approx(system.peak_rss_bytes(), rel=10)


def test_check_environment_reports_missing_requirements(monkeypatch):
    lines, healthy = system.check_environment()
    assert healthy
    assert any("cores" in line and "GB of memory free" in line for line in lines)
    assert any(line.startswith("disk") for line in lines)
    monkeypatch.setattr(
        system, "requires", lambda package: ["torch", "no-such-package>=1", "x; extra == 'y'"]
    )
    lines, healthy = system.check_environment()
    assert not healthy
    assert "missing: no-such-package; fix: pip install no-such-package" in lines


def test_torch_environment_is_that_of_collect_env():
    assert "PyTorch version" in system.torch_environment()
