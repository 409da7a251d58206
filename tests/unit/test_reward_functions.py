"""Python functions as scorers: those of TRL, verl and OpenRLHF, and all that a function can do wrong."""

import asyncio
import math
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from paretune.core.errors import ConfigError, ScoringError
from paretune.data.records import Message, Prompt, Sample
from paretune.reward.failures import FallibleScorer, GuardedScorer
from paretune.reward.function_results import read_batch, read_row
from paretune.reward.function_signatures import check_arguments, check_columns, load_function
from paretune.reward.functions import PythonScorer, TrainerState
from paretune.reward.scorers import Scorer, validated_scores

NAN = math.nan


def make_sample(response="yes", question="why?", ids=(5, 6), **columns):
    messages = (Message("system", "be kind"), Message("user", question, (("tools", "[1]"),)))
    prompt = Prompt(messages=messages, id="p1", category="safe", columns=columns)
    return Sample(prompt=prompt, response=response, response_ids=ids)


def make_scorer(function, names=("quality",), signature="trl", arguments=None, **options):
    return PythonScorer(load_function(function, signature, arguments), names, **options)


def scores(function, samples=None, **options):
    """Columns of scores as lists, and the reasons of failures."""
    scorer = make_scorer(function, **options)
    rows = validated_scores(scorer, samples or [make_sample("a"), make_sample("bcd")])
    return rows.tolist(), dict(scorer.failures.reasons)


def write(folder: Path, text: str, name="rewards.py") -> str:
    (folder / name).write_text(text)
    return f"{folder / name}:reward"


def same(left, right):
    assert torch.allclose(torch.tensor(left), torch.tensor(right), equal_nan=True)


# --- What functions get ---------------------------------------------------------------------------------


def test_trl_function_gets_messages_ids_columns_and_state():
    seen = {}

    def reward(prompts, completions, completion_ids, trainer_state, answer, **kwargs):
        seen.update(locals())
        return [1.0] * len(completions)

    scorer = make_scorer(reward)
    scorer.trainer_state = TrainerState(global_step=3, max_steps=9)
    assert isinstance(scorer, Scorer)
    assert isinstance(scorer, FallibleScorer)
    scorer([make_sample("a", answer="1"), make_sample("b", ids=(7,), answer="2", level=2)])
    assert seen["prompts"][0] == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "why?", "tools": [1]},
    ]
    assert seen["completions"][1] == [{"role": "assistant", "content": "b"}]
    assert seen["completion_ids"] == [[5, 6], [7]]
    assert seen["answer"] == ["1", "2"]
    assert seen["kwargs"]["level"] == [None, 2]
    assert seen["kwargs"]["category"] == ["safe", "safe"]
    assert seen["trainer_state"].global_step == 3


def test_text_input():
    def reward(prompts, completions):
        return [float(f"{p}|{c}" == "be kind\nwhy?|a") for p, c in zip(prompts, completions, strict=True)]

    assert scores(reward, input="text") == ([[1.0], [0.0]], {})
    template = {"input": "text", "prompt_text": lambda prompt: "be kind\nwhy?|a"}
    assert scores(lambda prompts, **_: [float(len(p)) for p in prompts], **template) == ([[14.0], [14.0]], {})


def test_a_function_without_kwargs_gets_what_it_names():
    assert scores(lambda completion_ids: [len(ids) for ids in completion_ids]) == ([[2.0], [2.0]], {})


def test_ids_of_responses_that_were_not_sampled_here():
    def count(completion_ids, **kwargs):
        return [len(ids) for ids in completion_ids]

    samples = [make_sample("a b c", ids=()), make_sample("", ids=())]
    assert scores(count, samples, tokenize=lambda text: [1] * len(text.split())) == ([[3.0], [0.0]], {})
    rows, reasons = scores(count, samples)
    same(rows, [[NAN], [NAN]])
    assert reasons == {"ValueError: the responses have no token ids, since they were not sampled here": 2}
    assert scores(lambda **kwargs: [float("completion_ids" in kwargs)] * 2, samples) == ([[0.0], [0.0]], {})


