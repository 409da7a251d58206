"""One HTML file that says what a run achieved: opens from disk, asks nothing of any network, runs no script.

Every value reaches the page through Jinja's autoescape as a text node or a number; none becomes an
address, a style or a name of a tag or attribute. Controls and direction marks are written out.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from paretune import __version__
from paretune.errors import ConfigError, DataError
from paretune.report import words
from paretune.report.curves import health, objective_curves, scored, spent
from paretune.report.figures import strips
from paretune.report.heads import doubtful, reward_model
from paretune.report.pace import pace, products
from paretune.report.samples import samples
from paretune.report.sanitize import visible
from paretune.report.table import side_costs
from paretune.rundir import read_json, read_jsonl, write_atomic

TEMPLATE = "report.html.j2"
SCHEMA = "paretune/eval/1"
"""Of the evaluations that can be shown."""
OWN_JUDGE = "Judge = training reward"
"""Starts the warning that the page shows in a box of its own."""


def write_report(folder: str | Path, name: str = "final") -> Path:
    """Write report.html into a run folder and return its path.

    What the folder does not hold yet is said to be missing, so a run under way can be looked at too.

    Args:
        folder: Of the run.
        name: Of the evaluation, below `eval/`.

    Raises:
        ConfigError: There is no run in the folder.
        DataError: A file of the run is damaged.
    """
    run = Path(folder)
    book = read_json(run / "run.json")
    if book is None:
        raise ConfigError(f"{run}: holds no run.json, so no run; fix: name the folder of a run")
    page = environment().get_template(TEMPLATE).render(context(run, book, name))
    path = run / "report.html"
    write_atomic(path, page)
    return path


def environment() -> Environment:
    """Jinja with autoescape on for everything; an unknown name is an error, None a dash."""
    env = Environment(
        loader=PackageLoader("paretune.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in (
        "number",
        "signed",
        "interval",
        "percent",
        "compact",
        "digits_for",
        "verdict_words",
        "verdict_reason",
    ):
        env.globals[name] = getattr(words, name)
    env.globals |= {"percent_arrow": words.percent_arrow, "arrow": words.arrow, "signs": words.SIGNS}
    return env


def context(run: Path, book: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Everything the template shows, read from the files of the run."""
    numbers = _numbers(run / "eval" / name / "eval.json")
    lines = [line for line in read_jsonl(run / "metrics.jsonl") if line.get("stage") == "align"]
    recipe = _recipe(run / "config" / "resolved.yaml")
    objectives = list(numbers["objectives"]) if numbers else scored(lines)
    timing, machine = read_jsonl(run / "timing.jsonl"), read_json(run / "env.json") or {}
    heads = {
        title: report
        for title, part in (("Reward model", "reward"), ("Judge", "judge"))
        if (report := read_json(run / part / "report.json")) is not None and report.get("objectives")
    }
    return {
        "run": book,
        "version": __version__,
        "facts": _facts(recipe, book, lines),
        "finished": book.get("status") == "done" or book.get("stage") == "report",
        "evaluation": _evaluation(numbers) if numbers else None,
        "costs": side_costs(numbers) if numbers else [],
        "models": [
            found for title, report in heads.items() if (found := reward_model(title, report)) is not None
        ],
        "ready": _ready_made(recipe),
        "doubts": {title: doubts for title, report in heads.items() if (doubts := doubtful(report))},
        "steps": len(lines),
        "curves": objective_curves(lines, objectives),
        "health": health(lines),
        "spent": spent(timing),
        "pace": pace(timing, machine),
        "products": products(machine),
        "samples": samples(run / "eval" / name, numbers) if numbers else [],
        "events": [line for line in read_jsonl(run / "events.jsonl") if line.get("kind") != "checkpoint"][
            -30:
        ],
        "recipe_text": _text(run / "config" / "run.yaml"),
        "resolved_text": _text(run / "config" / "resolved.yaml"),
        "machine": machine,
    }


def _numbers(path: Path) -> dict[str, Any] | None:
    found = read_json(path)
    if found is not None and found.get("schema") != SCHEMA:
        raise DataError(
            f"{path}: schema: {found.get('schema')}, expected {SCHEMA}; fix: evaluate the run again"
        )
    return found


def _evaluation(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """eval.json with a strip for each change, in the whole and by kind."""
    objectives = numbers["objectives"]
    judges: dict[str, list[str]] = {}
    for name, objective in objectives.items():
        judges.setdefault(objective["judge"], []).append(name)
    drawn, shared = strips([(o["change"], o["low"], o["high"]) for o in objectives.values()])
    return {
        **numbers,
        "strips": dict(zip(objectives, drawn, strict=True)),
        "shared_scale": shared,
        "own_judge": [n for n, o in objectives.items() if o["n"] and not o["independent"]],
        "further": [line for line in numbers["warnings"] if not line.startswith(OWN_JUDGE)],
        "judged": judges,
        "has_missing": any(o["missing"]["share"] and o["n"] for o in objectives.values()),
        "has_reward": any(o["reward"] for o in objectives.values()),
        "has_margin": any(o["margin"] is not None for o in objectives.values()),
    }


def _facts(recipe: Mapping[str, Any], book: Mapping[str, Any], lines: list[dict[str, Any]]) -> list[str]:
    """The line under the title."""

    def entry(section: str, key: str) -> Any:
        found = recipe.get(section)
        return found.get(key) if isinstance(found, Mapping) else None

    found = [
        f"policy {entry('policy', 'path')}" if entry("policy", "path") else "",
        f"algorithm {entry('algorithm', 'name')}" if entry("algorithm", "name") else "",
        _length(entry("run", "steps"), entry("run", "budget"), lines),
        f"seed {entry('run', 'seed')}" if entry("run", "seed") is not None else "",
        f"started {book['started']}" if book.get("started") else "",
    ]
    return [fact for fact in found if fact]


def _length(steps: Any, budget: Any, lines: list[dict[str, Any]]) -> str:
    """How far the alignment came: under a budget by what was spent of it, else by its steps."""
    if not isinstance(budget, Mapping):
        return f"{len(lines)} of {steps} steps" if steps else f"{len(lines)} steps"
    share = words.known(lines[-1].get("budget/spent")) if lines else 0.0
    spent = words.ABSENT if share is None else f"{share * budget['amount']:,.0f}"
    return f"{len(lines)} steps, {spent} {budget['currency']} of a budget of {budget['amount']:,}"


def _ready_made(recipe: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """What the models are called that the recipe brings instead of fitting them -> path and revision."""
    found = {}
    for title, part in (("Reward model", "reward"), ("Judge", "judge")):
        section = recipe.get(part)
        if isinstance(section, Mapping) and section.get("path"):
            found[title] = (str(section["path"]), str(section.get("revision") or ""))
    return found


def _recipe(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8", errors="backslashreplace"))
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="backslashreplace") if path.exists() else ""


def _shown(value: Any) -> Any:
    if value is None:
        return words.ABSENT
    # Template pieces and macro results are Markup, already escaped and made visible inside.
    return visible(value) if type(value) is str else value
