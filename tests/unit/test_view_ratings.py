"""Filters of the samples of `paretune view`, and ratings that a recipe trains on."""

import json
import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from smallfiles import describe_model

from paretune.config import load_config
from paretune.core.errors import ConfigError, ResourceError
from paretune.core.goals import Goal
from paretune.data.records import Message, PreferencePair, Prompt, Rating
from paretune.evaluate.evaluate import _messages_json
from paretune.experiment.data import load_data
from paretune.experiment.resolved import resolve
from paretune.view.folders import find_folders
from paretune.view.ratings import CHOICES, RatingsFile, Scale, items, parse_scales, recipe_lines
from paretune.view.reading import TableCache, read_evaluations
from paretune.view.samples import (
    Filters,
    Source,
    pairs_of_evaluation,
    pairs_of_sources,
    parse_filters,
    select,
)
from support.asgi import HOST, Client
from support.fake_run import make_run
from support.view_runs import make_runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return make_runs(tmp_path_factory.mktemp("view") / "runs")


@pytest.fixture(scope="module")
def client(runs):
    return Client(runs)


def values(text, name):
    """The values of the inputs of this name on a page."""
    return re.findall(rf'name="{name}" value="([^"]*)"', text)


@pytest.fixture(scope="module")
def pairs(runs):
    folder = find_folders([runs])["helpful"]
    return pairs_of_evaluation(TableCache(), folder, read_evaluations(folder)[0])[0]


@pytest.mark.parametrize(
    ("query", "passes"),
    [
        ({"verdict": "better"}, lambda pair: pair.change("safety") > 0),
        ({"verdict": "worse"}, lambda pair: pair.change("safety") < 0),
        ({"min_change": "0.1"}, lambda pair: pair.change("safety") >= 0.1),
        ({"max_change": "−0,1"}, lambda pair: pair.change("safety") <= -0.1),
        ({"min_tokens": "15", "max_tokens": "17"}, lambda pair: 15 <= pair.second.num_tokens <= 17),
        ({"category": "harmful"}, lambda pair: pair.category == "harmful"),
        ({"text": "PRINTER"}, lambda pair: "printer" in pair.prompt),
        ({"text": "cannot open", "verdict": "worse"},
         lambda pair: "cannot open" in pair.second.text and pair.change("safety") < 0),
    ],
)  # fmt: skip
def test_filters_keep_what_they_say(pairs, query, passes):
    filters = parse_filters({"objective": "safety"} | query, list(pairs[0].second.scores))
    assert not filters.problems
    assert select(pairs, filters) == [pair for pair in pairs if passes(pair)]
    assert 0 < len(select(pairs, filters)) < len(pairs)


@pytest.mark.parametrize(
    ("goal", "gain"),
    [(Goal(), lambda a, b: b - a), (Goal("lower"), lambda a, b: a - b),
     (Goal("target", 0.5), lambda a, b: abs(a - 0.5) - abs(b - 0.5))],
)  # fmt: skip
def test_gains_and_verdicts_follow_the_goal(pairs, goal, gain):
    def own(pair):
        return gain(pair.first.scores["safety"], pair.second.scores["safety"])

    chosen = select(pairs, Filters(objective="safety", verdict="better", order="gain"), goal)
    assert [own(pair) for pair in chosen] == sorted((own(p) for p in pairs if own(p) > 0), reverse=True)
    losses = select(pairs, Filters(objective="safety", order="loss"), goal)
    assert own(losses[0]) == min(map(own, pairs))


@pytest.mark.parametrize(
    "query", [{"min_change": "much"}, {"order": "best"}, {"verdict": "x"}, {"min_tokens": "nan"}]
)
def test_a_filter_that_cannot_be_read_is_said(client, query):
    text = client.get("/samples", run="helpful", **query).text
    assert "is not a number" in text or "is not one of" in text
    assert "40</b> of 40" in text


def test_pages_of_samples_hold_all_of_them(client):
    pages = [client.get("/samples", run="helpful", page=page).text for page in (1, 2, 3)]
    prompts = [re.findall(r"shows error \d+|account \d+ today|Order \d+|report \d+", page) for page in pages]
    assert not set(prompts[0]) & set(prompts[1])
    assert prompts[1] == prompts[2]  # there is no third page