def test_a_function_may_change_its_arguments():
    def reward(prompts, completions, completion_ids, answer, limits, trainer_state, **kwargs):
        prompts[0].clear()
        completions[0][0]["content"] = ""
        completion_ids[0].clear()
        answer[0].append(1)
        limits["max"] += 1
        trainer_state.global_step += 1
        return [float(len(answer[0]) + len(answer[1])), float(limits["max"])]

    answer = ["x"]
    samples = [make_sample("a", answer=answer), make_sample("b", answer=answer)]
    scorer = make_scorer(reward, arguments={"limits": {"max": 5}})
    for _ in range(2):
        assert scorer(samples).tolist() == [[3.0], [6.0]]
    assert answer == ["x"]
    assert samples[0] == make_sample("a", answer=answer)


def test_no_samples_no_call():
    assert make_scorer(lambda **_: 1 / 0, names=("a", "b"))([]).shape == (0, 2)


# --- What functions return ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        [1, 0.5],
        (1, 0.5),
        np.array([1, 0.5]),
        torch.tensor([1, 0.5]),
        [np.float64(1), torch.tensor(0.5)],
        [True, Fraction(1, 2)],
        {"quality": [1, 0.5]},
        {"rewards": torch.tensor([1, 0.5])},
        [{"quality": 1}, {"score": 0.5}],
        [{"reward_components": {"quality": 1}}, SimpleNamespace(reward_components={}, reward=0.5)],
        SimpleNamespace(reward_components={"quality": np.array([1, 0.5])}),
    ],
)
def test_one_objective(value):
    assert scores(lambda completions: value) == ([[1.0], [0.5]], {})


@pytest.mark.parametrize(
    "value",
    [
        {"safety": [1, None], "humor": torch.tensor([0.25, 2])},
        [{"safety": 1, "humor": 0.25, "other": "x"}, {"safety": None, "humor": 2}],
        [SimpleNamespace(reward_components={"humor": 0.25, "safety": 1}), {"safety": None, "humor": 2}],
        SimpleNamespace(reward_components={"safety": (1, None), "humor": [0.25, 2.0]}),
    ],
)
def test_several_objectives_in_one_call(value):
    rows, reasons = scores(lambda completions: value, names=("safety", "humor"))
    same(rows, [[1.0, 0.25], [NAN, 2.0]])
    assert reasons == {}


def test_none_is_not_applicable_and_no_failure():
    rows, reasons = scores(lambda completions: [None, 2])
    same(rows, [[NAN], [2.0]])
    assert reasons == {}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "returned None; expected a list with one score per response"),
        (0.5, "returned a value of type float; expected a list with one score per response"),
        ("ab", "returned a value of type str; expected a list with one score per response"),
        (torch.tensor(1.0), "returned a value of type Tensor; expected a list with one score per response"),
        ([1.0], "returned 1 scores for 2 responses"),
        (torch.ones(3), "returned 3 scores for 2 responses"),
        ({"quality": [1.0]}, "returned 1 scores for 2 responses"),
        ({"qualty": [1, 2]}, 'returned no "quality", but qualty; None means that a response has no score'),
        (["1", "2"], "returned a value of type str as a score; expected a number or None"),
        (torch.ones(2, 1), "returned a value of type list as a score; expected a number or None"),
        ([1j, 1j], "returned a value of type complex as a score; expected a number or None"),
        ([math.nan] * 2, "returned NaN; None means that a response has no score"),
        ([math.inf, -math.inf], "returned an infinite score"),
        ([1e39, 10**400], "returned an infinite score"),
    ],
)
def test_wrong_results_are_nan_with_a_reason(value, reason):
    rows, reasons = scores(lambda completions: value)
    same(rows, [[NAN], [NAN]])
    assert reasons == {reason: 2}


