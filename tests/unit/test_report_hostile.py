import re
import unicodedata
from html.parser import HTMLParser

import pytest

from hostile import PAYLOADS
from madeup_run import make, numbers
from paretune.report.formatting import escape_invisible, one_line, sanitize
from paretune.report.run_page import write_report
from paretune.report.tables import summary_table

ATTRIBUTES = {
    "lang", "charset", "http-equiv", "content", "name", "class", "viewbox", "role", "aria-label", "d",
    "x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "scope", "open", "dir",
}  # fmt: skip
TAGS = {
    "html", "head", "meta", "title", "style", "body", "main", "header", "h1", "h2", "h3", "p", "span",
    "section", "div", "b", "br", "ul", "li", "details", "summary", "table", "thead", "tbody", "tr", "th",
    "td", "svg", "line", "text", "circle", "path", "figure", "figcaption",
}  # fmt: skip
INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


class Page(HTMLParser):
    """Every tag with its attributes, and the text between them."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.nodes, self.said, self.odd = [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.nodes.append((tag, tuple(name for name, _ in attrs)))
        self.odd += [(tag, name, value) for name, value in attrs if suspicious(name, value or "")]

    def handle_data(self, data):
        self.said.append(data)

    def handle_comment(self, data):
        self.odd.append(("comment", data))

    def unknown_decl(self, data):
        self.odd.append(("declaration", data))


def suspicious(name, value):
    return name not in ATTRIBUTES or (name != "content" and re.search(r"script:|//|url\(|<", value))


def page(folder, **how):
    return write_report(make(folder, **how)).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def harmless(tmp_path_factory):
    return Page(page(tmp_path_factory.mktemp("a") / "r", objectives=("a", "b"), prompts=60, steps=5))


@pytest.mark.parametrize("first", range(0, len(PAYLOADS), 3))
def test_no_text_of_a_run_becomes_anything_but_text(tmp_path, harmless, first):
    mine = [PAYLOADS[(first + i) % len(PAYLOADS)] for i in range(3)]
    html = page(
        tmp_path / "r",
        name=mine[0],
        text=lambda i: storable(mine[i % 3]) + f" {i}",
        objectives=("a" + storable(mine[1]), "b" + storable(mine[2])),
        judge=mine[2],
        prompts=60,
        steps=5,
    )
    found = Page(html)
    assert found.odd == []
    assert {tag for tag, _ in found.nodes} <= TAGS
    # The page has the same tags, in the same order, whatever the texts are.
    assert found.nodes == harmless.nodes
    assert INVISIBLE.search(html) is None
    assert "http://" not in "".join(re.findall(r"<[^>]*>", html))
    said = "".join(found.said)
    for payload in mine:
        assert escape_invisible(storable(payload))[:200].strip() in said


def storable(text):
    """Parquet holds no lone surrogate; `evaluate` writes it out, as this does."""
    return text.encode("utf-8", "backslashreplace").decode()


def test_kinds_events_recipes_and_verdicts_are_text_too(tmp_path):
    folder = make(tmp_path / "r", prompts=30, steps=3)
    bad = PAYLOADS[2]
    path = folder / "eval" / "final" / "eval.json"
    for name in ("ordinary", "the true scorer", "no evidence", "nats/response"):
        path.write_text(path.read_text().replace(name, bad.replace('"', '\\"')))
    (folder / "config" / "run.yaml").write_text(bad)
    (folder / "config" / "resolved.yaml").write_text(f'policy: {{path: "{bad}"}}\nrun: {{seed: "{bad}"}}')
    (folder / "run.json").write_text((folder / "run.json").read_text().replace("c0ffee", bad))
    found = Page(write_report(folder).read_text())
    assert found.odd == []
    assert {tag for tag, _ in found.nodes} <= TAGS


def test_the_page_may_run_and_fetch_nothing(tmp_path):
    html = page(tmp_path / "r", prompts=30, steps=3)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    assert policy.startswith("default-src 'none';")
    assert "script-src" not in policy
    assert len(html) < 5_000_000


@pytest.mark.parametrize("payload", PAYLOADS)
def test_the_terminal_gets_no_control_bytes(payload):
    for shown in (sanitize(payload), one_line(payload, 40)):
        shown.encode("utf-8")
        for character in shown:
            if character not in "\n\t\u200c\u200d":
                assert unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
    assert "\n" not in one_line(payload)
    assert len(one_line(payload, 40)) <= 40


def test_what_is_harmless_stays_as_it_is():
    for text in ("plain\ttext\n", "Grüße, 你好, привет", "👨‍👩‍👧 می‌خواهم"):
        assert escape_invisible(text) == text
    assert escape_invisible("\u202ex") == "⟨U+202E⟩x"
    assert escape_invisible("a\r\nb") == "a\nb"


def test_the_closing_table_of_hostile_names_is_one_line_a_name():
    table = summary_table(numbers(PAYLOADS, prompts=30)[0])
    assert INVISIBLE.search(table) is None
    assert len([line for line in table.splitlines() if not line.startswith("⚠ ")]) <= len(PAYLOADS) + 6