@pytest.mark.parametrize(
    ("query", "steps"),
    [
        ({}, [40, 40, 40, 40, 32]),
        ({"order": "old"}, [0, 0, 0, 0, 8]),
        ({"min_step": "8", "max_step": "16", "order": "high"}, [16, 16, 16, 16, 8]),
        ({"objective": "politeness", "order": "low", "text": "PRINTER"}, [0, 8, 16, 24, 32]),
        ({"objective": "safety", "order": "low", "min_step": "40"}, [40, 40, 40, 40]),
    ],
)
def test_training_samples_are_filtered(client, query, steps):
    text = client.get("/rollouts", run="helpful", **query).text
    assert [int(step) for step in re.findall(r'class="row">step (\d+)', text)][:5] == steps


def test_two_policies_are_joined_by_prompt(runs):
    folders = find_folders([runs])
    sources = [
        Source(folders[name], read_evaluations(folders[name])[0], "after") for name in ("helpful", "safe")
    ]
    pairs, problem = pairs_of_sources(TableCache(), *sources)
    assert (len(pairs), problem) == (40, "")
    assert all(pair.second.text == f"{pair.first.text} Please call us." for pair in pairs)


def rate_all(client, mode, answer, count):
    """Answer the next questions; the file's rows."""
    for _ in range(count):
        page = client.get("/rate", mode=mode).text
        fields = {name: values(page, name)[0] for name in ("id", "at", "mode", "objective")}
        fields |= {name: json.loads(values(page, name)[0].replace("&#34;", '"')) for name in ("a", "b")}
        fields |= {name: json.dumps(fields[name]) for name in ("a", "b")}
        assert client.post("/rate", **(fields | answer)).status == 303
    return client.viewer.ratings.rows()


def test_ratings_train_a_reward_model_of_a_recipe(tmp_path, monkeypatch):
    """The lines that the page proposes are a recipe, whose data stage reads the file."""
    monkeypatch.chdir(tmp_path)
    describe_model()
    file = tmp_path / "people's ratings.jsonl"
    make_run(tmp_path / "runs" / "a", steps=1, prompts=33, text=lambda i: f"w{i}")  # the model is tiny
    client = Client(tmp_path / "runs", ratings=file, scales=["0-9"])
    rate_all(client, "pairs", {"choice": "1"}, 3)
    rate_all(client, "pairs", {"choice": "="}, 1)
    rate_all(client, "scores", {"score-0": "9", "score-3": "0"}, 2)
    rows = rate_all(client, "scores", {"score-0": "2", "score-3": "5"}, 2)
    Path("prompts.jsonl").write_text('{"prompt": "Hello"}\n{"prompt": "Bye"}\n')
    lines = (
        "name: r", "data: {prompts: {a: {file: prompts.jsonl}}, holdout_fraction: 0.5}",
        "policy: {path: model}",
        "objectives: {politeness: {}, safety: {}}", "algorithm: {name: grpo, max_new_tokens: 8}",
        recipe_lines(file, rows),
    )  # fmt: skip
    Path("r.yaml").write_text("\n".join(lines))
    reward = load_data(resolve(load_config("r.yaml"))).reward
    records = [*reward.train, *reward.test]
    ratings = [record for record in records if isinstance(record, Rating)]
    pairs = [record for record in records if isinstance(record, PreferencePair)]
    labels = [tuple(rating.labels[name] for name in ("politeness", "safety")) for rating in ratings]
    assert sorted(labels) == [(2, 5), (2, 5), (9, 0), (9, 0)]
    assert (len(pairs), {pair.objective for pair in pairs}) == (3, {"politeness"})
    assert {record.prompt.messages[0].role for record in records} == {"user"}


@pytest.mark.parametrize(
    "change",
    [
        {"token": "wrong"},
        {"id": "wrong"},
        {"choice": "3"},
        {"choice": ""},
        {"objective": "other"},
        {"a": "[]"},
    ],
)
def test_a_wrong_answer_is_refused_and_writes_nothing(runs, tmp_path, change):
    client = Client(runs, ratings=tmp_path / "r.jsonl")
    page = client.get("/rate").text
    fields = {
        name: values(page, name)[0].replace("&#34;", '"')
        for name in ("a", "b", "id", "at", "mode", "objective")
    }
    assert client.post("/rate", **({"choice": "1"} | fields | change)).status in (400, 403)
    assert not (tmp_path / "r.jsonl").exists()


