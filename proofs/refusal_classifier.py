"""The classifier of refusals: its fit on the human labels of XSTest, and its error beside the keyword rule.

    python proofs/refusal_classifier.py              # measure, and compare the fit with the shipped weights
    python proofs/refusal_classifier.py --write      # write the weights that are shipped

Labels: a response refuses if its label is full refusal (compliance 0) and does not if it is full compliance
(1). Partial refusals (0.5) are in no error and no fit; how often they count as refusals is a row of its own.
The shipped weights are fitted on the train part; prompts are in one part and one fold only.
"""

import gzip
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from paretune.evaluate.refusals import (
    MIN_KNOWN_SHARE,
    WEIGHTS_FILE,
    RefusalClassifier,
    load_refusal_classifier,
    refusal_ngrams,
)
from paretune.evaluate.statistics import wilson
from paretune.reward.scorers import is_refusal

SHARED = Path(os.environ.get("PARETUNE_SHARED", Path(__file__).parents[2] / "shared"))
MIN_PROMPTS, INVERSE_PENALTY, NUM_FOLDS = 3, 10.0, 10
"""Chosen by cross-validation on the train part: n-grams in responses to fewer prompts are left out."""
BOOTSTRAP_SAMPLES, CUT_WORDS = 10_000, 20
SOURCE = (
    "Fitted on model responses and human labels of XSTest v2 (paul-rottger/exaggerated-safety at "
    "d7bb5bd738c1), Paul Röttger et al. 2024, arXiv:2308.01263, licensed CC-BY-4.0: word counts and weights "
    "alone, no response."
)

Row = dict[str, Any]
Flags = NDArray[np.float64]


def read_rows(part: str) -> list[Row]:
    """Rows of the train or test part."""
    path = SHARED / "data" / "ratings" / f"xstest_compliance.{part}.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def fit(rows: Sequence[Row]) -> RefusalClassifier:
    """The classifier of rows that are full refusals or full compliance."""
    ngrams = [refusal_ngrams(row["response"])[1] for row in rows]
    prompts = defaultdict(set)
    for row, found in zip(rows, ngrams, strict=True):
        for ngram in found:
            prompts[ngram].add(row["prompt"][-1]["content"])
    vocabulary = sorted(ngram for ngram, those in prompts.items() if len(those) >= MIN_PROMPTS)
    columns = {ngram: column for column, ngram in enumerate(vocabulary)}
    known = [sorted(columns[ngram] for ngram in found if ngram in columns) for found in ngrams]
    features = csr_matrix(
        (
            np.concatenate([np.full(len(row), 1 / np.sqrt(max(len(row), 1))) for row in known]),
            np.concatenate(known).astype(int),
            np.cumsum([0, *map(len, known)]),
        ),
        shape=(len(rows), len(vocabulary)),
    )
    model = LogisticRegression(C=INVERSE_PENALTY, max_iter=2000, tol=1e-6).fit(features, labels(rows))
    weights = dict(zip(vocabulary, np.round(model.coef_[0], 3).tolist(), strict=True))
    return RefusalClassifier(weights=weights, intercept=round(float(model.intercept_[0]), 3))


def is_full(row: Row) -> bool:
    """Whether a row is a full refusal or full compliance."""
    return bool(row["scores"]["compliance"] != 0.5)


def labels(rows: Sequence[Row]) -> NDArray[np.bool_]:
    """Whether each row is a full refusal."""
    return np.array([row["scores"]["compliance"] == 0 for row in rows])


def by_rule(rows: Sequence[Row]) -> Flags:
    """The keyword rule on each row."""
    return np.array([float(is_refusal(row["response"])) for row in rows])


def by_unseen_prompts(rows: Sequence[Row]) -> Flags:
    """Each row by a classifier that did not see its prompt."""
    prompts = [row["prompt"][-1]["content"] for row in rows]
    flags = np.full(len(rows), np.nan)
    for train, held_out in GroupKFold(NUM_FOLDS).split(rows, groups=prompts):
        classifier = fit([rows[i] for i in train])
        flags[held_out] = classifier.refuses([rows[i]["response"] for i in held_out])
    return flags


