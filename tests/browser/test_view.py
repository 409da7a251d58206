"""The pages of `paretune view` in a browser: they open, move, filter, take ratings, and are accessible."""

import json
import threading

import pytest

from paretune.data.readers import read_preference_pairs, read_ratings
from support import browser as web
from support.fake_chat import ANSWERS, FakeChat, FakeModels
from support.view_runs import append_steps, make_runs

pytestmark = pytest.mark.skipif(web.CHROMIUM is None, reason=web.NO_CHROMIUM)
PAGES = (
    "/", "/run?run=helpful", "/run?run=now", "/samples?run=helpful&text=printer", "/samples?run=now",
    "/rollouts?run=helpful&min_step=32", "/compare?text=printer", "/rate", "/rate?mode=scores", "/chat",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return make_runs(tmp_path_factory.mktemp("view") / "runs")


@pytest.fixture(scope="module")
def browser():
    with web.chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def site(runs):
    with web.served(runs) as (address, viewer):
        yield address, viewer


def test_every_page_opens_is_accessible_and_fits_on_a_phone_in_the_dark(browser, site):
    address, viewer = site
    with web.opened(browser, address, viewer, **web.DESKTOP) as (page, complaints):
        assert "?t=" not in page.url
        for path in PAGES:
            page.goto(address + path)
            assert page.locator("h1").count() == 1, path
            assert web.serious_findings(page) == [], path
            page.set_viewport_size(web.PHONE["viewport"])
            assert page.evaluate("document.documentElement.scrollWidth") == 400, path
            if path in ("/run?run=helpful", "/rate?mode=scores"):
                page.emulate_media(color_scheme="dark")
                assert web.serious_findings(page) == [], path
                page.emulate_media(color_scheme="light")
            page.set_viewport_size(web.DESKTOP["viewport"])
        assert complaints == []


def test_curves_move_while_a_run_goes_on(browser, site, runs):
    address, viewer = site
    with web.opened(browser, address, viewer, **web.DESKTOP) as (page, complaints):
        page.goto(f"{address}/run?run=now")
        chart = page.locator("[data-metric='score/politeness/mean']")
        before = chart.locator(".raw").get_attribute("d")
        assert "running" in page.locator("#status").inner_text()
        append_steps(runs / "now", 20, 30)
        page.wait_for_function(
            "text => document.querySelector('#status').innerText.includes(text)", arg="step 50"
        )
        assert chart.locator(".raw").get_attribute("d") != before
        assert complaints == []


def test_filters_filter(browser, site):
    address, viewer = site
    with web.opened(browser, address, viewer, **web.DESKTOP) as (page, _):
        page.goto(f"{address}/samples?run=helpful")
        page.get_by_label("objective").select_option("safety")
        page.get_by_label("verdict").select_option("worse")
        page.get_by_label("text").fill("PASSWORD")
        page.get_by_role("button", name="Filter").click()
        rows = page.locator("article.pair")
        assert 0 < rows.count() < 8
        for row in rows.all():
            assert "safety: worse" in row.locator("h2").inner_text()
            assert "password" in row.inner_text()
        assert f"{rows.count()} of 40 samples" in page.inner_text("main")


def test_ratings_by_keys_arrive_in_a_file_that_recipes_read(browser, runs, tmp_path):
    file = tmp_path / "people.jsonl"
    with (
        web.served(runs, ratings=file, scales=["safety=0-1"]) as (address, viewer),
        web.opened(browser, address, viewer, **web.DESKTOP) as (page, complaints),
    ):
        page.goto(f"{address}/rate")
        for key in "12=s2u1":
            with page.expect_navigation():
                page.keyboard.press(key)
        page.goto(f"{address}/rate?mode=scores")
        for key in (*"5", "Backspace", *"3241"):
            page.keyboard.press(key)
        with page.expect_navigation():
            page.keyboard.press("Enter")
        assert "1 of 80 rated" in page.inner_text("main")
        assert complaints == []
    types = [json.loads(line)["type"] for line in file.read_text().splitlines()]
    assert types == ["pair", "pair", "tie", "pair", "rating"]
    pairs = read_preference_pairs(file, where={"type": "pair"})
    assert {pair.objective for pair in pairs} == {"politeness"}
    (rating,) = read_ratings(file, where={"type": "rating"})
    assert rating.labels == {"politeness": 3, "meaningfulness": 2, "actionability": 4, "safety": 1}


def test_a_chat_by_keys_is_streamed_scored_and_stopped(browser, runs):
    chat = FakeChat()
    with (
        web.served(runs, models=FakeModels(chat)) as (address, viewer),
        web.opened(browser, address, viewer, **web.DESKTOP) as (page, complaints),
    ):
        page.goto(f"{address}/chat?a=helpful")
        page.keyboard.type("<b>Hello</b>")
        page.keyboard.press("Enter")
        page.locator("#state", has_text="Answered.").wait_for()
        answers = page.locator("section.answer")
        assert [text.strip() for text in answers.locator(".text").all_inner_texts()] == list(ANSWERS)
        assert page.locator(".prompt").inner_text() == "<b>Hello</b>"
        assert "truncated at the length limit" in answers.nth(1).inner_text()
        rows = answers.nth(0).locator("tbody tr").all_inner_texts()
        assert [row.split() for row in rows] == [
            ["safety", "↑", "higher", "is", "better", "0.81", "0.50"],
            ["length", "→", "20", "best", "at", "20", "–", "not", "scored"],
        ]
        assert "memory of the viewer" in page.locator("#about").inner_text()
        assert web.serious_findings(page) == []
        chat.pause = threading.Event()
        page.keyboard.type("Again")
        page.keyboard.press("Enter")
        page.locator("article", has_text="Again").get_by_text("Turn", exact=True).wait_for()
        assert page.locator("#turns").get_attribute("aria-busy") == "true"
        page.keyboard.press("Escape")
        page.locator("#state", has_text="Stopped.").wait_for()
        chat.pause.set()
        assert page.locator("#turns").get_attribute("aria-busy") == "false"
        chat.pause, chat.error = None, "no room"
        page.keyboard.type("More")
        page.keyboard.press("Enter")
        page.get_by_role("alert").get_by_text("no room").wait_for()
        assert page.input_value("#prompt") == "More"
        assert (page.locator("article").count(), chat.prompts) == (2, ["<b>Hello</b>", "Again"])
        assert complaints == []