def test_a_wrong_entry_fails_its_row_and_objective_only():
    assert read_row({"a": 1, "b": "x"}, ("a", "b")).scores[0] == 1.0
    rows = read_batch([Decimal("0.25"), Fraction(1, 2), Decimal("NaN"), Decimal("sNaN")], ("a",), 4)
    assert [row.scores[0] for row in rows[:2]] == [0.25, 0.5]
    assert [row.failure[:12] for row in rows] == ["", "", "returned NaN", "returned NaN"]
    rows = read_batch([1.0, "x", None], ("a",), 3)
    assert [row.failure[:8] for row in rows] == ["", "returned", ""]
    missing = read_row({"a": 1}, ("a", "b"))
    assert missing.scores[0] == 1.0
    assert missing.failure.startswith('returned no "b", but a;')
    assert read_row(1.0, ("a", "b")).failure.endswith("expected a dict of a, b")


# --- Functions that fail or hang ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise ValueError('no number found')", "ValueError: no number found (rewards.py:3)"),
        ("return 1 / 0", "ZeroDivisionError: division by zero (rewards.py:3)"),
        ("raise SystemExit(3)", "SystemExit: 3 (rewards.py:3)"),
        ("raise TimeoutError", "TimeoutError (rewards.py:3)"),
        (
            "import json; json.loads('{')",
            "JSONDecodeError: Expecting property name enclosed in double quotes",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize("timeout", [5.0, None])
def test_a_function_that_raises(tmp_path, kind, body, reason, timeout):
    reference = write(tmp_path, f"#\n{kind} reward(completions, **kwargs):\n    {body}\n")
    rows, reasons = scores(reference, timeout=timeout)
    same(rows, [[NAN], [NAN]])
    assert list(reasons.values()) == [2]
    assert next(iter(reasons)).startswith(reason)


def test_functions_that_use_signals_are_told_how():
    def reward(completions):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        return [1.0] * len(completions)

    (reason,) = scores(reward)[1]
    assert "fix: timeout: null calls the function in the main thread" in reason
    assert scores(reward, timeout=None) == ([[1.0], [1.0]], {})


def test_an_interrupt_of_the_function_is_an_error():
    def reward(completions):
        raise KeyboardInterrupt

    scorer = make_scorer(reward)
    for _ in range(2):
        assert scorer([make_sample()]).isnan().all()
    assert [reason[:17] for reason in scorer.failures.reasons] == ["KeyboardInterrupt"]


def test_long_messages_are_cut():
    def reward(completions):
        raise ValueError("x" * 10_000 + "\nsecond line")

    ((reason, _),) = scores(reward)[1].items()
    assert len(reason) < 260


def test_a_call_that_hangs_is_given_up():
    release = threading.Event()

    def reward(completions):
        if completions[0][0]["content"] == "hang":
            release.wait(30)
        return [1.0] * len(completions)

    scorer = make_scorer(reward, timeout=0.05)
    start = time.monotonic()
    assert scorer([make_sample("hang")]).isnan().all()
    assert time.monotonic() - start < 5
    assert scorer([make_sample("a")]).tolist() == [[1.0]]
    assert scorer.failures.reasons == {"timeout": 1}
    assert scorer.failures.rate == 0.5
    release.set()


def test_too_many_hanging_calls_stop_the_run():
    release = threading.Event()
    scorer = make_scorer(lambda completions: release.wait(30), timeout=0.01)
    for _ in range(3):
        scorer([make_sample()])
    with pytest.raises(ScoringError, match=r"4 calls did not return within 0\.01 s"):
        scorer([make_sample()])
    release.set()


@pytest.mark.parametrize("pause", ["await asyncio.sleep(30)", "time.sleep(0.3)"])
def test_a_coroutine_that_hangs(tmp_path, pause, monkeypatch):
    monkeypatch.setattr("paretune.reward.function_calls._GRACE_SECONDS", 0.05)
    code = f"import asyncio, time\nasync def reward(completions):\n    {pause}\n    return [1.0]\n"
    assert scores(write(tmp_path, code), [make_sample()], timeout=0.05)[1] == {"timeout": 1}


def test_a_hanging_call_does_not_keep_the_process():
    code = (
        "import time\nfrom paretune.reward.function_calls import CallThread\n"
        "a = CallThread().attempt_all([lambda: time.sleep(60)], 0.01, concurrent=False)\n"
        "print(type(a[0].error).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=True
    )
    assert done.stdout == "CallTimeout\n"


def test_calls_of_one_function_share_their_thread_and_loop():
    async def reward(completions):
        loops.add(id(asyncio.get_running_loop()))
        threads.add(threading.get_ident())
        return [1.0] * len(completions)

    loops, threads = set(), set()
    scorer = make_scorer(reward)
    for _ in range(3):
        scorer([make_sample()])
    assert len(loops) == len(threads) == 1


def test_coroutines_are_found_behind_partials_and_objects():
    class Reward:
        async def __call__(self, completions, bonus=0.0):
            return [bonus + 1.0] * len(completions)

    async def plain(completions, bonus):
        return [bonus] * len(completions)

    assert scores(Reward()) == ([[1.0], [1.0]], {})
    assert scores(partial(plain, bonus=2.0)) == ([[2.0], [2.0]], {})
    assert scores(lambda completions: plain(completions, 3.0)) == ([[3.0], [3.0]], {})


@pytest.mark.parametrize("timeout", [5.0, None])
def test_functions_may_run_coroutines_themselves(timeout):
    async def score():
        await asyncio.sleep(0)
        return 1.0

    def by_run(completions):
        return [asyncio.run(score()) for _ in completions]

    def by_loop(completions):
        return [asyncio.get_event_loop().run_until_complete(score()) for _ in completions]

    assert scores(by_run, timeout=timeout) == ([[1.0], [1.0]], {})
    if timeout:
        assert scores(by_loop, timeout=timeout) == ([[1.0], [1.0]], {})


def test_without_timeout_the_call_is_made_in_the_calling_thread():
    here = threading.get_ident()
    assert scores(lambda completions: [threading.get_ident() == here] * 2, timeout=None)[0] == [[1.0], [1.0]]
    assert scores(lambda completions: [threading.get_ident() == here] * 2)[0] == [[0.0], [0.0]]


# --- What functions log ---------------------------------------------------------------------------------


def test_log_extra_and_log_metric():
    def reward(completions, log_extra=None, log_metric=None, **kwargs):
        log_extra("found", [c[0]["content"] for c in completions])
        log_metric("accuracy", 0.5)
        log_metric("accuracy", torch.tensor(1.0))
        return [1.0] * len(completions)

    scorer = make_scorer(reward)
    scorer([make_sample("a"), make_sample("b")])
    assert scorer.metrics == {"accuracy": 0.75}
    assert scorer.extra_columns == {"found": ["a", "b"]}
    scorer([])
    assert scorer.metrics == {}


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (lambda e, m: e("x", [1]), 'ValueError: log_extra("x"): 1 values for 2 responses'),
        (lambda e, m: m("x", None), 'ValueError: log_metric("x"): expected a finite number, not None'),
        (lambda e, m: m("x", math.nan), 'ValueError: log_metric("x"): expected a finite number, not nan'),
        (lambda e, m: m("x", "half"), "ValueError: log_metric(\"x\"): expected a finite number, not 'half'"),
    ],
)
def test_wrong_logs_fail(log, reason):
    def reward(completions, log_extra, log_metric):
        log(log_extra, log_metric)
        return [1.0, 1.0]

    (found,) = scores(reward)[1]
    assert found.startswith(reason)