@pytest.mark.parametrize(
    "headers",
    [{"origin": "http://evil.example"}, {"origin": "null"}, {"origin": None}, {"cookie": None},
     {"origin": "null", "sec-fetch-site": "cross-site"}, {"origin": f"https://{HOST}"}],
)  # fmt: skip
def test_another_site_cannot_rate(runs, tmp_path, headers):
    client = Client(runs, ratings=tmp_path / "r.jsonl")
    assert client.post("/rate", headers, choice="1").status == 403
    own = client.post("/rate", {"origin": "null", "sec-fetch-site": "same-origin"}, choice="1")
    assert own.status == 400  # it came through the door; only the answer is incomplete


def test_the_same_form_twice_is_one_answer(runs, tmp_path):
    client = Client(runs, ratings=tmp_path / "r.jsonl")
    page = client.get("/rate").text
    fields = {
        name: values(page, name)[0].replace("&#34;", '"')
        for name in ("a", "b", "id", "at", "mode", "objective")
    }
    for choice in CHOICES:
        assert client.post("/rate", **fields, choice=choice).status == 303
    (row,) = client.viewer.ratings.rows()
    assert row["type"] == "pair"
    assert client.post("/rate", **fields, choice="undo").status == 303
    assert client.viewer.ratings.rows() == []
    assert client.post("/rate", **fields, choice="undo").status == 400


def test_the_order_is_of_the_seed_and_blind(runs, tmp_path):
    folder = find_folders([runs])["helpful"]
    evaluation = read_evaluations(folder)[0]
    origins = Source(folder, evaluation, "before"), Source(folder, evaluation, "after")
    pairs, _ = pairs_of_sources(TableCache(), *origins)
    one, again, other = (items(pairs, origins, "pairs", "safety", seed)[0] for seed in (0, 0, 1))
    assert one == again
    assert [item.id for item in one] != [item.id for item in other]
    assert sorted(item.id for item in one) == sorted(item.id for item in other)
    assert 10 <= sum(item.origins[0].endswith("after") for item in one) <= 30
    swapped, _ = items(pairs, origins, "pairs", "safety", 0)
    assert {item.id for item in swapped} == {item.id for item in one}
    page = Client(runs, ratings=tmp_path / "r.jsonl").get("/rate").text
    form = page[page.index('<form id="rating"') : page.index("</form>", page.index('<form id="rating"'))]
    texts = re.sub(r'(value|href)="[^"]*"', "", form)
    assert "helpful" not in texts
    assert "final" not in texts


def test_equal_empty_and_unreadable_pairs_are_left_out(runs):
    from dataclasses import replace

    folder = find_folders([runs])["helpful"]
    evaluation = read_evaluations(folder)[0]
    origins = Source(folder, evaluation, "before"), Source(folder, evaluation, "after")
    pairs, _ = pairs_of_sources(TableCache(), *origins)
    first = pairs[0]
    odd = [
        replace(first, second=first.first),
        replace(first, second=replace(first.second, text=" ")),
        replace(first, messages=()),
    ]
    todo, left_out = items(odd, origins, "pairs", "safety", 0)
    assert todo == []
    assert sum(left_out.values()) == 3


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"prompt": "Hello"}, (("user", "Hello"),)),
        ({"prompt": "user: is a word\nuser"}, (("user", "user: is a word\nuser"),)),
        ({"prompt": "user: Hi\nassistant: Yes?\nuser: Bye"}, ()),
        ({"prompt": "x", "messages": '[{"role": "system", "content": "a"}]'}, (("system", "a"),)),
        ({"prompt": "x", "messages": None}, ()),
        ({"prompt": "x", "messages": "["}, ()),
        ({"prompt": "x", "messages": "[1]"}, ()),
    ],
)  # fmt: skip
def test_only_turns_that_are_known_are_rated(tmp_path, row, turns):
    folder = make_run(tmp_path / "a", steps=1, evaluated=False)
    (folder / "eval" / "final").mkdir(parents=True)
    table = {key: [value] for key, value in (row | {"before": "b", "after": "a"}).items()}
    pq.write_table(pa.table(table), folder / "eval" / "final" / "generations.parquet")
    (found,) = find_folders([tmp_path]).values()
    ((pair,), _) = pairs_of_evaluation(TableCache(), found, read_evaluations(found)[0])
    assert pair.messages == turns


