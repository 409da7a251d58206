"""Pictures of the pages of `paretune view` for docs/gallery.md, of the runs that the tests look at.

python tests/gallery.py docs/gallery      writes the PNG files
"""

import contextlib
import sys
import tempfile
from pathlib import Path

from support import browser as web
from support.view_runs import make_runs, set_state

PICTURES = {
    "runs": ("/", web.DESKTOP, 420),
    "run": ("/run?run=helpful", web.DESKTOP, 900),
    "samples": ("/samples?run=helpful&objective=safety&order=loss", web.DESKTOP, 760),
    "side-by-side": ("/compare", web.DESKTOP, 760),
    "rate": ("/rate", web.DESKTOP, 520),
    "rate-phone": ("/rate?mode=scores", web.PHONE, 900),
}
"""Name -> page, settings of the browser, and height of the picture."""
MAX_BYTES = 150_000


def write_pictures(folder: Path) -> None:
    """Write a PNG file per picture."""
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    with tempfile.TemporaryDirectory() as temporary, contextlib.chdir(temporary):
        runs = make_runs(Path("runs"))
        for run in runs.iterdir():
            set_state(
                run, started_at="2026-01-01T09:00:00Z", **({"host": "host"} if run.name != "now" else {})
            )
        with web.served(runs) as (address, viewer), web.chromium() as browser:
            for name, (path, settings, height) in PICTURES.items():
                viewport = settings["viewport"] | {"height": height}
                with web.opened(browser, address, viewer, **settings | {"viewport": viewport}) as (page, _):
                    page.goto(address + path)
                    file = folder / f"{name}.png"
                    page.screenshot(path=file)
                    assert file.stat().st_size < MAX_BYTES, f"{file}: {file.stat().st_size} bytes"
                    print(file, file.stat().st_size)


if __name__ == "__main__":
    if web.CHROMIUM is None:
        sys.exit(web.NO_CHROMIUM)
    write_pictures(Path(sys.argv[1]))
