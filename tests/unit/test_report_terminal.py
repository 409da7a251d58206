"""Output in any encoding, and without a reader."""

import io
import os
import subprocess
import sys

import pytest

from paretune.report.terminal import SafeStream, safe_stream

LINES = "ρ 0.91 → 0.95 ± 0.02 ⚠ ▲ █▁ Grüße 你好"
PROGRAM = f"""
from paretune.cli import _echo
from paretune.experiment.console import make_console
from paretune.report.terminal import safe_output
with safe_output(), make_console() as console:
    console.start_stage("reward", 1, 2)
    console.finish_stage({LINES!a})
    _echo({LINES!a}, error=True)
"""


def shown(encoding):
    raw = io.BytesIO()
    stream = safe_stream(io.TextIOWrapper(raw, encoding))
    stream.write(LINES + "\udc80")
    stream.flush()
    return raw.getvalue()


def test_an_encoding_shows_what_it_has_and_spells_out_the_rest():
    assert shown("ascii") == rb"rho 0.91 -> 0.95 +/- 0.02 ! ^ #_ Gr\xfc\xdfe \u4f60\u597d\udc80"
    assert shown("cp1252").startswith(b"rho 0.91 -> 0.95 \xb1 0.02 ! ^ #_ Gr\xfc\xdfe \\u4f60")
    assert shown("latin-1") == shown("cp1252")
    assert shown("utf-8") == LINES.encode() + rb"\udc80"
    assert shown("gbk").endswith("你好".encode("gbk") + rb"\udc80")


def test_a_stream_without_a_reader_drops_its_output():
    class Gone(io.StringIO):
        writes = 0

        def write(self, text):
            Gone.writes += 1
            raise BrokenPipeError

    stream = safe_stream(Gone())
    stream.write("a")
    stream.write("b")
    stream.flush()
    assert isinstance(stream, SafeStream)
    assert (stream.lost, Gone.writes) == (True, 1)
    closed = io.StringIO()
    closed.close()
    assert not safe_stream(closed).isatty()
    safe_stream(closed).write("a")
    assert safe_stream(stream) is stream


@pytest.mark.parametrize(
    "setting",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "cp1252"},
        {"PYTHONIOENCODING": "utf-16"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
        {"closed": ">&-"},
        {"closed": ">&- 2>&-"},
        {"closed": "| true"},
        {"closed": "> /dev/full"},
    ],
    ids=lambda setting: " ".join(setting.values()),
)
def test_printing_never_ends_a_program(setting):
    end = setting.get("closed", "")
    environment = {**os.environ, "PYTHONUTF8": "0", **{k: v for k, v in setting.items() if k != "closed"}}
    code = PROGRAM
    script = f'"{sys.executable}" -c "$CODE" {end}; exit ${{PIPESTATUS[0]}}'
    run = subprocess.run(
        ["bash", "-c", script], capture_output=True, env={**environment, "CODE": code}, check=False
    )
    assert run.returncode == 0, run.stderr
    assert b"Traceback" not in run.stderr
    assert b"Exception" not in run.stderr
