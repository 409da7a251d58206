"""The pages of `paretune view` without a browser: the door, the files, the curves, the command."""

import json
import os
import re
import shutil
import socket
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from starlette.requests import Request

from paretune.cli import main
from paretune.core.errors import ConfigError
from paretune.view.curves import MAX_POINTS, Feeds, charts_by_stage
from paretune.view.folders import EVALUATION_FILES, check_roots, find_folders
from paretune.view.security import Guard
from support.asgi import TOKEN, Client
from support.fake_run import make_run
from support.hostile import PAYLOADS
from support.view_runs import append_steps, make_runs, set_state

PAGES = (
    "/", "/run?run=helpful", "/run/live?run=helpful", "/samples?run=helpful", "/rollouts?run=helpful",
    "/rollouts?run=now", "/compare", "/rate", "/rate?mode=scores", "/run?run=now", "/samples?run=now",
    "/chat", "/chat?a=safe&b=helpful",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return make_runs(tmp_path_factory.mktemp("view") / "runs")


@pytest.fixture(scope="module")
def client(runs):
    return Client(runs)


def test_every_page_opens_with_its_headers_and_changes_nothing_in_a_run(client, runs):
    def state():
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(runs.rglob("*"))}

    before = state()
    for path in PAGES:
        answer = client.get(path)
        assert answer.status == 200, (path, answer.text)
        assert "script-src 'self'" in answer.headers["content-security-policy"], path
        assert "unsafe" not in answer.headers["content-security-policy"], path
        assert answer.headers["x-content-type-options"] == "nosniff", path
        assert answer.headers["referrer-policy"] == "no-referrer", path
    assert state() == before


def test_the_token_becomes_a_cookie_that_scripts_and_other_sites_cannot_use(client):
    answer = client.request("GET", "/", headers={"cookie": None}, t=TOKEN)
    assert (answer.status, answer.headers["location"]) == (303, "/")
    assert "httponly" in answer.headers["set-cookie"].lower()
    assert "samesite=strict" in answer.headers["set-cookie"].lower()


@pytest.mark.parametrize(
    "headers",
    [
        {"cookie": None},
        {"cookie": "paretune_view=wrong"},
        {"cookie": "paretune_view=ü"},
        {"host": "evil.example"},
        {"host": "evil.example:8791"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "localhost@evil.example"},
        {"host": ""},
        {"host": "["},
    ],
)
@pytest.mark.parametrize("path", ["/", "/view.js", "/run?run=helpful", "/nowhere"])
def test_requests_without_the_token_or_for_another_host_are_refused(client, headers, path):
    answer = client.request("GET", path, headers=headers)
    assert answer.status == 403
    assert "helpful" not in answer.text


@pytest.mark.parametrize("host", ["localhost:8791", "127.0.0.1", "[::1]:9000"])
def test_names_of_this_machine_are_served_at_any_port(client, host):
    """`ssh -L 9000:localhost:8791` asks for localhost:9000."""
    assert client.request("GET", "/", headers={"host": host}).status == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_pages_can_only_be_read(client, method):
    assert client.request(method, "/").status == 405


@pytest.mark.parametrize("path", ["/", "/run", "/samples", "/report", "/view.js", "/chat", "/chat.js"])
def test_ratings_and_prompts_are_the_only_things_that_are_taken(client, path):
    assert client.post(path).status == 405


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../..",
        "/etc",
        "helpful/../safe",
        "helpful/",
        "..%2fsafe",
        "helpful\x00",
        "\\\\host\\share",
        "a" * 9999,
    ],
)
@pytest.mark.parametrize("path", ["/run", "/samples", "/report", "/run/live"])
def test_a_name_that_was_not_found_is_no_path(client, path, name):
    assert client.get(path, run=name).status == 404


@pytest.mark.parametrize("name", ["config/recipe.yaml", "run.json", "../run.json", "/etc/passwd"])
def test_there_is_no_route_to_files(client, name):
    assert client.request("GET", f"/{name}").status == 404


def test_only_known_files_inside_the_folders_are_opened(tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "report.html").write_text("secret")
    run = make_run(tmp_path / "runs" / "a", steps=2, evaluated=False)
    (run / "report.html").symlink_to(secret / "report.html")
    os.mkfifo(run / "events.fifo")
    (run / "timing.jsonl").unlink()
    os.mkfifo(run / "timing.jsonl")
    (run / "eval").symlink_to(secret, target_is_directory=True)
    (tmp_path / "runs" / "out").symlink_to(secret, target_is_directory=True)
    (folder,) = find_folders([tmp_path / "runs"]).values()
    for name in (
        "report.html",
        "timing.jsonl",
        "env.json",
        "../a/run.json",
        "eval/../run.json",
        "checkpoints/LATEST",
    ):
        with pytest.raises(OSError, match=r"leads out|no regular file|no known file"):
            folder.open_file(name)
    answer = Client(tmp_path / "runs").get("/report", run="a")
    assert answer.status == 404
    assert "secret" not in answer.text