def by_unseen_prompts_and_models(rows: Sequence[Row]) -> Flags:
    """Each row by a classifier that saw neither its prompt nor its model."""
    prompts = [row["prompt"][-1]["content"] for row in rows]
    flags = np.full(len(rows), np.nan)
    for train, held_out in GroupKFold(NUM_FOLDS // 2).split(rows, groups=prompts):
        for model in sorted({row["model"] for row in rows}):
            own = [i for i in held_out if rows[i]["model"] == model]
            classifier = fit([rows[i] for i in train if rows[i]["model"] != model])
            flags[own] = classifier.refuses([rows[i]["response"] for i in own])
    return flags


def error_rates(truth: NDArray[np.bool_], flags: Flags, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """[D, 3] accuracy, false positive and false negative rate over the scored rows, of [D, N] weights."""
    scored = ~np.isnan(flags)
    rates = [
        (weights @ (case & scored & wrong)) / (weights @ (case & scored))
        for case, wrong in ((~truth | truth, flags == truth), (~truth, flags == 1), (truth, flags == 0))
    ]
    return np.stack(rates, 1)


def measure(rows: Sequence[Row], arms: dict[str, Flags]) -> dict[str, Any]:
    """Error of each way to detect refusals, with intervals over resampled prompts, on the same rows."""
    truth = labels(rows)
    _, prompts = np.unique([row["prompt"][-1]["content"] for row in rows], return_inverse=True)
    num_prompts = int(prompts.max()) + 1
    rng = np.random.Generator(np.random.Philox(0))
    counts = rng.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), BOOTSTRAP_SAMPLES)
    weights = np.concatenate([np.ones((1, len(rows))), counts[:, prompts].astype(float)])
    scored = ~np.isnan(np.stack(list(arms.values()))).any(0)
    result: dict[str, Any] = {
        "num_responses": int(scored.sum()),
        "num_prompts": num_prompts,
        "not_scored": round(float(1 - scored.mean()), 4),
    }
    replicates = {}
    for name, flags in arms.items():
        rates = error_rates(truth, np.where(scored, flags, np.nan), weights)
        replicates[name] = rates
        low, high = np.quantile(rates[1:], [0.025, 0.975], axis=0)
        for i, case in enumerate((truth | ~truth, ~truth, truth)):
            if rates[0, i] in (0.0, 1.0):  # resampling knows nothing of cases that did not occur
                num_prompts_of_case = len(np.unique(prompts[case & scored]))
                low[i], high[i] = wilson(rates[0, i] * num_prompts_of_case, num_prompts_of_case)
        names = ("accuracy", "false_positive_rate", "false_negative_rate")
        result[name] = {key: round(float(rates[0, i]), 4) for i, key in enumerate(names)}
        result[name]["intervals"] = {
            key: [round(float(low[i]), 4), round(float(high[i]), 4)] for i, key in enumerate(names)
        }
    gain = replicates["classifier"][:, 0] - replicates["rule"][:, 0]
    low, high = np.quantile(gain[1:], [0.025, 0.975])
    result["accuracy_gain"] = [round(float(each), 4) for each in (gain[0], low, high)]
    return result


def table(measured: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Lines of Markdown: one row per set of rows and way to detect refusals."""
    yield "| rows | n | not scored % | by | accuracy % | false positives % | false negatives % | gain |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for title, each in measured.items():
        for name in ("rule", "classifier"):
            cells = []
            for key, (low, high) in each[name]["intervals"].items():
                cells.append(f"{100 * each[name][key]:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
            gain, low, high = (100 * number for number in each["accuracy_gain"])
            shown = f"{gain:+.1f} [{low:+.1f}, {high:+.1f}]" if name == "classifier" else ""
            share = f"{100 * each['not_scored']:.1f}"
            yield f"| {title} | {each['num_responses']} | {share} | {name} | {' | '.join(cells)} | {shown} |"


def cut(rows: Sequence[Row]) -> list[Row]:
    """The rows with the first words of each response alone."""
    return [row | {"response": " ".join(row["response"].split()[:CUT_WORDS])} for row in rows]


def main() -> int:
    """Print the measurements; compare or write the weights."""
    parts = {part: read_rows(part) for part in ("train", "test")}
    train, test = ([row for row in parts[part] if is_full(row)] for part in ("train", "test"))
    classifier = fit(train)
    models = [row["model"] for row in train]
    unseen_model = by_unseen_prompts_and_models(train)

    def both(rows: Sequence[Row], flags: Flags) -> dict[str, Any]:
        return measure(rows, {"rule": by_rule(rows), "classifier": flags})

    def fitted(rows: Sequence[Row]) -> Flags:
        return classifier.refuses([row["response"] for row in rows])

    error = both(train, unseen_model)
    measured = {
        "test part, weights as shipped": both(test, fitted(test)),
        "train part, unseen prompts": both(train, by_unseen_prompts(train)),
        "train part, unseen prompts and model": error,
        f"test part, cut to {CUT_WORDS} words": both(cut(test), fitted(cut(test))),
    }
    for model in sorted(set(models)):
        own = [i for i, name in enumerate(models) if name == model]
        measured[f"unseen prompts and model: {model}"] = both([train[i] for i in own], unseen_model[own])
    print("\n".join(table(measured)))
    partial = [row for row in parts["test"] + parts["train"] if not is_full(row)]
    counts = {"rule": by_rule(partial), "classifier": fitted(partial)}
    shares = ", ".join(f"{100 * np.nanmean(flags):.0f} % by the {name}" for name, flags in counts.items())
    print(f"\nPartial refusals ({len(partial)}) that count as refusals: {shares}.")
    content = {
        "source": SOURCE,
        "min_known_share": MIN_KNOWN_SHARE,
        "error": error,
        "intercept": classifier.intercept,
        "weights": classifier.weights,
    }
    if "--write" in sys.argv[1:]:
        WEIGHTS_FILE.write_text(json.dumps(content, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
        print(f"Wrote {len(classifier.weights):,} weights, {WEIGHTS_FILE.stat().st_size / 1000:.0f} kB.")
        return 0
    shipped = load_refusal_classifier()
    same_words = shipped.weights.keys() == classifier.weights.keys()
    largest = max(abs(shipped.weights.get(n, np.inf) - w) for n, w in classifier.weights.items())
    same = same_words and largest <= 0.02 and dict(shipped.error) == error
    print(f"Weights as shipped: {'yes' if same else 'NO'} (largest difference {largest:.3g}).")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
