"""report.html: a single HTML file about one run that opens from disk and loads nothing.

Every value reaches the page through Jinja's autoescape as a text node or a number, never as an address, a
style, a tag or an attribute name. Control and bidirectional characters are written out. The only script is
the filter of the samples, which the page's policy names by its hash.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from paretune import __version__
from paretune.core.errors import ConfigError, DataError
from paretune.evaluate.warnings import POLICY_PREFIX, event_warnings
from paretune.report import formatting
from paretune.report.charts import (
    fit_curves,
    objective_curves,
    scored_objectives,
    time_by_stage,
    training_curves,
)
from paretune.report.cost import cost_phrases
from paretune.report.formatting import escape_invisible
from paretune.report.histograms import reliability_plots, score_histograms
from paretune.report.influence import influence_chart
from paretune.report.intervals import interval_figures
from paretune.report.overoptimization import TrainingEvaluations, distance_plots
from paretune.report.responses import Responses
from paretune.report.reward_model import head_warnings, reward_model_table
from paretune.report.samples import ROLLOUTS_FILE, displayed_samples, training_samples
from paretune.report.scatter import MARKER_SHAPES, marker_path
from paretune.report.tables import judge_comparisons
from paretune.report.throughput import describe_matmul_benchmark, throughput
from paretune.report.tradeoff import pair_plots, parallel_plot
from paretune.run.folder import read_json, read_jsonl, write_atomic

TEMPLATE = "report.html.j2"
FILTER_SCRIPT = "filter.js.j2"
EVALUATION_SCHEMA = "paretune/eval/3"
"""Schema of the eval.json files that the page can show."""
SELF_JUDGED_PREFIX = "Judge not independent"
"""Prefix of the warning that the page shows in a box of its own."""
MAX_EVENTS = 30
"""The page shows the last events only; events.jsonl has all of them."""


def write_report(run_dir: str | Path, evaluation_name: str = "final") -> Path:
    """Write report.html into a run folder and return its path.

    Parts of the run that do not exist yet are shown as missing, so a run in progress has a page too.

    Args:
        run_dir: The run folder.
        evaluation_name: Name of the evaluation, a folder below `eval/`.

    Raises:
        ConfigError: The folder holds no run.
        DataError: A file of the run is damaged or has another schema.
    """
    run = Path(run_dir)
    run_info = read_json(run / "run.json")
    if run_info is None:
        raise ConfigError(f"{run}: no run.json, so this is not a run folder; fix: name the folder of a run")
    return _write_page(run, template_context(run, run_info, run / "eval" / evaluation_name))


def write_evaluation_report(folder: Path, subtitle: Sequence[str]) -> Path:
    """Write report.html beside the eval.json of a comparison that belongs to no run, and return its path.

    Args:
        folder: Folder of eval.json and generations.parquet.
        subtitle: The facts below the title.

    Raises:
        DataError: A file is damaged or has another schema.
    """
    context = template_context(folder, {"status": "done"}, folder)
    return _write_page(folder, context | {"is_run": False, "subtitle": list(subtitle)})


def _write_page(folder: Path, context: Mapping[str, Any]) -> Path:
    path = folder / "report.html"
    write_atomic(path, jinja_environment().get_template(TEMPLATE).render(context))
    return path


def jinja_environment() -> Environment:
    """Jinja with autoescape everywhere; an unknown name is an error, None is shown as a dash."""
    env = Environment(
        loader=PackageLoader("paretune.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in (
        "format_number",
        "format_signed",
        "format_interval",
        "format_compact",
        "decimals_for",
        "format_verdict",
        "explain_verdict",
        "goal_arrow",
        "goal_words",
    ):
        env.globals[name] = getattr(formatting, name)
    env.globals["verdict_symbols"] = formatting.VERDICT_SYMBOLS
    env.globals["format_percent"] = _format_percent
    env.filters["keep_units"] = formatting.keep_units
    return env


def template_context(run_dir: Path, run_info: Mapping[str, Any], evaluation_dir: Path) -> dict[str, Any]:
    """All values that the template shows, read from the files of the run."""
    evaluation = with_event_warnings(_load_evaluation(evaluation_dir / "eval.json"), run_dir)
    recipe = _load_recipe(run_dir / "config" / "resolved.yaml")
    model_reports = read_model_reports(run_dir)
    metrics = read_jsonl(run_dir / "metrics.jsonl")
    lines = [line for line in metrics if line.get("stage") == "align"]
    timing, environment = read_jsonl(run_dir / "timing.jsonl"), read_json(run_dir / "env.json") or {}
    # Checkpoint events come every few steps and would push everything else off the list.
    events = [line for line in read_jsonl(run_dir / "events.jsonl") if line.get("type") != "checkpoint"]
    script, script_hash = _filter_script()
    folder_name = run_dir.resolve().name
    title = str(run_info.get("name") or folder_name)
    return {
        "is_run": True,
        "run_info": run_info,
        "version": __version__,
        "title": title,
        "folder_name": "" if folder_name == title else folder_name,
        "subtitle": _subtitle(recipe, run_info, lines),
        "finished": run_info.get("status") == "done" or run_info.get("stage") == "report",
        "cost": cost_phrases(timing),
        "warnings": _warnings(evaluation, head_warnings(model_reports)),
        **_evaluation_parts(run_dir, evaluation_dir, evaluation, lines),
        **_model_parts(recipe, model_reports, metrics),
        **_training_parts(evaluation, lines),
        "time_by_stage": time_by_stage(timing),
        "throughput": throughput(timing, environment),
        "matmul_description": describe_matmul_benchmark(environment),
        "training_samples": training_samples(read_jsonl(run_dir / ROLLOUTS_FILE)),
        "events": events[-MAX_EVENTS:],
        "recipe_text": _read_text(run_dir / "config" / "recipe.yaml"),
        "resolved_text": _read_text(run_dir / "config" / "resolved.yaml"),
        "environment": environment,
        "marker_paths": {shape: marker_path(shape, 8.0, 8.0, 5.5) for shape in MARKER_SHAPES},
        "filter_script": script,
        "filter_hash": script_hash,
    }


def _evaluation_parts(
    run_dir: Path, evaluation_dir: Path, evaluation: dict[str, Any] | None, lines: list[dict[str, Any]]
) -> dict[str, Any]:
    """Everything that the evaluation of a policy is shown by."""
    if evaluation is None:
        return {"evaluation": None, "samples": {"selected": ()}}
    responses = Responses.read(evaluation_dir / "generations.parquet")
    training = TrainingEvaluations.read(run_dir, _load_evaluation)
    return {
        "evaluation": _evaluation_context(evaluation),
        "samples": displayed_samples(responses, evaluation),
        "histograms": score_histograms(evaluation, responses),
        "pair_plots": pair_plots(evaluation, responses),
        "parallel": parallel_plot(evaluation),
        "distance_plots": distance_plots(evaluation, training, lines),
        "selection_sentences": training.sentences(),
        "num_evaluated_steps": len(training.steps),
    }


def _model_parts(
    recipe: Mapping[str, Any], reports: Mapping[str, dict[str, Any]], metrics: list[dict[str, Any]]
) -> dict[str, Any]:
    """The reward model and the judge."""
    tables = [
        table | {"reliability": reliability_plots(report)}
        for title, report in reports.items()
        if (table := reward_model_table(title, report)) is not None
    ]
    return {
        "models": tables,
        "pretrained_models": _pretrained_reward_models(recipe),
        "no_models": _no_models(recipe),
        "fit_curves": fit_curves(metrics),
    }


def _training_parts(evaluation: Mapping[str, Any] | None, lines: list[dict[str, Any]]) -> dict[str, Any]:
    objectives = list(evaluation["objectives"]) if evaluation else scored_objectives(lines)
    return {
        "num_steps": len(lines),
        "influence": influence_chart(lines, objectives),
        "objective_curves": objective_curves(lines, objectives),
        "training_curves": training_curves(lines),
    }


@cache
def _filter_script() -> tuple[Markup, str]:
    """The script of the filter, and the name by which the page's policy allows it."""
    environment = jinja_environment()
    assert environment.loader is not None
    source, _, _ = environment.loader.get_source(environment, FILTER_SCRIPT)
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    return Markup(source), f"sha256-{digest}"