def test_a_report_may_run_nothing_of_these_pages(runs):
    (runs / "helpful" / "report.html").write_text("<script>fetch('/rate')</script>")
    policy = Client(runs).get("/report", run="helpful").headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts;")
    assert "allow-same-origin" not in policy
    assert "default-src 'none'" in policy


def test_a_folder_name_that_is_no_text_is_shown(tmp_path):
    make_run(tmp_path / "run", steps=1, prompts=12).rename(tmp_path / os.fsdecode(b"run-\xff"))
    client = Client(tmp_path)
    page = client.get("/")
    assert page.status == 200
    assert "run-⟨U+DCFF⟩" in page.text
    assert [client.get(path).status for path in ("/compare", "/rate")] == [200, 200]


class Tags(HTMLParser):
    """Scripts, addresses and event handlers of a page."""

    def __init__(self, text):
        super().__init__()
        self.scripts, self.addresses, self.handlers, self.texts = 0, set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.scripts += tag in ("script", "iframe", "object", "base", "meta") and (
            "charset" not in dict(attrs)
        )
        self.addresses |= {
            value or "" for name, value in attrs if name in ("href", "src", "action", "formaction")
        }
        self.handlers += [name for name, _ in attrs if name.startswith("on") or name == "style"]

    def handle_data(self, data):
        self.texts.append(data)


def test_hostile_texts_stay_texts(tmp_path):
    texts = [payload for payload in PAYLOADS if "\ud800" not in payload]
    run = tmp_path / "runs" / "a<script>alert(1)<"
    make_run(
        run, name=texts[0], text=lambda i: texts[i % len(texts)], objectives=(texts[2], texts[4]), prompts=33
    )
    client = Client(tmp_path / "runs")
    (key,) = client.viewer.folders()
    for path in ("/", "/run", "/samples", "/rate"):
        tags = Tags(client.get(path, run=key, objective=texts[2], text=texts[0]).text)
        assert tags.scripts == 3, path  # its own script, viewport and color scheme
        assert tags.handlers == []
        assert all(re.match(r"(/|#content|data:,$)", address) for address in tags.addresses)
        # The line feeds between tags are the template's.
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "".join(tags.texts))


DAMAGES = {
    "empty": b"", "torn": b'{"schema": "paretune/', "list": b"[1, 2]", "binary": bytes(range(256)),
    "deep": b"[" * 100_000, "no object": b'{"objectives": [1], "status": 7, "stage": [], "step": "x"}\n',
    "odd entries": b'{"objectives": {"a": {}, "b": 3, "c": {"verdict": [], "low": "x", "goal": "target"}}}\n',
}  # fmt: skip


DAMAGED_FILES = (
    "run.json",
    "metrics.jsonl",
    "events.jsonl",
    *(f"eval/final/{n}" for n in sorted(EVALUATION_FILES)),
)


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("small") / "helpful", steps=3, prompts=12)
    (run / "rollouts.jsonl").touch()
    return run


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "names", [DAMAGED_FILES, DAMAGED_FILES[:1], DAMAGED_FILES[5:]], ids=["all", "run", "eval"]
)
def test_damaged_files_never_break_a_page(small_run, tmp_path, names, damage):
    shutil.copytree(small_run, tmp_path / "helpful")
    for name in names:
        (tmp_path / "helpful" / name).write_bytes(DAMAGES[damage])
    client = Client(tmp_path)
    for path in ("/", "/run", "/samples", "/rollouts", "/rate"):
        assert client.get(path, run="helpful").status == 200, path


def test_files_that_disappear_never_break_a_page(small_run, tmp_path):
    run = tmp_path / "helpful"
    shutil.copytree(small_run, run)
    client = Client(tmp_path)
    client.get("/run", run="helpful")
    for path in (*DAMAGED_FILES[1:], "run.json"):
        (run / path).unlink()
        for page in ("/", "/run", "/samples"):
            is_gone = path == "run.json" and page != "/"
            assert client.get(page, run="helpful").status == (404 if is_gone else 200), page


def test_curves_go_on_where_they_ended(tmp_path):
    run = make_run(tmp_path / "runs" / "now", steps=4, evaluated=False)
    client = Client(tmp_path / "runs")
    first = json.loads(client.get("/run/live", run="now").text)
    assert first["curves"]
    assert json.loads(client.get("/run/live", run="now", offset=first["offset"]).text)["curves"] is None
    append_steps(run, 4, 3)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "align", "st')  # being written
    second = json.loads(client.get("/run/live", run="now", offset=first["offset"]).text)
    assert "7 steps" in second["curves"]
    assert second["offset"] < (run / "metrics.jsonl").stat().st_size