class Unreadable(list):
    """Fails when it is read."""

    ndim = 0

    def __len__(self):
        raise RuntimeError("no length")

    def item(self):
        raise RuntimeError("no item")


class UnreadableDict(dict):
    """Fails when it is searched."""

    def __contains__(self, key):
        raise RuntimeError("no keys")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (Unreadable(), "RuntimeError: no length"),
        ([1.0, Unreadable()], "RuntimeError: no item"),
        (UnreadableDict(quality=[1.0, 1.0]), "RuntimeError: no keys"),
    ],
)
@pytest.mark.parametrize("signature", ["trl", "verl"])
def test_a_result_that_fails_when_it_is_read_is_no_score(value, reason, signature):
    def trl(completions):
        return value

    def verl(solution_str):
        return {"score": value} if isinstance(value, Unreadable) else value

    rows, reasons = scores(trl if signature == "trl" else verl, signature=signature)
    same(rows, [[NAN], [NAN]])
    (found,) = reasons
    if signature == "trl":
        assert found.startswith(f"returned what cannot be read: {reason} (test_reward_functions.py:")


class Indescribable(Exception):
    """Fails to describe itself."""

    def __str__(self):
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Indescribable(), "Indescribable (test_"),
        (ExceptionGroup("unhandled", [ValueError("inner")]), "ValueError: inner"),
        (ExceptionGroup("a", [ExceptionGroup("b", [KeyError("k")])]), "KeyError: 'k'"),
        (ExceptionGroup("two", [ValueError("a"), ValueError("b")]), "ExceptionGroup: two (2 sub-exceptions)"),
    ],
)
def test_the_reason_of_an_odd_error_is_one_line(error, reason):
    def reward(completions):
        raise error

    (found,) = scores(reward)[1]
    assert found.startswith(reason)


