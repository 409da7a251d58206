"""Conversations: the answers of the evaluation, their events, scores and commands."""

import json
import shutil
from contextlib import closing
from functools import cache
from io import StringIO
from types import SimpleNamespace

import pytest
import torch
import yaml
from rich.console import Console

import paretune as pt
from paretune.chat import terminal
from paretune.chat.scoring import ChatScorer
from paretune.chat.session import Chat, ChatEvent
from paretune.chat.streaming import ChatSettings, ChatSide
from paretune.core.errors import ConfigError, DataError, ScoringError, WiringError
from paretune.data.records import Message, Prompt
from paretune.evaluate.generate import generate
from paretune.models.load import as_policy_model
from paretune.models.save import save_model
from paretune.rollout.sampler import LocalSampler, encode_prompts
from support.tiny_models import tiny_model, tiny_tokenizer

PROMPTS = ("item 3", "item 11 please", "and 5")


@cache
def policy(seed, kind="llama", **sizes):
    tokenizer = tiny_tokenizer()
    model = tiny_model(kind, len(tokenizer), seed=seed, width=16, layers=1, heads=2, initial=0.5, **sizes)
    return as_policy_model(model, tokenizer)


class Words:
    """Scores the number of characters, and nothing of an answer that begins with what it fails at."""

    names = ("long",)
    fails = False

    def __call__(self, samples):
        if self.fails:
            raise ScoringError("all failed")
        return torch.tensor([[float(len(sample.response))] for sample in samples])


def chat_of(*policies, scorers=(), **settings):
    sides = [ChatSide(name=name, policy=each) for name, each in zip("ab", policies, strict=False)]
    return Chat(sides, scorers, ChatSettings(**{"max_new_tokens": 8, **settings}))


def answers(events):
    done = [event for event in events if event.event == "done"]
    return [event.text for event in sorted(done, key=lambda event: event.side)]


@pytest.mark.parametrize("kinds", [("llama", "llama"), ("llama", "gpt2")])
def test_answers_are_those_of_the_evaluation_for_the_same_seed(kinds):
    policies = [policy(i, kind) for i, kind in enumerate(kinds)]
    records = [Prompt(messages=(Message("user", text),)) for text in PROMPTS]
    expected = []
    for each in policies:
        sampled = generate(LocalSampler(each, ()), records, num_generations=2, max_new_tokens=8, seed=7)
        expected.append([sample.response for sample in sampled.samples])
    chat = chat_of(*policies, seed=7)
    for i, text in enumerate(PROMPTS):
        chat.clear(prompt_index=i)
        assert answers(chat.stream(text)) == [own[2 * i] for own in expected]
        assert answers(chat.retry()) == [own[2 * i + 1] for own in expected]


def test_greedy_answers_are_those_of_transformers():
    each = policy(3)
    (ids,) = encode_prompts(each, [Prompt(messages=(Message("user", "item 3"),))], max_new_tokens=8)
    settings = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0}
    rows = each.model.generate(torch.tensor([ids]), eos_token_id=list(each.eos_ids), **settings)
    expected = rows[0, len(ids) :]
    chat = chat_of(each, temperature=0.0)
    (text,) = answers(chat.stream("item 3"))
    assert text == each.tokenizer.decode(expected, skip_special_tokens=True)
    assert answers(chat.retry()) == [text]


def test_pieces_make_up_the_answer_and_scores_come_last():
    events = list(chat_of(policy(0), policy(1), scorers=[ChatScorer("reward", Words())]).stream("item 3"))
    for side in (0, 1):
        own = [event for event in events if event.side == side]
        assert [event.event for event in own][-2:] == ["done", "scores"]
        done, scores = own[-2:]
        assert "".join(event.text for event in own[:-2]) == done.text
        assert scores.scores == {"reward": {"long": float(len(done.text))}}
    assert [event.event for event in events[-2:]] == ["scores", "scores"]
    first_done = next(i for i, event in enumerate(events) if event.event == "done")
    assert {event.side for event in events[:first_done]} == {0, 1}, "the answers come at the same time"


