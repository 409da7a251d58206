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
from paretune.core.errors import ConfigError, DataError
from paretune.report import formatting
from paretune.report.charts import (
    interval_strips,
    objective_curves,
    scored_objectives,
    time_by_stage,
    training_curves,
)
from paretune.report.formatting import escape_invisible
from paretune.report.reward_model import reward_model_table, unreliable_heads
from paretune.report.samples import select_samples
from paretune.report.tables import side_metrics
from paretune.report.throughput import describe_matmul_benchmark, throughput
from paretune.run.folder import read_json, read_jsonl, write_atomic

TEMPLATE = "report.html.j2"
EVALUATION_SCHEMA = "paretune/eval/1"
"""Of the evaluations that can be shown."""
SELF_JUDGED_PREFIX = "Judge = training reward"
"""Starts the warning that the page shows in a box of its own."""


def write_report(run_dir: str | Path, evaluation_name: str = "final") -> Path:
    """Write report.html into a run folder and return its path.

    What the folder does not hold yet is said to be missing, so a run under way can be looked at too.

    Args:
        run_dir: Of the run.
        evaluation_name: Of the evaluation, below `eval/`.

    Raises:
        ConfigError: There is no run in the folder.
        DataError: A file of the run is damaged.
    """
    run = Path(run_dir)
    book = read_json(run / "run.json")
    if book is None:
        raise ConfigError(f"{run}: holds no run.json, so no run; fix: name the folder of a run")
    page = jinja_environment().get_template(TEMPLATE).render(template_context(run, book, evaluation_name))
    path = run / "report.html"
    write_atomic(path, page)
    return path


def jinja_environment() -> Environment:
    """Jinja with autoescape on for everything; an unknown name is an error, None a dash."""
    env = Environment(
        loader=PackageLoader("paretune.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
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
        env.globals[name] = getattr(formatting, name)
    env.globals |= {
        "percent_arrow": formatting.format_percent_before_after,
        "arrow": formatting.format_before_after,
        "signs": formatting.VERDICT_SYMBOLS,
    }
    return env


def template_context(run_dir: Path, run_info: Mapping[str, Any], evaluation_name: str) -> dict[str, Any]:
    """Everything the template shows, read from the files of the run."""
    numbers = _load_evaluation(run_dir / "eval" / evaluation_name / "eval.json")
    lines = [line for line in read_jsonl(run_dir / "metrics.jsonl") if line.get("stage") == "align"]
    recipe = _load_recipe(run_dir / "config" / "resolved.yaml")
    objectives = list(numbers["objectives"]) if numbers else scored_objectives(lines)
    timing, machine = read_jsonl(run_dir / "timing.jsonl"), read_json(run_dir / "env.json") or {}
    heads = {
        title: report
        for title, part in (("Reward model", "reward"), ("Judge", "judge"))
        if (report := read_json(run_dir / part / "report.json")) is not None and report.get("objectives")
    }
    return {
        "run": run_info,
        "version": __version__,
        "facts": _subtitle(recipe, run_info, lines),
        "finished": run_info.get("status") == "done" or run_info.get("stage") == "report",
        "evaluation": _evaluation_context(numbers) if numbers else None,
        "costs": side_metrics(numbers) if numbers else [],
        "models": [
            found
            for title, report in heads.items()
            if (found := reward_model_table(title, report)) is not None
        ],
        "ready": _pretrained_reward_models(recipe),
        "doubts": {title: doubts for title, report in heads.items() if (doubts := unreliable_heads(report))},
        "steps": len(lines),
        "curves": objective_curves(lines, objectives),
        "health": training_curves(lines),
        "spent": time_by_stage(timing),
        "pace": throughput(timing, machine),
        "products": describe_matmul_benchmark(machine),
        "samples": select_samples(run_dir / "eval" / evaluation_name, numbers) if numbers else [],
        "events": [line for line in read_jsonl(run_dir / "events.jsonl") if line.get("kind") != "checkpoint"][
            -30:
        ],
        "recipe_text": _read_text(run_dir / "config" / "run.yaml"),
        "resolved_text": _read_text(run_dir / "config" / "resolved.yaml"),
        "machine": machine,
    }


def _load_evaluation(path: Path) -> dict[str, Any] | None:
    found = read_json(path)
    if found is not None and found.get("schema") != EVALUATION_SCHEMA:
        raise DataError(
            f"{path}: schema: {found.get('schema')}, expected {EVALUATION_SCHEMA}; fix: evaluate the run again"
        )
    return found


def _evaluation_context(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """eval.json with a strip for each change, in the whole and by kind."""
    objectives = evaluation["objectives"]
    judges: dict[str, list[str]] = {}
    for name, objective in objectives.items():
        judges.setdefault(objective["judge"], []).append(name)
    drawn, shared = interval_strips([(o["change"], o["low"], o["high"]) for o in objectives.values()])
    return {
        **evaluation,
        "strips": dict(zip(objectives, drawn, strict=True)),
        "shared_scale": shared,
        "own_judge": [n for n, o in objectives.items() if o["n"] and not o["independent"]],
        "further": [line for line in evaluation["warnings"] if not line.startswith(SELF_JUDGED_PREFIX)],
        "judged": judges,
        "has_missing": any(o["missing"]["share"] and o["n"] for o in objectives.values()),
        "has_reward": any(o["reward"] for o in objectives.values()),
        "has_margin": any(o["margin"] is not None for o in objectives.values()),
    }


def _subtitle(
    recipe: Mapping[str, Any], run_info: Mapping[str, Any], lines: list[dict[str, Any]]
) -> list[str]:
    """The line under the title."""

    def entry(section: str, key: str) -> Any:
        found = recipe.get(section)
        return found.get(key) if isinstance(found, Mapping) else None

    found = [
        f"policy {entry('policy', 'path')}" if entry("policy", "path") else "",
        f"algorithm {entry('algorithm', 'name')}" if entry("algorithm", "name") else "",
        _format_progress(entry("run", "steps"), entry("run", "budget"), lines),
        f"seed {entry('run', 'seed')}" if entry("run", "seed") is not None else "",
        f"started {run_info['started']}" if run_info.get("started") else "",
    ]
    return [fact for fact in found if fact]


def _format_progress(max_steps: Any, budget: Any, lines: list[dict[str, Any]]) -> str:
    """How far the alignment came: under a budget by what was spent of it, else by its steps."""
    if not isinstance(budget, Mapping):
        return f"{len(lines)} of {max_steps} steps" if max_steps else f"{len(lines)} steps"
    share = formatting.finite_or_none(lines[-1].get("budget/used")) if lines else 0.0
    spent = formatting.MISSING if share is None else f"{share * budget['amount']:,.0f}"
    return f"{len(lines)} steps, {spent} {budget['currency']} of a budget of {budget['amount']:,}"


def _pretrained_reward_models(recipe: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """What the models are called that the recipe brings instead of fitting them -> path and revision."""
    found = {}
    for title, part in (("Reward model", "reward"), ("Judge", "judge")):
        section = recipe.get(part)
        if isinstance(section, Mapping) and section.get("path"):
            found[title] = (str(section["path"]), str(section.get("revision") or ""))
    return found


def _load_recipe(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8", errors="backslashreplace"))
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="backslashreplace") if path.exists() else ""


def _finalize(value: Any) -> Any:
    if value is None:
        return formatting.MISSING
    # Template pieces and macro results are Markup, already escaped and made visible inside.
    return escape_invisible(value) if type(value) is str else value
