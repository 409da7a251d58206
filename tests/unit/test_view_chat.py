"""The chat page of `paretune view`: its models, the events of an answer, whose turn it is, and its errors."""

import json
import threading

import pytest

from paretune.core.errors import ConfigError
from paretune.view.answers import BROKEN, page_event
from paretune.view.conversation import BASE, Conversation, LoadChat
from support.asgi import Client
from support.fake_chat import ANSWERS, FakeChat, FakeModels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs with a trained policy, one without, and a model, as far as the page looks at them."""
    folder = tmp_path_factory.mktemp("chat") / "runs"
    for name in ("a/final", "b/final", "unfinished", "base"):
        (folder / name).mkdir(parents=True)
        if name != "unfinished":
            (folder / name / "config.json").write_text("{}")
    for run in ("a", "b", "unfinished"):
        (folder / run / "run.json").write_text('{"status": "done"}')
    (folder / "base" / "model.safetensors").touch()
    return folder


def ask(client, prompt="Hello", **fields):
    """The events of an answer."""
    given = {"a": "a", "b": "/base", "conversation": "1", "is_first": "yes"} | fields
    answer = client.post("/chat/answers", prompt=prompt, **given)
    return [json.loads(line) for line in answer.text.splitlines()]


def test_the_fakes_are_what_the_page_expects():
    assert isinstance(FakeChat(), Conversation)
    assert isinstance(FakeModels(), LoadChat)


def test_an_answer_comes_in_pieces_with_scores_and_arrows(folder):
    models = FakeModels()
    events = ask(Client(folder, models=models))
    assert [event["event"] for event in events[:2]] == ["state", "start"]
    assert events[0]["text"] == "Loading a and base of a. The first answer waits for it."
    assert "weights 2.5 MB, memory of the viewer" in events[1]["settings"]
    assert events[1]["notes"] == list(FakeChat.notes)
    for side, text in enumerate(ANSWERS):
        own = [event for event in events if event.get("side") == side]
        assert "".join(event["text"] for event in own if event["event"] == "text") == text
        assert [event["event"] for event in own[-2:]] == ["done", "scores"]
        assert own[-2]["truncated"] == (side == 1)
    rows = [event for event in events if event["event"] == "scores"]
    assert rows[0]["scorers"] == ["reward", "judge"]
    assert rows[0]["rows"] == [
        {"objective": "safety", "arrow": "↑", "words": "higher is better", "values": ["0.81", "0.50"]},
        {"objective": "length", "arrow": "→ 20", "words": "best at 20", "values": ["–", "not scored"]},
    ]
    assert rows[1]["rows"][0]["values"] == ["−1.00"]
    assert events[-1] == {"event": "end", "text": "Answered."}


def test_models_are_loaded_once_and_at_the_first_prompt(folder):
    models = FakeModels()
    client = Client(folder, models=models)
    client.get("/chat")
    assert models.loaded == []
    ask(client)
    assert ask(client, is_first="no")[0]["event"] == "start"
    ((first, device),) = models.loaded
    assert (first.first, first.second, first.rewards) == (str((folder / "a").resolve()), BASE, None)
    assert (first.llm_judges, device) == (False, "auto")
    ask(client, b="base", rewards="b", llm_judges="on")
    second, _ = models.loaded[1]
    assert (second.second, second.rewards) == tuple(str((folder / name).resolve()) for name in ("base", "b"))
    assert second.llm_judges


def test_settings_are_those_of_the_evaluation_unless_they_are_given(folder):
    chat = FakeChat()
    client = Client(folder, models=FakeModels(chat))
    ask(client, temperature="0.1", seed="3")
    assert chat.settings.temperature == 0.1
    ask(client, is_first="no")
    assert (chat.settings.temperature, chat.settings.seed) == (0.7, 1000)
    assert chat.configured[0] == {"temperature": 0.1, "seed": 3}


def test_a_conversation_goes_on_until_another_one_begins(folder):
    chat = FakeChat()
    client = Client(folder, models=FakeModels(chat))
    ask(client, "one")
    ask(client, "two", is_first="no")
    assert chat.prompts == ["one", "two"]
    ask(client, "three", conversation="2")
    assert chat.prompts == ["three"]
    (error,) = [event for event in ask(client, "four", is_first="no") if event["event"] == "error"]
    assert "fix: New conversation" in error["text"]
    assert chat.prompts == ["three"]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"prompt": " \r\n"}, "write a prompt first"),
        ({"prompt": "x" * 20_001}, "the limit is 20,000"),
        ({"a": "nowhere"}, "nowhere: there is no such run or model"),
        ({"b": "../a"}, "../a: there is no such run or model"),
        ({"rewards": "/etc"}, "/etc: there is no such run"),
        ({"a": "unfinished"}, "unfinished: there is no such run or model"),
        ({"a": "base"}, "base: is not a run, so its base is unknown; fix: "),
        ({"temperature": "hot"}, "temperature: hot is not a number"),
        ({"seed": "1.5"}, "seed: 1.5 is not a whole number"),
    ],
)
def test_a_question_that_cannot_be_asked_is_one_line(folder, fields, problem):
    models = FakeModels()
    (event,) = ask(Client(folder, models=models), **{"prompt": "Hello"} | fields)
    assert event["event"] == "error"
    assert problem in event["text"]
    assert models.loaded == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_errors_of_models_are_one_line_and_the_next_prompt_tries_again(folder):
    def load(models, device):
        raise outcomes.pop(0)

    outcomes = [
        ConfigError("a: the adapter\nis missing; fix: x"),
        KeyError("bug"),
        ConfigError("again"),
    ]
    client = Client(folder, models=load)
    texts = [ask(client)[-1] for _ in range(2)]
    assert texts[0] == {"event": "error", "text": "a: the adapter is missing; fix: x"}
    chat = FakeChat(error="the conversation fills its context; fix: begin a new conversation")
    assert ask(Client(folder, models=FakeModels(chat)))[-1]["text"] == chat.error
    assert ask(client)[-1]["text"] == "again"
    assert texts[1] == {"event": "error", "text": BROKEN}


def test_one_answer_at_a_time_and_a_page_that_is_left_ends_its_answer(folder):
    chat = FakeChat(pause=threading.Event())
    client = Client(folder, models=FakeModels(chat))
    first = ask(client, "first", leave=chat.paused)
    assert "end" not in [event["event"] for event in first]
    second = ask(
        client, "second", conversation="2", on_body=lambda text: "Waiting" in text and chat.pause.set()
    )
    assert chat.is_closed
    assert second[0]["text"].startswith("Waiting: another answer is being generated")
    assert second[-1]["text"] == "Answered."
    assert chat.prompts == ["second"]


def test_a_viewer_that_ends_waits_for_no_answer(folder):
    chat = FakeChat(pause=threading.Event())
    client = Client(folder, models=FakeModels(chat))
    thread = threading.Thread(target=lambda: ask(client))
    thread.start()
    assert chat.paused.wait(10)
    threading.Timer(0.05, chat.pause.set).start()
    client.viewer.answers.close()
    assert chat.is_closed
    thread.join(10)


@pytest.mark.parametrize("change", [{"token": "wrong"}, {"headers": {"origin": "http://evil.example"}}])
def test_only_forms_of_these_pages_ask(folder, change):
    models = FakeModels()
    assert Client(folder, models=models).post("/chat/answers", prompt="x", a="a", **change).status == 403
    assert models.loaded == []


def test_the_page_names_what_there_is_to_talk_to(folder, tmp_path):
    page = Client(folder).get("/chat").text
    assert "a and base of a" in page
    assert page.count("<option>unfinished</option>") == 1, "its reward may score, and it has no policy"
    assert page.count("<option>base</option>") == 2
    assert 'maxlength="20000"' in page
    assert "No run" not in page
    (tmp_path / "run.json").write_text("{}")
    assert "There is no model to talk to" in Client(tmp_path).get("/chat").text
    assert "there is no such run or model" in Client(folder).get("/chat", a="<b>").text


def test_hostile_texts_of_models_are_written_out():
    event = {"event": "text", "side": 0, "model": "m", "text": "a\x1b[2J\u202e"}
    assert page_event(event, {})["text"] == "a⟨U+001B⟩[2J⟨U+202E⟩"