def test_an_evaluation_keeps_the_turns_of_a_conversation():
    conversation = Prompt(messages=(Message("user", "Hi\nuser: no"), Message("assistant", "Yes?")))
    assert json.loads(_messages_json(conversation)) == [
        {"role": "user", "content": "Hi\nuser: no"},
        {"role": "assistant", "content": "Yes?"},
    ]
    assert _messages_json(Prompt(messages=(Message("user", "x", (("tool_calls", "[]"),)),))) is None


@pytest.mark.parametrize("text", ["5", "1-1", "5-1", "a-b", "1-10", "safety=", "=1-x", "-1-3"])
def test_what_is_no_scale_is_refused(text):
    with pytest.raises(ConfigError, match="is not a scale; fix"):
        parse_scales([text])


def test_scales_of_all_and_of_one():
    assert parse_scales(["0-4", "safety=0-1"]) == (Scale(0, 4), {"safety": Scale(0, 1)})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.csv", None, "unknown format"),
        ("runs/helpful/r.jsonl", None, "is inside the run"),
        ("runs/helpful/eval/r.jsonl", None, "is inside the run"),
        ("nowhere/r.jsonl", None, "there is no folder"),
        ("r.jsonl", "prompt,response\n", "r.jsonl:1: is not a rating"),
        ("r.jsonl", '{"a": 1}\n{"a": ', "r.jsonl:2: is not a rating"),
    ],
)
def test_a_file_that_must_not_be_appended_to_is_refused(tmp_path, name, content, message):
    make_run(tmp_path / "runs" / "helpful", steps=1, evaluated=False)
    (tmp_path / "runs" / "helpful" / "eval").mkdir()
    if content:
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        RatingsFile(tmp_path / name).check()


def test_ratings_are_added_to_what_is_there(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(
        '{"prompt": "a", "response": "b", "scores": {"safety": 1}}'
    )  # by hand, without a line feed
    file = RatingsFile(path)
    file.check()
    file.append({"type": "rating"})
    assert len(path.read_text().splitlines()) == 2
    assert file.undo()
    assert len(path.read_text().splitlines()) == 1


HOSTILE_ROWS = (
    {"id": ["a"]},
    {"type": "pair", "objective": "overall", "chosen_origin": {}, "rejected_origin": "x"},
    {"type": "tie", "objective": "overall", "origins": None},
    {"type": "tie", "objective": "overall", "origins": [[1]]},
    {"type": "rating", "scores": 3},
)


@pytest.mark.parametrize("row", HOSTILE_ROWS)
def test_a_row_that_is_no_answer_is_refused_at_the_start_and_left_out_later(runs, tmp_path, row):
    path = tmp_path / "r.jsonl"
    client = Client(runs, ratings=path)
    path.write_text(f"\n{json.dumps(row)}\n")
    with pytest.raises(ConfigError, match=r"r\.jsonl:2: is not a rating"):
        RatingsFile(path).check()
    assert client.get("/rate").status == 200


def test_a_file_of_ratings_that_became_unreadable_is_a_message(runs, tmp_path):
    client = Client(runs, ratings=tmp_path / "r.jsonl")
    (tmp_path / "r.jsonl").mkdir()
    answer = client.get("/rate")
    assert answer.status == 500
    assert "r.jsonl: cannot be read" in answer.text


def test_a_rating_that_does_not_reach_the_disk_is_taken_back(tmp_path, monkeypatch):
    file = RatingsFile(tmp_path / "r.jsonl")
    file.append({"id": "1"})

    def fsync(handle):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(ResourceError, match=r"r\.jsonl: cannot be written"):
        file.append({"id": "2"})
    assert [row["id"] for row in file.rows()] == ["1"]


def test_a_full_disk_leaves_no_half_rating(tmp_path, monkeypatch):
    file = RatingsFile(tmp_path / "r.jsonl")
    file.append({"type": "rating", "id": "1"})
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:5]))
    with pytest.raises(ResourceError, match=r"r\.jsonl: cannot be written"):
        file.append({"type": "rating", "id": "2"})
    assert [row["id"] for row in file.rows()] == ["1"]
    assert file.path.read_bytes().endswith(b"}\n")