# --- verl and OpenRLHF ----------------------------------------------------------------------------------


def verl_samples(**extra):
    columns = {"data_source": "gsm8k", "reward_model": {"style": "rule", "ground_truth": "4"}, **extra}
    return [make_sample("4", **columns), make_sample("5", **columns)]


def test_verl_scores_one_response_per_call():
    def compute_score(data_source, solution_str, ground_truth, extra_info=None, bonus=0.0):
        assert data_source == "gsm8k"
        if solution_str == "5":
            raise KeyError(5)
        return {"score": float(solution_str == ground_truth) + bonus, "acc": 1.0, "pred": solution_str}

    scorer = make_scorer(compute_score, signature="verl", arguments={"bonus": 0.5})
    same(scorer(verl_samples()).tolist(), [[1.5], [NAN]])
    line = compute_score.__code__.co_firstlineno + 3
    assert scorer.failures.reasons == {f"KeyError: 5 (test_reward_functions.py:{line})": 1}
    assert scorer.metrics == {"acc": 1.0}


def test_verl_with_objectives_a_plain_column_and_coroutines():
    async def compute_score(data_source, solution_str, ground_truth, extra_info):
        await asyncio.sleep(0.05)
        if solution_str == "b":
            raise ValueError("b")
        return {"score": 9, "format": 1, "right": extra_info["level"] + int(solution_str == ground_truth)}

    samples = [make_sample(c, data_source="d", ground_truth="a", extra_info={"level": 2}) for c in "ab" * 20]
    start = time.monotonic()
    rows, reasons = scores(compute_score, samples, signature="verl", names=("right", "format"))
    assert time.monotonic() - start < 1  # all at the same time
    same(rows, [[3.0, 1.0], [NAN, NAN]] * 20)
    assert list(reasons.values()) == [20]


def test_openrlhf():
    def reward_func(queries, prompts, labels, **kwargs):
        assert queries[1] == f"{prompts[1]}5"
        reward = torch.tensor([float(q.endswith(x)) for q, x in zip(queries, labels, strict=True)])
        return {"rewards": reward, "scores": reward, "extra_logs": {"acc": reward, "n": torch.tensor(2.0)}}

    scorer = make_scorer(reward_func, signature="openrlhf")
    assert scorer([make_sample("4", label="4"), make_sample("5", label="4")]).tolist() == [[1.0], [0.0]]
    assert scorer.metrics == {"acc": 0.5, "n": 2.0}
    other_names = scores(lambda q, p, y: [len(x) for x in q], signature="openrlhf", prompt_text=lambda p: "")
    assert other_names == ([[1.0], [3.0]], {})