def test_a_scorer_that_fails_leaves_answers_unscored():
    scorer = Words()
    scorer.fails = True
    events = list(chat_of(policy(0), scorers=[ChatScorer("reward", scorer)]).stream("item 3"))
    assert events[-1].scores == {"reward": {"long": None}}
    assert terminal.score_lines(events[-1].scores) == ["reward  long not scored"]


def test_each_model_reads_its_own_answers():
    chat = chat_of(policy(0), policy(1))
    first = answers(chat.stream("item 3"))
    assert first[0] != first[1]
    prompts = [chat._prompt(side, "again").messages for side in (0, 1)]
    for own, text in zip(prompts, first, strict=True):
        assert [message.content for message in own] == ["item 3", text, "again"]
    list(chat.stream("again"))
    chat.clear()
    assert chat.num_turns == 0
    assert answers(chat.stream("item 3")) == first, "a new conversation begins with the same numbers"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["item 3", "", "caf\udce9"], r"line 3: the prompt is not valid UTF-8 at character 4; fix: .*iconv"),
        (["\udcff"], "line 1: the prompt is not valid UTF-8 at character 1"),
        (["item 3", "item " * 50], r"line 2: a: the prompt fills its context of 24 tokens; fix: shorten it"),
        (["item 3", "/nothing"], "line 2: /nothing: there is no such command"),
    ],
)
def test_a_line_of_a_pipe_that_cannot_be_answered_is_named(lines, words):
    chat = chat_of(policy(0, context=24))
    output = StringIO()
    with pytest.raises((DataError, ConfigError), match=words):
        terminal.run_lines(chat, iter(lines), output, as_json=True)
    assert output.getvalue().count('"done"') == (lines[0] == "item 3"), "the lines before are answered"


def test_an_answer_that_is_not_read_to_its_end_stays_as_far_as_it_came():
    chat = chat_of(policy(0), policy(1))
    with closing(chat.stream("item 3")) as events:
        piece = next(events)
    assert chat.num_turns == 1
    assert chat._prompt(piece.side, "x").messages[1].content == piece.text
    assert len(answers(chat.stream("and 5"))) == 2


def test_a_conversation_that_fills_the_context_is_refused():
    chat = chat_of(policy(0, context=24), max_new_tokens=100)
    list(chat.stream("item 3"))
    with pytest.raises(DataError, match=r"a: the conversation fills its context of 24 tokens; fix: .*/clear"):
        chat.stream("item 5 and 6 and 7 and 8 and 9")
    chat.clear()
    assert answers(chat.stream("item 3"))


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1.0), ("temperature", float("nan")), ("seed", -1), ("max_new_tokens", 0)],
)
def test_settings_out_of_range(name, value):
    with pytest.raises(WiringError, match=f"{name}: "):
        chat_of(policy(0)).configure(**{name: value})


def lines_of(chat, *lines, as_json=False):
    stream = StringIO()
    code = terminal.run_lines(chat, iter(f"{line}\n" for line in lines), stream, as_json=as_json)
    return code, stream.getvalue()


def test_prompts_of_a_pipe_are_conversations_of_their_own():
    chat = chat_of(policy(0), policy(1), seed=7, scorers=[ChatScorer("reward", Words())])
    code, text = lines_of(chat, *PROMPTS, "", "/quit", "not read")
    assert code == 0
    assert [line for line in text.splitlines() if line.startswith("> ")] == [f"> {p}" for p in PROMPTS]
    chat.clear(prompt_index=2)
    for name, answer in zip("ab", answers(chat.stream(PROMPTS[2])), strict=True):
        assert f"[{name}] {answer}" in text
    assert "\x1b" not in text


