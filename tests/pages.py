"""The pages of docs/, and what the code in docs/examples prints for them.

python tests/pages.py      writes what the examples print into the pages
"""

import contextlib
import io
import re
import runpy
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "docs" / "examples"
BLOCK = re.compile(r"<!-- printed: (\S+) (.+?) -->\n(.*?)<!-- end of printed -->", re.DOTALL)
"""Example, name of the block, and what stands there now."""


def pages() -> list[Path]:
    """The README and every page below docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def examples() -> list[Path]:
    """Every program of docs/examples."""
    return sorted(EXAMPLES.glob("*.py"))


def printed(example: Path) -> dict[str, str]:
    """Run it: name of a block -> what it says."""
    dtype, out = torch.get_default_dtype(), io.StringIO()
    sys.path.insert(0, str(EXAMPLES))
    try:
        with contextlib.redirect_stdout(out):
            runpy.run_path(str(example), run_name="__main__")
    finally:
        sys.path.remove(str(EXAMPLES))
        sys.modules.pop("small", None)
        torch.set_default_dtype(dtype)
    parts = re.split(r"^\[(.+)\]\n", out.getvalue(), flags=re.MULTILINE)
    assert not parts[0], f"{example.name} prints outside a block: {parts[0]}"
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def fenced(text: str) -> str:
    """As a page shows it."""
    return f"```text\n{text}```\n"


def fill() -> None:
    """Write what the examples print into the pages."""
    said = {example.stem: printed(example) for example in examples()}
    for page in pages():
        old = page.read_text(encoding="utf-8")
        new = BLOCK.sub(
            lambda m: f"<!-- printed: {m[1]} {m[2]} -->\n{fenced(said[m[1]][m[2]])}<!-- end of printed -->",
            old,
        )
        if new != old:
            page.write_text(new, encoding="utf-8")
            print(page.relative_to(ROOT))


if __name__ == "__main__":
    fill()
