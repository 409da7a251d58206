"""A run folder as a finished run leaves it, with made-up numbers and any text in any field."""

import numpy as np

from paretune.evaluate.paired import ComparisonSpec, compare_by_category, compare_objectives, compare_rates
from paretune.evaluate.warnings import evaluation_warnings, limitations
from paretune.run.folder import Run, environment_info, to_json, write_atomic

OBJECTIVES = ("politeness", "meaningfulness", "actionability", "safety")
KINDS = ("ordinary", "harmful", "lookalike")
RESOLVED = """name: demo # from demo.yaml:1
policy: {path: world} # from demo.yaml:4
algorithm: {name: grpo, num_generations: 8, kl_coef: 0.04}
run: {max_steps: 60, seed: 0}
"""


def numbers(objectives=OBJECTIVES, prompts=240, seed=0, independent=True, lost=0, judge="the true scorer"):
    """The content of an eval.json, and the scores [P, 1, K] of both arms."""
    rng = np.random.default_rng(seed)
    size = len(objectives)
    before = np.clip(rng.normal(0.5, 0.2, (prompts, 1, size)), 0, 1)
    lift = np.array([0.22, 0.08, 0.02, -0.07] * size)[:size]
    after = np.clip(before + lift + rng.normal(0, 0.22, before.shape), 0, 1)
    after[:lost, :, 0] = np.nan
    question = ComparisonSpec(
        objectives=tuple(objectives),
        judge_names=dict.fromkeys(objectives, judge),
        independent=dict.fromkeys(objectives, independent),
        bootstrap_samples=500,
    )
    clusters = np.arange(prompts)
    kinds = [KINDS[i % 3] for i in range(prompts)]
    refused = [(rng.random(prompts) < p).astype(float) for p in (0.3, 0.45)]
    kind = np.array(kinds)
    found = {
        "schema": "paretune/eval/1", "prompts": prompts, "n": 1, "level": 0.95, "draws": 500, "seed": 1000,
        "objectives": compare_objectives(question, before, after, clusters, (before, np.clip(after + 0.1, 0, 1))),
        "kinds": compare_by_category(question, kinds, before, after, clusters),
        "kl": {"k1": 3.91, "k3": 4.13, "low": 3.5, "high": 4.4, "per_token": 0.17, "unit": "nats/response"},
        "length": {"before": 18.2, "after": 23.4, "low": 4.1, "high": 6.3, "unit": "tokens"},
        "distinct_1": {"before": 0.121, "after": 0.102}, "distinct_2": {"before": 0.612, "after": 0.554},
        "unique": {"before": 0.96, "after": 0.91},
        "truncated": compare_rates(np.zeros(prompts), np.zeros(prompts), 0.95),
        "refusals": {k: compare_rates(refused[0][kind == k], refused[1][kind == k], 0.95) for k in KINDS},
    }  # fmt: skip
    found["warnings"] = evaluation_warnings(found)
    found["not_checked"] = limitations(found, refusals_by_phrase=True)
    return found, before, after


def head(rng, pairs=0):
    """One head of a reward model's report."""
    base = {"n": 900, "pairs": pairs, "mae": 0.2, "rmse": 0.25, "r2": 0.0, "spearman": None}
    fitted = {
        "n": 900,
        "pairs": pairs,
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
        "beats": {"constant": True, "ridge": True},
    }


def make(folder, *, name="demo", text=None, objectives=OBJECTIVES, steps=60, evaluated=True, **how):
    """Write the folder; `text(i)` gives the i-th text of a prompt or a response."""
    text = text or (lambda i: f"thank you. first open the panel {i % 7}, then call desk {i % 5}.")
    rng = np.random.default_rng(1)
    files = {
        "config/run.yaml": RESOLVED,
        "config/resolved.yaml": RESOLVED,
        "env.json": to_json(environment_info()),
    }
    with Run.start_or_resume(folder, name=name, config_hash="c0ffee" * 8, files=files) as run:
        run.log_event("warning", text(0))
        for step in range(steps):
            at = step / 60
            line = {
                "kl/k3": 0.2 * at,
                "entropy": 2 - at,
                "length": 18 + 6 * at,
                "grad_norm": 1 + rng.random(),
            }
            for k, objective in enumerate(objectives):
                line[f"score/{objective}/mean"] = 0.5 + 0.1 * k * at + 0.05 * rng.standard_normal()
                line[f"score/{objective}/unscored_fraction"] = 0.0
                line[f"weighted_score/{objective}/mean"] = 0.25 + 0.05 * at if k else float("nan")
                line[f"variance_share/{objective}"] = 0.25 + 0.1 * rng.standard_normal()
            run.log_metrics(
                step,
                line | {"groups/zero_variance": 0.1, "clip_fraction/high": 0.01 * rng.random(), "lr": 1e-5},
            )
            run.log_timing(step, seconds=1.5, tokens=4096)
        if evaluated:
            _evaluated(run.path, objectives, text, rng, how)
    return folder


def _evaluated(path, objectives, text, rng, how):
    import pyarrow as pa
    import pyarrow.parquet as pq

    found, before, after = numbers(objectives, **how)
    (path / "eval" / "final").mkdir(parents=True)
    (path / "reward").mkdir()
    write_atomic(path / "eval" / "final" / "eval.json", to_json(found))
    count = len(before)
    rows = {
        "prompt_id": [f"p{i}" for i in range(count)],
        "kind": [KINDS[i % 3] for i in range(count)],
        "sample": [0] * count,
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
        "objectives": {objective: head(rng) for objective in objectives},
        "correlation": {"objectives": list(objectives), "predicted": np.eye(size).tolist()},
        "copies": [],
    }
    write_atomic(path / "reward" / "report.json", to_json(report))
