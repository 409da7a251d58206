"""Figures of docs/results, from the benchmark.json of a benchmark; needs matplotlib, as in `make bench`.

python proofs/figures.py overoptimization FOLDER/benchmark.json docs/results/world-pressure.svg
python proofs/figures.py confidence FOLDER/benchmark.json docs/results/confidence.svg
"""

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "paretune"
mpl.rcParams["font.size"] = 8
import matplotlib.pyplot as plt  # noqa: E402

PANELS = {
    "training_reward": "training reward, sum over objectives",
    "kl": "KL to the initial policy, nats per response",
    "similarity": "METEOR between responses to different prompts",
}


def overoptimization(results: dict, weighting: str) -> plt.Figure:
    """Judge score against three measures of optimization pressure: one dot per run, one label per method."""
    figure, axes = plt.subplots(1, len(PANELS), figsize=(13, 4.6), sharey=True, layout="constrained")
    markers = ["o", "s", "^", "D", "v", "P", "X"]
    for axis, (metric, title) in zip(axes, PANELS.items(), strict=True):
        for i, (name, method) in enumerate(results["methods"].items()):
            values = method["overoptimization"][weighting]
            x, y = values[metric]["after"], values["judge_score"]["after"]
            color = mpl.colormaps["tab20"](i % 20)
            axis.scatter(x, y, s=7, alpha=0.45, color=color)
            mean = sum(x) / len(x), sum(y) / len(y)
            axis.scatter(*mean, s=26, marker=markers[i % len(markers)], color=color, label=name)
            axis.annotate(name, mean, textcoords="offset points", xytext=(4, 2), fontsize=6.5)
        first = next(iter(results["methods"].values()))["overoptimization"][weighting]
        initial = [first[key]["before"] for key in (metric, "judge_score")]
        if None not in initial:
            axis.scatter(*initial, s=40, facecolors="none", edgecolors="black")
            axis.annotate("initial policy", initial, textcoords="offset points", xytext=(5, 3), fontsize=7)
        axis.set_xlabel(title)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("true score, sum over objectives")
    return figure


def confidence(results: dict, weighting: str) -> plt.Figure:
    """ECE and AUROC before and after, as means over the seeds."""
    figure, axes = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
    for axis, key in zip(axes, ("ece", "auroc"), strict=True):
        names = list(results["methods"])
        for index, arm in enumerate(("before", "after")):
            values = [results["methods"][name]["side_metrics"][weighting][key][arm] for name in names]
            bars = axis.bar([i + 0.4 * index for i in range(len(names))], values, width=0.38, label=arm)
            axis.bar_label(bars, fmt="%.3f", fontsize=7)
        axis.set_xticks([i + 0.2 for i in range(len(names))], names)
        axis.set_ylabel(key.upper())
        axis.margins(y=0.12)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


FIGURES = {"overoptimization": overoptimization, "confidence": confidence}

if __name__ == "__main__":
    figure_name, source, target = sys.argv[1:]
    benchmark = json.loads(Path(source).read_text(encoding="utf-8"))
    figure = FIGURES[figure_name](benchmark, next(iter(benchmark["weightings"])))
    figure.savefig(target, metadata={"Date": None, "Creator": None})
