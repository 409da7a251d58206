import base64
import hashlib
import re
import unicodedata
from html.parser import HTMLParser

import pytest

from paretune.report.formatting import escape_invisible, one_line, sanitize
from paretune.report.run_page import write_report
from paretune.report.tables import summary_table
from support.fake_run import fake_evaluation, make_run
from support.hostile import PAYLOADS

ATTRIBUTES = {
    "lang", "charset", "http-equiv", "content", "name", "class", "viewbox", "role", "aria-label", "d",
    "x", "y", "x1", "x2", "y1", "y2", "width", "height", "transform", "scope", "open", "dir", "title",
    "aria-hidden", "id", "type", "value", "hidden", "colspan", "tabindex",
}  # fmt: skip
TAGS = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "main",
    "header",
    "h1",
    "h2",
    "h3",
    "p",
    "span",
    "section",
    "div",
    "b",
    "br",
    "ul",
    "li",
    "details",
    "summary",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "svg",
    "g",
    "line",
    "text",
    "tspan",
    "rect",
    "path",
    "figure",
    "figcaption",
    "code",
    "label",
    "input",
    "select",
    "option",
    "output",
    "script",
}
MARKS = {"ins", "del"}
"""Around words that only one of two responses has: their number follows from the texts."""
NUMBERS = {"data-category": r"\d+", "data-changes": r"[-\d.,e+]*"}  # fmt: skip
INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


class Page(HTMLParser):
    """Every tag with its attributes, and the text between them."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.nodes, self.texts, self.suspicious = [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag not in MARKS:
            self.nodes.append((tag, tuple(name for name, _ in attrs)))
        elif attrs:
            self.suspicious.append((tag, attrs))
        self.suspicious += [(tag, name, value) for name, value in attrs if suspicious(name, value or "")]

    def handle_data(self, data):
        self.texts.append(data)

    def handle_comment(self, data):
        self.suspicious.append(("comment", data))

    def unknown_decl(self, data):
        self.suspicious.append(("declaration", data))


def suspicious(name, value):
    if name == "data-label":  # static words of the template, for narrow pages
        return not re.fullmatch(r"[a-z /,%→]+", value)
    if name in NUMBERS:
        return not re.fullmatch(NUMBERS[name], value)
    return name not in ATTRIBUTES or (name != "content" and re.search(r"script:|//|url\(|<", value))


def page(folder, **options):
    return write_report(make_run(folder, **options)).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def harmless(tmp_path_factory):
    return Page(page(tmp_path_factory.mktemp("a") / "r", objectives=("a", "b"), prompts=60, steps=5))


@pytest.mark.parametrize("first", range(0, len(PAYLOADS), 3))
def test_hostile_text_reaches_the_page_as_text_only(tmp_path, harmless, first):
    payloads = [PAYLOADS[(first + i) % len(PAYLOADS)] for i in range(3)]
    html = page(
        tmp_path / "r",
        name=payloads[0],
        text=lambda i: storable(payloads[i % 3]) + f" {i}",
        objectives=("a" + storable(payloads[1]), "b" + storable(payloads[2])),
        judge=payloads[2],
        prompts=60,
        steps=5,
    )
    parsed = Page(html)
    assert parsed.suspicious == []
    assert {tag for tag, _ in parsed.nodes} <= TAGS
    # The page has the same tags, in the same order, whatever the texts are.
    assert parsed.nodes == harmless.nodes
    assert INVISIBLE.search(html) is None
    assert "http://" not in "".join(re.findall(r"<[^>]*>", html))
    text = "".join(parsed.texts)
    for payload in payloads:
        assert escape_invisible(storable(payload))[:200].strip() in text


def storable(text):
    """Parquet holds no lone surrogate; `evaluate` writes it out, as this does."""
    return text.encode("utf-8", "backslashreplace").decode()


def test_hostile_categories_events_recipes_and_verdicts_are_text(tmp_path):
    folder = make_run(tmp_path / "r", prompts=30, steps=3)
    bad = PAYLOADS[2]
    path = folder / "eval" / "final" / "eval.json"
    for name in ("ordinary", "the ground truth", "no evidence", "nats/response"):
        path.write_text(path.read_text().replace(name, bad.replace('"', '\\"')))
    (folder / "config" / "recipe.yaml").write_text(bad)
    (folder / "config" / "resolved.yaml").write_text(f'policy: {{path: "{bad}"}}\nrun: {{seed: "{bad}"}}')
    (folder / "run.json").write_text((folder / "run.json").read_text().replace("c0ffee", bad))
    parsed = Page(write_report(folder).read_text())
    assert parsed.suspicious == []
    assert {tag for tag, _ in parsed.nodes} <= TAGS


def test_page_runs_the_filter_alone_and_loads_nothing(tmp_path):
    html = page(tmp_path / "r", prompts=30, steps=3)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    assert policy.startswith("default-src 'none';")
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert re.findall(r"script-src ([^;]*)", policy) == [f"'sha256-{digest}'"]
    assert not re.search(r"innerHTML|insertAdjacent|document\.write|eval|fetch|import", script)
    assert len(html) < 5_000_000


@pytest.mark.parametrize("payload", PAYLOADS)
def test_terminal_text_has_no_control_characters(payload):
    for shown in (sanitize(payload), one_line(payload, 40)):
        shown.encode("utf-8")
        for character in shown:
            if character not in "\n\t\u200c\u200d":
                assert unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
    assert "\n" not in one_line(payload)
    assert len(one_line(payload, 40)) <= 40


def test_escaping_keeps_harmless_text():
    for text in ("plain\ttext\n", "Grüße, 你好, привет", "👨‍👩‍👧 می‌خواهم"):
        assert escape_invisible(text) == text
    assert escape_invisible("\u202ex") == "⟨U+202E⟩x"
    assert escape_invisible("a\r\nb") == "a\nb"


def test_summary_table_has_one_line_per_hostile_name():
    table = summary_table(fake_evaluation(PAYLOADS, prompts=30)[0])
    assert INVISIBLE.search(table) is None
    assert len([line for line in table.splitlines() if not line.startswith("⚠ ")]) <= len(PAYLOADS) + 6