# --- Loading --------------------------------------------------------------------------------------------


CODE = """
import helper_{0}
def reward(completions, scale=1.0, **kwargs):
    return [scale * helper_{0}.VALUE] * len(completions)
"""


def test_files_of_one_name_do_not_collide_and_the_path_is_restored(tmp_path):
    before = list(sys.path)
    references = []
    for index in (1, 2):
        folder = tmp_path / str(index)
        folder.mkdir()
        (folder / f"helper_{index}.py").write_text(f"VALUE = {index}")
        references.append(write(folder, CODE.format(index)))
    first, second = (make_scorer(reference) for reference in references)
    assert first([make_sample()]).tolist() == [[1.0]]
    assert second([make_sample()]).tolist() == [[2.0]]
    assert sys.path == before
    names = [path.name for path in first.provenance_files()]
    assert names == ["rewards.py", "helper_1.py"]
    assert first.identity != second.identity


def test_modules_of_one_name_beside_two_files_are_told(tmp_path):
    for index in (3, 4):
        folder = tmp_path / str(index)
        folder.mkdir()
        (folder / "helper_both.py").write_text(f"VALUE = {index}")
        write(folder, CODE.format("both"))
    load_function(f"{tmp_path}/3/rewards.py:reward")
    with pytest.raises(
        ConfigError, match=r'"helper_both", a module beside it and .* \(.*/3/helper_both.py\); fix'
    ):
        load_function(f"{tmp_path}/4/rewards.py:reward")
    (tmp_path / "random.py").write_text("")
    with pytest.raises(ConfigError, match=r'imports "random", a module beside it and the name of another'):
        load_function(write(tmp_path, "def reward(completions):\n    import random"))


def test_files_of_a_scorer_include_what_it_imports_from_its_folder(tmp_path):
    (tmp_path / "pack_x" / "deep").mkdir(parents=True)
    for file in ("pack_x/__init__.py", "pack_x/deep/__init__.py", "unrelated_x.py"):
        (tmp_path / file).write_text("")
    (tmp_path / "late_x.py").write_text("import pack_x.deep, os")
    code = "import os\ndef reward(completions):\n    from late_x import os\n    return [1.0]"
    function = load_function(write(tmp_path, code))
    files = [str(file.relative_to(tmp_path)) for file in function.files]
    assert files == ["rewards.py", "late_x.py", "pack_x/__init__.py", "pack_x/deep/__init__.py"]
    assert function.function([""]) == [1.0]  # the path is not needed any more
    before = function.hash
    (tmp_path / "late_x.py").write_text("import pack_x.deep")
    assert load_function(f"{tmp_path}/rewards.py:reward").hash != before


def test_errors_of_modules_beside_name_the_line_that_imports_them(tmp_path):
    (tmp_path / "helper_broken.py").write_text("import os\n1 / 0")
    with pytest.raises(ConfigError, match=r"rewards.py:2: ZeroDivisionError: division by zero; fix"):
        load_function(write(tmp_path, CODE.format("broken")))


def test_an_edited_file_is_loaded_again(tmp_path):
    reference = write(tmp_path, "def reward(completions): return [1.0]")
    first = load_function(reference)
    assert load_function(reference).function is first.function
    write(tmp_path, "def reward(completions): return [2.0]")
    second = load_function(reference)
    assert second.function([""]) == [2.0]
    assert first.hash != second.hash


