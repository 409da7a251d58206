"""A browser over the pages of `paretune view`: Debian's Chromium, never a download."""

import contextlib
import shutil
import threading
import time
from pathlib import Path

import uvicorn

from paretune.view.answers import Answers
from paretune.view.app import make_app
from paretune.view.server import make_viewer, open_port
from support.fake_chat import FakeModels

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NO_CHROMIUM = "no chromium on this machine: apt-get install chromium"
ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync "
    "--no-first-run"
).split()
DESKTOP = {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"}
AXE_OPTIONS = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"],
    "resultTypes": ["violations"],
}
PHONE = {"viewport": {"width": 400, "height": 800}, "color_scheme": "dark"}


@contextlib.contextmanager
def chromium():
    """A headless browser of Playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def served(*roots, ratings=None, scales=(), seed=0, models=None):
    """Serve the folders in a thread; yields the address with the token, and the viewer."""
    answers = Answers(models or FakeModels())
    viewer = make_viewer(tuple(map(Path, roots)), ratings, scales, seed, answers)
    with open_port(0, exactly=True) as connection:
        config = uvicorn.Config(
            make_app(viewer), log_level="warning", access_log=False, lifespan="off", ws="none"
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [connection]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{connection.getsockname()[1]}", viewer
        finally:
            server.should_exit = True
            thread.join(10)


@contextlib.contextmanager
def opened(browser, address, viewer, **settings):
    """A page that has the token; yields the page and the list of what its console complained about."""
    context = browser.new_context(**settings)
    context.set_default_timeout(10_000)
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"{address}/?t={viewer.token}")
    try:
        yield page, complaints
    finally:
        context.close()


def serious_findings(page):
    """What axe finds of serious or critical impact, one line each."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, options=AXE_OPTIONS).response["violations"]
    return [
        f"{each['id']}: {node['html'][:120]}"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]
