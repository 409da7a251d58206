"""Figures of docs/results, from the compare.json of a comparison; needs matplotlib, as in `make bench`.

.venv-bench/bin/python proofs/figures.py pressure FOLDER/compare.json docs/results/world-pressure.svg
.venv-bench/bin/python proofs/figures.py confidence FOLDER/compare.json docs/results/confidence.svg
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
    "reward": "training reward, sum over objectives",
    "kl": "KL to the start, nats a response",
    "similarity": "METEOR between answers to different requests",
}


def pressure(found: dict, weighting: str) -> plt.Figure:
    """The judge's sum against three signs of how far a policy was pushed: a dot a run, a name a method."""
    figure, axes = plt.subplots(1, len(PANELS), figsize=(13, 4.6), sharey=True, layout="constrained")
    marks = ["o", "s", "^", "D", "v", "P", "X"]
    for axis, (sign, title) in zip(axes, PANELS.items(), strict=True):
        for i, (name, method) in enumerate(found["methods"].items()):
            here = method["pressure"][weighting]
            x, y = here[sign]["after"], here["judge"]["after"]
            colour = mpl.colormaps["tab20"](i % 20)
            axis.scatter(x, y, s=7, alpha=0.45, color=colour)
            middle = sum(x) / len(x), sum(y) / len(y)
            axis.scatter(*middle, s=26, marker=marks[i % len(marks)], color=colour, label=name)
            axis.annotate(name, middle, textcoords="offset points", xytext=(4, 2), fontsize=6.5)
        start = [
            next(iter(found["methods"].values()))["pressure"][weighting][s]["before"] for s in (sign, "judge")
        ]
        if None not in start:
            axis.scatter(*start, s=40, facecolors="none", edgecolors="black")
            axis.annotate("start", start, textcoords="offset points", xytext=(5, 3), fontsize=7)
        axis.set_xlabel(title)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("true score, sum over objectives")
    return figure


def confidence(found: dict, weighting: str) -> plt.Figure:
    """ECE and AUROC before and after, in the mean of the seeds."""
    figure, axes = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
    for axis, key in zip(axes, ("ece", "auroc"), strict=True):
        names = list(found["methods"])
        for place, arm in enumerate(("before", "after")):
            values = [found["methods"][name]["side"][weighting][key][arm] for name in names]
            bars = axis.bar([i + 0.4 * place for i in range(len(names))], values, width=0.38, label=arm)
            axis.bar_label(bars, fmt="%.3f", fontsize=7)
        axis.set_xticks([i + 0.2 for i in range(len(names))], names)
        axis.set_ylabel(key.upper())
        axis.margins(y=0.12)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


DRAWN = {"pressure": pressure, "confidence": confidence}

if __name__ == "__main__":
    what, source, target = sys.argv[1:]
    compared = json.loads(Path(source).read_text(encoding="utf-8"))
    drawn = DRAWN[what](compared, next(iter(compared["weightings"])))
    drawn.savefig(target, metadata={"Date": None, "Creator": None})