def read_model_reports(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Title -> report of the reward model and of the judge, of those that the run fitted."""
    return {
        title: report
        for title, role in (("Reward model", "reward"), ("Judge", "judge"))
        if (report := read_json(run_dir / role / "report.json")) is not None and report.get("objectives")
    }


def with_event_warnings(evaluation: dict[str, Any] | None, run_dir: Path) -> dict[str, Any] | None:
    """The content of eval.json with the warnings among the events of the run after its own."""
    if evaluation is None:
        return None
    warnings = event_warnings(read_jsonl(run_dir / "events.jsonl"))
    return evaluation | {"warnings": [*evaluation["warnings"], *warnings]}


def _load_evaluation(path: Path) -> dict[str, Any] | None:
    evaluation = read_json(path)
    if evaluation is not None and (schema := evaluation.get("schema")) != EVALUATION_SCHEMA:
        raise DataError(
            f"{path}: schema: {schema}, expected {EVALUATION_SCHEMA}; fix: evaluate the run again"
        )
    return evaluation


def _evaluation_context(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The content of eval.json, with the drawing of its intervals and flags for optional columns."""
    objectives = evaluation["objectives"]
    objectives_by_judge: dict[str, list[str]] = {}
    for name, objective in objectives.items():
        objectives_by_judge.setdefault(objective["judge"], []).append(name)
    figures, not_drawn = interval_figures(objectives)
    return {
        **evaluation,
        "interval_figures": figures,
        "not_drawn": not_drawn,
        "cautions": {name: _other_cautions(o) for name, o in objectives.items()},
        "self_judged": [name for name, o in objectives.items() if o["num_scored"] and not o["independent"]],
        "objectives_by_judge": objectives_by_judge,
        "judge_comparisons": judge_comparisons(evaluation),
        "has_missing": any(o["missing"]["fraction"] and o["num_scored"] for o in objectives.values()),
        "has_training_reward": any(o["reward"] for o in objectives.values()),
        "has_margin": any(o["margin"] is not None for o in objectives.values()),
        "has_target": any(o.get("goal") == "target" for o in objectives.values()),
    }


def _other_cautions(objective: Mapping[str, Any]) -> list[str]:
    """The cautions that no box of the page has already."""
    cautions = objective.get("cautions") or ()
    return [caution for caution in cautions if not caution.startswith(SELF_JUDGED_PREFIX)]


def _warnings(evaluation: Mapping[str, Any] | None, of_heads: Sequence[str]) -> dict[str, list[str]]:
    """Warnings about the whole policy, and all others; a judge that is not independent has its own box."""
    lines = evaluation["warnings"] if evaluation else []
    others = [line for line in lines if not line.startswith((SELF_JUDGED_PREFIX, POLICY_PREFIX))]
    return {
        "policy": [line for line in lines if line.startswith(POLICY_PREFIX)],
        "others": [*of_heads, *others],
    }


def _format_percent(value: Any, decimals: int = 0) -> str:
    return formatting.keep_units(formatting.format_percent(value, decimals))


def _subtitle(
    recipe: Mapping[str, Any], run_info: Mapping[str, Any], lines: list[dict[str, Any]]
) -> list[str]:
    """The facts below the title: policy, algorithm, length, seed and start time."""

    def entry(section_name: str, key: str) -> Any:
        section = recipe.get(section_name)
        return section.get(key) if isinstance(section, Mapping) else None

    facts = [
        f"policy {entry('policy', 'path')}" if entry("policy", "path") else "",
        f"algorithm {entry('algorithm', 'name')}" if entry("algorithm", "name") else "",
        _format_progress(entry("run", "max_steps"), entry("run", "budget"), lines),
        f"seed {entry('run', 'seed')}" if entry("run", "seed") is not None else "",
        f"started {run_info['started_at']}" if run_info.get("started_at") else "",
    ]
    return [fact for fact in facts if fact]


def _format_progress(max_steps: Any, budget: Any, lines: list[dict[str, Any]]) -> str:
    """Progress of the alignment: the used part of the budget where there is one, else the steps."""
    if not isinstance(budget, Mapping):
        return f"{len(lines)} of {max_steps} steps" if max_steps else f"{len(lines)} steps"
    fraction = formatting.finite_or_none(lines[-1].get("budget/used")) if lines else 0.0
    used = formatting.MISSING if fraction is None else f"{fraction * budget['limit']:,.0f}"
    return f"{len(lines)} steps, {used} {budget['resource']} of a budget of {budget['limit']:,}"


def _pretrained_reward_models(recipe: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Title -> (path, revision) of the reward model and judge that the recipe loads ready-made."""
    models = {}
    for title, role in (("Reward model", "reward"), ("Judge", "judge")):
        section = recipe.get(role)
        if isinstance(section, Mapping) and section.get("path"):
            models[title] = (str(section["path"]), str(section.get("revision") or ""))
    return models


def _no_models(recipe: Mapping[str, Any]) -> str:
    """Why there is no report of a reward model."""
    if not recipe:
        return "the recipe of this run cannot be read"
    fits = [role for role in ("reward", "judge") if isinstance(recipe.get(role), Mapping) and recipe[role]]
    return "this run has not reached that stage" if fits else "this run fits none"


def _load_recipe(path: Path) -> dict[str, Any]:
    """The resolved recipe; empty where it is absent or unreadable, since the page only quotes from it."""
    if not path.exists():
        return {}
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8", errors="backslashreplace"))
    except yaml.YAMLError:
        return {}
    return recipe if isinstance(recipe, dict) else {}


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="backslashreplace") if path.exists() else ""


def _finalize(value: Any) -> Any:
    if value is None:
        return formatting.MISSING
    # Subclasses of str are Markup: output of templates and macros, whose parts have been escaped already.
    return escape_invisible(value) if type(value) is str else value