def test_modules_are_found_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rewards_x.py").write_text("def reward(completions): return [1.0] * len(completions)")
    assert scores("my_rewards_x:reward") == ([[1.0], [1.0]], {})
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    ("text", "reference", "message"),
    [
        ("", "reward", '"reward" names no function; fix: write package.module:name or'),
        ("", "{0}/rewards.py:", "names no function"),
        ("", "{0}/none.py:reward", 'there is no file "{0}/none.py"'),
        (
            "def rewards(completions): ...",
            "{0}/rewards.py:reward",
            r'has no "reward"; did you mean "rewards".; fix: one of rewards',
        ),
        (
            "def polite(completions): ...\ndef reward(completions): ...",
            "{0}/rewards.py:polit",
            r'has no "polit"; did you mean "polite".; fix: one of polite, reward',
        ),
        ("", "{0}/reward.py:reward", r'no file "{0}/reward.py"; did you mean "{0}/rewards.py".; fix: give'),
        ("", "reward:reward", r'there is no module "reward"; did you mean "rewards".; fix: install'),
        ("import os", "{0}/rewards.py:reward", 'has no "reward"; fix: define it there'),
        ("reward = 3", "{0}/rewards.py:reward", "is a int, not a function"),
        (
            "x = 1\nreward = 1 / 0",
            "{0}/rewards.py:reward",
            "{0}/rewards.py:2: ZeroDivisionError: division by",
        ),
        ("x = 1\ndef reward(:", "{0}/rewards.py:reward", "{0}/rewards.py:2: SyntaxError: invalid syntax"),
        ("import sys\nsys.exit(1)", "{0}/rewards.py:reward", "{0}/rewards.py:2: SystemExit: 1"),
        (
            "\nimport absent_package_x",
            "{0}/rewards.py:reward",
            "{0}/rewards.py:2: ModuleNotFoundError: No module named 'absent_package_x'; fix: install",
        ),
        ("", "absent_package_x.y:reward", 'there is no module "absent_package_x"; fix: install its package'),
        ("", "my rewards:reward", '"my rewards" is no name of a module'),
        ("1 / 0", "rewards:reward", "{0}/rewards.py:1: ZeroDivisionError"),
        ("def reward(response): ...", "{0}/rewards.py:reward", "takes response, and none of prompts, compl"),
        (
            "def reward(solution_str, ground_truth): ...",
            "{0}/rewards.py:reward",
            "fix: signature: verl",
        ),
        ("def reward(queries, prompt, label): ...", "{0}/rewards.py:reward", "fix: signature: openrlhf"),
        ("def reward(completions, /): ...", "{0}/rewards.py:reward", 'takes "completions" by position only'),
        ("def reward(): return 3", "{0}/rewards.py:reward", "takes no responses, and returned a int"),
        (
            "def reward(): 1 / 0",
            "{0}/rewards.py:reward",
            r"ZeroDivisionError: division by zero \(rewards.py:1\)",
        ),
        (
            "class reward:\n  def __init__(self, x): ...",
            "{0}/rewards.py:reward",
            "missing 1 required positional",
        ),
        ("reward = max", "{0}/rewards.py:reward", "does not tell its parameters"),
    ],
)
def test_bad_references_are_one_line_at_the_door(tmp_path, monkeypatch, text, reference, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, text)
    sys.modules.pop("rewards", None)
    with pytest.raises(ConfigError, match=message.format(tmp_path)) as info:
        load_function(reference.format(tmp_path))
    assert "\n" not in str(info.value)
    assert str(tmp_path) not in sys.path


def test_wrong_arguments_of_other_signatures():
    with pytest.raises(ConfigError, match='needs the argument "tries"'):
        load_function(lambda solution_str, tries: 1.0, "verl")
    with pytest.raises(ConfigError, match='needs the argument "tries"'):
        load_function(lambda queries, prompts, labels, tries: 1.0, "openrlhf")
    assert load_function(lambda solution_str, tries: 1.0, "verl", {"tries": 2})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": 1}, '"prompts" is given to every call already'),
        ({"scael": 1}, 'has no parameter "scael"; further parameters: answer, scale'),
        ({"answer": 1}, '"answer" is a column of the prompts too'),
    ],
)
def test_wrong_further_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        check_arguments(load_function(lambda completions, answer, scale=1: 1, "trl", arguments), ["answer"])