def test_curves_start_over_after_a_resume(tmp_path):
    """A resume cuts the file to its checkpoint and goes on; it may be longer again before the next look."""
    run = make_run(tmp_path / "runs" / "now", steps=4, evaluated=False)
    feeds, (folder,) = Feeds(), find_folders([tmp_path / "runs"]).values()
    append_steps(run, 4, 3, score=0.1)
    feeds.read(folder)
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join(lines[:5]))
    append_steps(run, 5, 9, score=0.7)
    points = feeds.read(folder).points("align", "score/politeness/mean")
    assert [step for step, _ in points] == list(range(14))
    assert [value for _, value in points[4:]] == [0.1, *[0.7] * 9]


def test_the_judge_of_some_steps_is_a_line(tmp_path):
    run = make_run(tmp_path / "long", steps=0, evaluated=False)
    judged = {0: 0.5, 4: 0.75, 8: 1.0}
    evaluated = {step: {"eval/safety/mean": score} for step, score in judged.items()}
    lines = ({"stage": "align", "step": i, "kl/k3": 0.1} | evaluated.get(i, {}) for i in range(9))
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    ((stage),) = charts_by_stage(Feeds().read(find_folders([tmp_path])["long"]))
    charts = {chart["title"]: chart["chart"].raw_path for chart in stage["charts"]}
    assert charts["safety, by the judge"].count("L") == 2


@pytest.mark.parametrize(("file", "kind"), [("benchmark.json", "comparison"), ("sweep.json", "sweep")])
def test_results_of_several_runs_are_listed_with_their_runs(tmp_path, file, kind):
    make_run(tmp_path / "s" / "grpo" / "seed-0", steps=1, evaluated=False)
    (tmp_path / "s" / file).write_text("{}")
    (tmp_path / "s" / "report.html").write_text("<h1>all</h1>")
    client = Client(tmp_path)
    page = client.get("/").text
    assert kind in page
    assert "s/grpo/seed-0" in page
    assert client.get("/report", run="s").text == "<h1>all</h1>"


def test_many_steps_are_thinned_without_losing_a_spike(tmp_path):
    run = make_run(tmp_path / "runs" / "long", steps=0, evaluated=False)
    lines = ({"stage": "align", "step": i, "kl/k3": 9.0 if i == 4567 else 0.5} for i in range(6_000))
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (folder,) = find_folders([tmp_path / "runs"]).values()
    start = time.process_time()
    ((chart,),) = [stage["charts"] for stage in charts_by_stage(Feeds().read(folder))]
    assert time.process_time() - start < 5
    assert chart["steps_per_point"] == -(-6_000 // MAX_POINTS)
    assert chart["chart"].raw_path.count("L") < 2 * MAX_POINTS
    top = min(float(y) for y in re.findall(r" ([\d.]+)", chart["chart"].raw_path))
    smooth_top = min(float(y) for y in re.findall(r" ([\d.]+)", chart["chart"].smoothed_path))
    assert top == 8
    assert smooth_top > 90


def test_a_run_without_a_process_is_killed_not_running(runs, client):
    set_state(runs / "now", pid=2**22 - 3)
    try:
        assert "killed" in client.get("/run", run="now").text
    finally:
        set_state(runs / "now", pid=os.getpid())
    assert "running" in client.get("/run", run="now").text


def test_folders_without_runs_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as caught:
        check_roots([tmp_path / "empty", tmp_path / "file", Path("nowhere")])
    text = str(caught.value)
    assert re.findall(r"holds no run|is a file|there is no such folder", text) == [
        "holds no run", "is a file", "there is no such folder",
    ]  # fmt: skip


def test_keys_are_unique_over_several_folders(tmp_path):
    for name in ("one/a", "two/a", "two/deep/er/b"):
        make_run(tmp_path / name, steps=1, evaluated=False)
    (tmp_path / "two" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert set(find_folders([tmp_path / "one", tmp_path / "two"])) == {"one/a", "two/a", "two/deep/er/b"}
    assert set(find_folders([tmp_path / "one" / "a"])) == {"a"}
    assert len(find_folders([tmp_path / "one" / "a", tmp_path / "two" / "a"])) == 2


def leave(*arguments):
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return end.value.code


def test_the_command_refuses_at_the_door(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert leave("view") == 2
    assert leave("view", str(runs), "--ratings", "r.csv") == 2
    assert leave("view", str(runs), "--scale", "good-bad") == 2
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert leave("view", str(runs), "--port", str(taken.getsockname()[1])) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert all("; fix: " in line for line in lines)


def test_the_key_in_an_address_leads_to_no_other_site(client):
    answer = client.request("GET", "/", headers={"cookie": None}, t=TOKEN)
    assert answer.headers["location"] == "/"
    request = Request({"type": "http", "path": "//evil.example", "query_string": f"t={TOKEN}".encode(),
                       "method": "GET", "headers": [(b"host", b"127.0.0.1")]})  # fmt: skip
    refusal = Guard(client.app.app, TOKEN)._refusal(request)
    assert refusal.headers["location"] == "/evil.example"


def test_a_missing_package_is_one_line(runs, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "paretune.view.server")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert leave("view", str(runs)) == 3
    assert capsys.readouterr().err == (
        "the pages need the package uvicorn, which is not installed; fix: pip install starlette uvicorn\n"
    )
