"""A run folder as a finished run leaves it, with invented numbers and arbitrary text in any field."""

import numpy as np

from paretune.evaluate.paired import ComparisonSpec, compare_by_category, compare_objectives, compare_rates
from paretune.evaluate.warnings import evaluation_warnings, limitations
from paretune.run.folder import Run, environment_info, to_json, write_atomic

OBJECTIVES = ("politeness", "meaningfulness", "actionability", "safety")
CATEGORIES = ("ordinary", "harmful", "lookalike")
RESOLVED = """name: demo # from demo.yaml:1
policy: {path: world} # from demo.yaml:4
algorithm: {name: grpo, num_generations: 8, kl_coef: 0.04}
run: {max_steps: 60, seed: 0}
"""


def fake_evaluation(
    objectives=OBJECTIVES, prompts=240, seed=0, independent=True, num_unscored=0, judge="the ground truth"
):
    """The content of an eval.json, and the judge scores [P, 1, K] before and after."""
    rng = np.random.default_rng(seed)
    size = len(objectives)
    before = np.clip(rng.normal(0.5, 0.2, (prompts, 1, size)), 0, 1)
    lift = np.array([0.22, 0.08, 0.02, -0.07] * size)[:size]
    after = np.clip(before + lift + rng.normal(0, 0.22, before.shape), 0, 1)
    after[:num_unscored, :, 0] = np.nan
    spec = ComparisonSpec(
        objectives=tuple(objectives),
        judge_names=dict.fromkeys(objectives, judge),
        independent=dict.fromkeys(objectives, independent),
        bootstrap_samples=500,
    )
    clusters = np.arange(prompts)
    categories = [CATEGORIES[i % 3] for i in range(prompts)]
    refused = [(rng.random(prompts) < p).astype(float) for p in (0.3, 0.45)]
    category = np.array(categories)
    results = {
        "schema": "paretune/eval/3", "num_prompts": prompts, "num_generations": 1, "confidence_level": 0.95,
        "bootstrap_samples": 500, "seed": 1000, "refusal_categories": {"harmful": "up", "lookalike": "down"},
        "objectives": compare_objectives(spec, before, after, clusters, (before, np.clip(after + 0.1, 0, 1))),
        "categories": compare_by_category(spec, categories, before, after, clusters),
        "kl": {"k1": 3.91, "k3": 4.13, "low": 3.5, "high": 4.4, "per_token": 0.17, "unit": "nats/response"},
        "length": {"before": 18.2, "after": 23.4, "low": 4.1, "high": 6.3, "unit": "tokens"},
        "distinct_1": {"before": 0.121, "after": 0.102}, "distinct_2": {"before": 0.612, "after": 0.554},
        "unique_fraction": {"before": 0.96, "after": 0.91},
        "truncation_rate": compare_rates(np.zeros(prompts), np.zeros(prompts), 0.95),
        "refusal_rate": {
            name: compare_rates(refused[0][category == name], refused[1][category == name], 0.95)
            for name in CATEGORIES
        },
    }  # fmt: skip
    results["warnings"] = evaluation_warnings(results)
    results["limitations"] = limitations(results, refusals_by_phrase=True)
    return results, before, after


def _head_report(rng, num_pairs=0):
    """One head of a reward model's report."""
    base = {"num_ratings": 900, "num_pairs": num_pairs, "mae": 0.2, "rmse": 0.25, "r2": 0.0, "spearman": None}
    fitted = {
        "num_ratings": 900,
        "num_pairs": num_pairs,
        "mae": 0.07,
        "rmse": 0.09,
        "r2": 0.88 - 0.1 * rng.random(),
        "spearman": 0.93,
    }
    return fitted | {
        "pair_accuracy": 0.91,
        "calibration": {"slope": 0.97, "intercept": 0.01, "error": 0.02, "bins": []},
        "length": {"predicted": 0.41, "label": 0.22},
        "baselines": {
            "constant": base | {"pair_accuracy": 0.5},
            "ridge": base | {"r2": 0.61, "spearman": 0.79, "rmse": 0.16, "mae": 0.12, "pair_accuracy": 0.78},
        },
        "beats_baselines": {"constant": True, "ridge": True},
    }


def make_run(
    folder, *, name="demo", text=None, objectives=OBJECTIVES, steps=60, evaluated=True, **evaluation
):
    """Write the run folder; `text(i)` is the i-th text of a prompt or a response."""
    text = text or (lambda i: f"thank you. first open the panel {i % 7}, then call desk {i % 5}.")
    rng = np.random.default_rng(1)
    files = {
        "config/recipe.yaml": RESOLVED,
        "config/resolved.yaml": RESOLVED,
        "env.json": to_json(environment_info()),
    }
    with Run.start_or_resume(folder, name=name, config_hash="c0ffee" * 8, files=files) as run:
        run.log_event("warning", text(0))
        for step in range(steps):
            progress = step / 60
            line = {
                "kl/k3": 0.2 * progress,
                "entropy": 2 - progress,
                "responses/length": 18 + 6 * progress,
                "grad_norm": 1 + rng.random(),
            }
            for k, objective in enumerate(objectives):
                line[f"score/{objective}/mean"] = 0.5 + 0.1 * k * progress + 0.05 * rng.standard_normal()
                line[f"score/{objective}/unscored_fraction"] = 0.0
                line[f"weighted_score/{objective}/mean"] = 0.25 + 0.05 * progress if k else float("nan")
                line[f"variance_share/{objective}"] = 0.25 + 0.1 * rng.standard_normal()
            run.log_metrics(
                step,
                line
                | {
                    "groups/zero_variance": 0.1,
                    "clip_fraction/high": 0.01 * rng.random(),
                    "learning_rate": 1e-5,
                },
            )
            run.log_timing(step, seconds=1.5, tokens=4096)
        if evaluated:
            _write_evaluation(run.path, objectives, text, rng, evaluation)
    return folder


def _write_evaluation(path, objectives, text, rng, options):
    import pyarrow as pa
    import pyarrow.parquet as pq

    results, before, after = fake_evaluation(objectives, **options)
    (path / "eval" / "final").mkdir(parents=True)
    (path / "reward").mkdir()
    write_atomic(path / "eval" / "final" / "eval.json", to_json(results))
    count = len(before)
    rows = {
        "prompt_id": [f"p{i}" for i in range(count)],
        "category": [CATEGORIES[i % 3] for i in range(count)],
        "sample_index": [0] * count,
        "prompt": [text(i) for i in range(count)],
        "before": [text(i + 1) for i in range(count)],
        "after": [text(i + 2) for i in range(count)],
        "after_truncated": [i % 9 == 0 for i in range(count)],
        "after_tokens": [10 + i % 20 for i in range(count)],
    }
    for k, objective in enumerate(objectives):
        rows[f"before/{objective}"] = before[:, 0, k].tolist()
        rows[f"after/{objective}"] = after[:, 0, k].tolist()
    pq.write_table(pa.table(rows), path / "eval" / "final" / "generations.parquet")
    size = len(objectives)
    report = {
        "objectives": {objective: _head_report(rng) for objective in objectives},
        "correlation": {"objectives": list(objectives), "predicted": np.eye(size).tolist()},
        "redundant_heads": [],
    }
    write_atomic(path / "reward" / "report.json", to_json(report))