@pytest.mark.parametrize(
    ("signature", "function", "columns", "message"),
    [
        (
            "trl",
            lambda completions, answer, **k: 1,
            ["level", "key"],
            "needs answer; columns of the prompts: key, ",
        ),
        (
            "trl",
            lambda completions, answer, level: 1,
            [],
            "needs answer, level; columns of the prompts: none",
        ),
        (
            "trl",
            lambda environments, **k: 1,
            [],
            "reads environments, which only exist when responses call tools",
        ),
        (
            "trl",
            lambda **k: 1,
            ["completions"],
            'a column "completions", the name of an argument; fix: rename',
        ),
        ("verl", lambda data_source, solution_str: 1, ["ground_truth"], "needs data_source"),
        ("verl", lambda solution_str, ground_truth: 1, ["x"], "needs reward_model or ground_truth"),
        ("openrlhf", lambda queries, prompts, labels: 1, ["x"], "needs label or labels"),
    ],
)
def test_missing_columns_are_told_at_the_door(signature, function, columns, message):
    with pytest.raises(ConfigError, match=message):
        check_columns(load_function(function, signature), columns)


def test_columns_that_are_there():
    function = load_function(lambda completions, category, id, a, b=1, *, c, **k: 1, "trl", {"c": 1})
    check_columns(function, ["a"])
    check_columns(
        load_function(lambda data_source, solution_str, ground_truth, extra_info: 1, "verl"),
        ["data_source", "reward_model"],
    )


FACTORY = """
def get_reward(max_len, penalty=-1.0):
    def reward(completion_ids, **kwargs):
        return [penalty * (len(ids) > max_len) for ids in completion_ids]
    return reward

class Reward:
    def __init__(self, max_len):
        self.max_len = max_len
    def __call__(self, completion_ids, **kwargs):
        return [float(len(ids) <= self.max_len) for ids in completion_ids]

reward = Reward(1)
"""


def test_factories_classes_and_objects(tmp_path):
    file = write(tmp_path, FACTORY).removesuffix(":reward")
    samples = [make_sample(ids=(1,)), make_sample(ids=(1, 2))]
    made = scores(f"{file}:get_reward", samples, arguments={"max_len": 1, "penalty": -2})
    assert made == ([[0.0], [-2.0]], {})
    assert scores(f"{file}:Reward", samples, arguments={"max_len": 1}) == ([[1.0], [0.0]], {})
    assert scores(f"{file}:reward", samples) == ([[1.0], [0.0]], {})
    with pytest.raises(ConfigError, match="takes max_len, penalty, and none of prompts"):
        load_function(f"{file}:get_reward", "trl", {"penalty": 1})


def test_another_process_loads_the_function_again(tmp_path):
    file = write(tmp_path, FACTORY).removesuffix(":reward")
    scorer = make_scorer(f"{file}:get_reward", arguments={"max_len": 1})
    expected = scorer([make_sample()]).tolist()
    again = pickle.loads(pickle.dumps(scorer))
    assert again([make_sample()]).tolist() == expected
    assert again.identity == scorer.identity


HINT = "; completions are lists of messages here: completion[0]['content'], or input: text"


@pytest.mark.parametrize(
    ("read", "is_messages"),
    [
        (lambda c: len(c.split()), True),
        (lambda c: c[0].lower(), True),
        (lambda c: len(re.findall("a", c)), True),
        (lambda c: c + "!", True),
        (lambda c: 1 / 0, False),
        (lambda c: c[0]["content"].words, False),
    ],
)
def test_messages_read_as_texts_are_explained(read, is_messages):
    def reward(completions, **columns):
        return [read(completion) for completion in completions]

    (reason,) = scores(reward)[1]
    assert reason.endswith(HINT) == is_messages
    (reason,) = scores(lambda completions: [c.length for c in completions], input="text")[1]
    assert HINT not in reason


def test_only_a_run_says_that_it_resumes():
    for in_run in (False, True):
        scorer = GuardedScorer("broken", make_scorer(lambda completions: 1 / 0), None, in_run)
        with pytest.raises(ScoringError) as caught:
            scorer([make_sample()] * 8)
        assert str(caught.value).endswith("the run resumes when it is started again") == in_run
        assert "command" not in str(caught.value)