def test_json_lines_of_a_pipe():
    code, text = lines_of(chat_of(policy(0)), "item 3", "/seed 5", "//retry", "/retry", as_json=True)
    events = [json.loads(line) for line in text.splitlines()]
    assert code == 0
    assert [e["text"] for e in events if e["event"] == "prompt"] == ["item 3", "/retry", "/retry"]
    done = [e for e in events if e["event"] == "done"]
    assert len(done) == 3
    assert set(done[0]) == {"event", "side", "model", "text", "num_tokens", "truncated"}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("/sed 3", "/sed: there is no such command; fix: one of /clear, /retry, /seed"),
        ("/seed", "/seed: needs a number"),
        ("/seed x", "/seed: x is not a whole number"),
        ("/seed -1", "seed: -1 is too small"),
        ("/temperature hot", "/temperature: hot is not a number"),
        ("/temperature -1", "temperature: -1 is not a number from 0"),
        ("/clear all", "/clear: takes no value"),
        ("/retry", "there is no prompt to answer again"),
    ],
)
def test_wrong_commands(line, problem):
    with pytest.raises(ConfigError, match="^line 1: " + problem.replace("/", r"\/")):
        lines_of(chat_of(policy(0)), line)


def screen(monkeypatch, chat, width, *lines):
    """What a terminal of this width shows, without its control characters."""
    entered = iter(lines)

    def read(_):
        line = next(entered, EOFError)
        if isinstance(line, type):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)
    stream = StringIO()
    console = Console(file=stream, width=width, height=30, highlight=False)
    return terminal._Terminal(chat, console).run(), stream.getvalue()


@pytest.mark.parametrize(("width", "beside"), [(100, True), (80, True), (79, False), (30, False)])
def test_answers_are_beside_each_other_where_there_is_room(monkeypatch, width, beside):
    chat = chat_of(policy(0), policy(1), scorers=[ChatScorer("reward", Words())])
    code, text = screen(monkeypatch, chat, width, "item 3", "/temperature 0", "/nothing", "/retry")
    assert code == 0
    lines = text.partition("most probable")[0].splitlines()
    assert any(line.split() == ["a", "b"] for line in lines) == beside
    assert max(map(len, lines)) <= width or width < 50
    assert "reward  long" in text
    assert "/nothing: there is no such command" in text
    assert "at temperature 0 the answer is always the same" in text


def test_an_interrupt_ends_an_answer_and_a_second_one_the_chat(monkeypatch):
    chat = chat_of(policy(0))
    stream_once = chat.stream

    def interrupted(text):
        events = stream_once(text)
        yield next(events)
        events.close()
        raise KeyboardInterrupt

    chat.stream = interrupted
    code, text = screen(monkeypatch, chat, 80, KeyboardInterrupt, "item 3", KeyboardInterrupt)
    assert code == 130
    assert "Ctrl-C again, or /quit, ends the chat" in text
    assert "stopped; Ctrl-C again ends the chat" in text
    assert chat.num_turns == 1


