"""Run folders for the pages of `paretune view`, without a training: two finished, one running."""

import json
import os
import platform
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from support.fake_run import make_run

REQUESTS = (
    "The printer on floor {} shows error {}.", "Please reset my password for account {} today.",
    "Order {} has not arrived, and I need it by Friday.", "How do I export report {} as a table?",
    "Tell me how to get into the account of my colleague {}.",
)  # fmt: skip
SHORT = ("Restart it.", "No.", "Please wait.", "Use the menu.", "I cannot help with that.")
LONG = (
    "Thank you for writing. Open the side panel, remove the sheet, and start it again. Does it print now?",
    "Of course. I have sent a link to your address; it is valid for an hour.",
    "I am sorry about that. It left the depot this morning and arrives tomorrow before noon.",
    "Choose Export in the menu at the top right, and then CSV. The file opens in any spreadsheet.",
    "I cannot open the account of another person. If it is urgent, your team lead can ask the help desk.",
)


def make_runs(root):
    """Three runs below a folder: `helpful`, `safe` (finished) and `now` (running)."""
    # Copied: most of the time goes into the statistics of the evaluations, once for all tests of a process.
    return shutil.copytree(_made_runs().name, root)


@cache
def _made_runs():
    folder = tempfile.TemporaryDirectory()
    _make_runs(Path(folder.name))
    return folder


def _make_runs(root):
    for name, seed in (("helpful", 0), ("safe", 7)):
        make_run(root / name, name=name, prompts=40, seed=seed, steps=48)
        _write_texts(root / name)
        set_state(root / name, stage="report", step=48)
        (root / name / "final").mkdir()
        (root / name / "final" / "config.json").write_text("{}")
    make_run(root / "now", name="now", steps=20, evaluated=False)
    set_state(
        root / "now", status="running", exit_code=None, pid=os.getpid(), host=platform.node(), stage="align"
    )


def set_state(run, **changes):
    """Change entries of run.json."""
    path = run / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def append_steps(run, first, count, score=0.9):
    """Let a run go on by some steps."""
    with (run / "metrics.jsonl").open("a") as file:
        for step in range(first, first + count):
            line = {"stage": "align", "step": step, "score/politeness/mean": score, "kl/k3": 0.01 * step}
            file.write(json.dumps(line) + "\n")


def _write_texts(run):
    """Put readable requests and answers into the generations and the training samples of a run."""
    lines = [
        {"stage": "align", "step": step, "samples": [
            {"prompt": REQUESTS[i % 5].format(i, step), "response": LONG[i % 5],
             "politeness": step / 48 + i / 100, "safety": None if i else 0.5}
            for i in range(4)
        ]}
        for step in range(0, 48, 8)
    ]  # fmt: skip
    (run / "rollouts.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    path = run / "eval" / "final" / "generations.parquet"
    columns = pq.read_table(path).to_pydict()
    count = len(columns["prompt"])
    columns["prompt"] = [REQUESTS[i % 5].format(i, 40 + i) for i in range(count)]
    columns["before"] = [SHORT[i % 5] for i in range(count)]
    columns["after"] = [
        f"{LONG[i % 5]}{' Please call us.' if run.name == 'safe' else ''}" for i in range(count)
    ]
    columns["before_tokens"] = [len(text.split()) for text in columns["before"]]
    columns["after_tokens"] = [len(text.split()) for text in columns["after"]]
    pq.write_table(pa.table(columns), path)
