"""The model card of an exported policy: evaluation, judges, limits, data, recipe."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from paretune.models.load import REPO_ID_PATTERN
from paretune.report.formatting import (
    decimals_for,
    format_interval,
    format_number,
    format_signed,
    format_verdict,
    sanitize,
)
from paretune.report.tables import name_with_goal
from paretune.run.compat import MANIFEST_FILE, RECIPE_FILE, RESOLVED_CONFIG_FILE
from paretune.run.io import read_json

_USE = {
    False: """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```""",
    True: """```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```""",
}


def policy_card(run: Path, *, is_adapter: bool) -> str:
    """The text of README.md.

    Args:
        run: The run folder; what it lacks is left out, and said so.
        is_adapter: The folder holds an adapter, not the whole weights.
    """
    evaluation = read_json(run / "eval" / "final" / "eval.json")
    parts = [_front_matter(run, is_adapter), f"# {run.resolve().name}", _introduction(run)]
    parts += ["## Use", _USE[is_adapter].format(name="path/of/this/folder")]
    parts += ["## Evaluation", *(_no_evaluation() if evaluation is None else _evaluation(evaluation))]
    if evaluation is not None and (
        lines := [*evaluation.get("warnings", ()), *evaluation.get("limitations", ())]
    ):
        parts += ["## Limits", "\n".join(f"* {_cell(_without_fix(line))}" for line in lines)]
    parts += _data(run) + _recipe(run)
    return "\n\n".join(parts) + "\n"


def _front_matter(run: Path, is_adapter: bool) -> str:
    fields: dict[str, Any] = {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["paretune", "multi-objective"],
    }
    if REPO_ID_PATTERN.fullmatch(base := _base_model(run)) and not Path(base).exists():
        fields["base_model"] = base
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def _resolved_recipe(run: Path) -> Mapping[str, Any]:
    path = run / RESOLVED_CONFIG_FILE
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.exists() else {}


def _base_model(run: Path) -> str:
    return str((_resolved_recipe(run).get("policy") or {}).get("path", ""))


def _introduction(run: Path) -> str:
    recipe, base = _resolved_recipe(run), _base_model(run)
    start = {"": "a language model", "world": "a policy of the built-in world of paretune"}
    algorithm = (recipe.get("algorithm") or {}).get("name")
    objectives = [_cell(name) for name in recipe.get("objectives") or ()]
    method = f" with {_cell(algorithm)}" if algorithm else ""
    plural = "s" * (len(objectives) != 1)
    goals = f", for the objective{plural} {', '.join(objectives)}" if objectives else ""
    model = start.get(base, f"`{_cell(_public_name(base))}`")
    return f"This model is {model}, trained further by paretune{method}{goals}."


def _public_name(path: str) -> str:
    """A name on the hub as it is; of a local folder or file its last part: nobody else has the others."""
    return Path(path).name if Path(path).is_absolute() or path.startswith((".", "~")) else path


def _no_evaluation() -> list[str]:
    return ["The run has no evaluation: whether the policy is better than the one before is not known."]


def _evaluation(evaluation: Mapping[str, Any]) -> list[str]:
    level = f"{100 * evaluation.get('confidence_level', 0.95):.0f} %"
    head = ("objective", "before", "after", f"change [{level}]", "verdict", "judge")
    rows = [head, ("---", "---:", "---:", "---:", "---", "---")]
    for name, result in evaluation["objectives"].items():
        decimals = decimals_for(result)
        interval = format_interval(result["low"], result["high"], decimals)
        rows.append(
            (
                name_with_goal(name, result),
                format_number(result["before"], decimals),
                format_number(result["after"], decimals),
                f"{format_signed(result['change'], decimals)} {interval}".rstrip(),
                format_verdict(result),
                result.get("judge", "none") + ("" if result.get("independent") else " (not independent)"),
            )
        )
    table = "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in rows)
    count, samples = evaluation["num_prompts"], evaluation["num_generations"]
    note = (
        f"{count:,} test prompts, {samples} response{'s' * (samples > 1)} each, sampled from both policies "
        "with the same seeds. The intervals hold for all objectives at once; “better” and “worse” need an "
        "interval without 0, and “no evidence” means that a change was not found, not that there is none."
    )
    return [table, note]


def _data(run: Path) -> list[str]:
    manifest = read_json(run / MANIFEST_FILE) or {}
    hashes = manifest.get("file_sha256") or {}
    models = manifest.get("models") or {}
    lines = [
        f"* `{_cell(_public_name(name))}`: {_cell(digest)}" for name, digest in {**hashes, **models}.items()
    ]
    return ["## Data", "SHA-256 of the data files and models:", "\n".join(lines)] if lines else []


def _recipe(run: Path) -> list[str]:
    path = run / RECIPE_FILE
    if not path.exists():
        return []
    lines = list(_fence_safe(path.read_text(encoding="utf-8")))
    return ["## Recipe", "\n".join(["```yaml", *lines, "```"])]


def _fence_safe(text: str) -> Iterator[str]:
    """The lines of a recipe; none of them ends the code block."""
    return (sanitize(line.replace("```", "'''")) for line in text.rstrip().splitlines())


def _without_fix(warning: str) -> str:
    """A warning without the advice to whoever trained the model: readers of a card only use it."""
    text, separator, _ = warning.partition("; fix: ")
    return f"{text}." if separator else text


def _cell(value: object) -> str:
    """A value on one line, without what Markdown would read as a cell border or as HTML."""
    text = value if isinstance(value, str) else json.dumps(value)
    text = " ".join(sanitize(text).split())
    return text.replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