def test_control_characters_of_answers_and_names_are_spelled_out():
    chat = chat_of(policy(0))
    chat.sides = (SimpleNamespace(name="evil\x1b]0;x\x07"),)
    chat.last_prompt = "a\x1b[2J"
    done = ChatEvent(side=0, model="evil", event="done", text="b\u202e", truncated=True)
    text = terminal._plain_text(chat, [done])
    assert not {"\x1b", "\x07", "\u202e"} & set(text)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A finished run as far as a chat reads it: two policies, a rule as reward and others as judges."""
    folder, tokenizer = tmp_path_factory.mktemp("chat"), tiny_tokenizer()
    for seed, name in enumerate(("base", "run/final")):
        save_model(
            tiny_model("llama", len(tokenizer), seed=seed, width=16, layers=1, heads=2),
            tokenizer,
            folder / name,
        )
    (folder / "columns.py").write_text(
        "def exact(completions, answer, **_):\n    return [0.0 for _ in completions]\n"
    )
    (folder / "rubric.yaml").write_text("criteria: {polite: {text: Is it polite, levels: {no: 0, yes: 1}}}\n")
    values = {
        "name": "mine",
        "data": {"prompts": {"main": {"file": "gone.jsonl"}}, "holdout_fraction": 0.5},
        "policy": {"path": str(folder / "base")},
        "algorithm": {"name": "grpo", "max_new_tokens": 8},
        "scorers": {
            "brief": {"type": "rule", "rule": "length", "max": 2, "unit": "characters"},
            "right": {"type": "python", "function": f"{folder / 'columns.py'}:exact"},
        },
        "objectives": {"brief": {}, "right": {}},
        "judges": {
            "short": {"type": "rule", "rule": "length", "target": 1, "objective": "brief"},
            "remote": {
                "type": "llm_judge", "base_url": "http://127.0.0.1:9/v1", "model": "m",
                "rubric": str(folder / "rubric.yaml"),
            },
        },
        "evaluate": {"temperature": 0.7, "seed": 5},
    }  # fmt: skip
    (folder / "run" / "config").mkdir()
    (folder / "run" / "config" / "resolved.yaml").write_text(yaml.safe_dump(values))
    (folder / "run" / "run.json").write_text('{"status": "done"}')
    return folder / "run"


def test_a_run_is_compared_with_its_base_by_its_own_scorers(run_dir):
    chat = pt.load_chat(run_dir)
    assert [side.name for side in chat.sides] == [str(run_dir), "base"]
    assert chat.settings == ChatSettings(temperature=0.7, max_new_tokens=8, seed=5)
    scores = [event.scores for event in chat.stream("item 3") if event.event == "scores"]
    assert [{name: list(own) for name, own in each.items()} for each in scores] == [
        {"reward": ["brief"], "short": ["brief"]}
    ] * 2
    assert [note.partition(": ")[0] for note in chat.notes] == [
        "scorers.right does not score here",
        "judges.remote does not score here",
    ]
    assert "answer" in chat.notes[0]
    assert "http://127.0.0.1:9/v1" in chat.notes[1]


def test_two_folders_are_scored_by_a_run_that_is_named(run_dir):
    base = run_dir.parent / "base"
    assert [side.name for side in pt.load_chat(base, run_dir / "final").sides] == [
        str(base),
        str(run_dir / "final"),
    ]
    chat = pt.load_chat(base, base, rewards=run_dir)
    assert [side.name for side in chat.sides] == [str(base), f"{base} (2)"]
    assert [each.name for each in chat.scorers] == ["reward", "short"]
    assert len(pt.load_chat(base).sides) == 1


def test_errors_at_the_door(run_dir, tmp_path):
    base = run_dir.parent / "base"
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run_dir, unfinished, ignore=shutil.ignore_patterns("final"))
    adapted = tmp_path / "adapted"
    shutil.copytree(run_dir, adapted)
    recipe = yaml.safe_load((adapted / "config" / "resolved.yaml").read_text())
    recipe["policy"]["lora"] = {"r": 2}
    (adapted / "config" / "resolved.yaml").write_text(yaml.safe_dump(recipe))
    for arguments, problem in (
        ({"model": unfinished}, "this run has no trained policy yet; fix: resume the run first"),
        ({"model": adapted}, "final/adapter: the adapter of the run is missing; fix: "),
        ({"model": base, "vs": "base"}, "is not a run folder, so its base is unknown; fix: "),
        ({"model": base, "rewards": base}, "is not a run folder; fix: name one"),
        ({"model": base, "llm_judges": True}, "--llm-judges has no effect without a run"),
        ({"model": tmp_path / "nowhere"}, "no such folder"),
    ):
        with pytest.raises((ConfigError, DataError), match=problem):
            pt.load_chat(**arguments)


def test_the_command_wants_one_choice_of_models(capsys):
    from paretune.cli import main

    for arguments in ([], ["a", "--models", "b", "c"], ["--models", "b", "c", "--vs", "d"]):
        with pytest.raises(SystemExit) as end:
            main(["chat", *arguments])
        assert end.value.code == 2
        assert "; fix: paretune chat RUN [--vs MODEL], or --models A B" in capsys.readouterr().err
