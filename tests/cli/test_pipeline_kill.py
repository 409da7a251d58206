"""kill -9 in any stage: the same command goes on, and ends with the bytes of the unbroken run."""

import random
import time

import pytest
from forked import begun
from tiny import command, demo, fingerprint

KILLS = 4


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_like_the_unbroken_one(tmp_path):
    assert demo(tmp_path / "whole").returncode == 0
    chance = random.Random(0)
    metrics = tmp_path / "broken" / "metrics.jsonl"
    for _ in range(KILLS):
        process = begun(command(tmp_path / "broken"))
        seen = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        target = seen + chance.randint(1, 4)
        while process.poll() is None:
            if metrics.exists() and metrics.read_bytes().count(b"\n") >= target:
                time.sleep(chance.random() * 0.1)
                process.kill()
                break
            time.sleep(0.01)
        assert process.wait() in {0, -9}, process.stderr.read_text()
    last = demo(tmp_path / "broken")
    assert last.returncode == 0, last.stderr
    assert fingerprint(tmp_path / "broken") == fingerprint(tmp_path / "whole")
