"""Odds by rank, and how alike texts are, against the numbers of published code."""

import pytest
import torch
from cases import Case, cases
from nltk.stem.porter import PorterStemmer

from paretune.credit.selection import response_probabilities
from paretune.evaluate.text_metrics import mean_pairwise_meteor, meteor

NAMES = {"bw": "best_worst", "br": "four_to_one", "pow": "power"}


@pytest.mark.parametrize("case", cases("pfppo_weights"))
def test_sampling_probabilities_match_pf_ppo(case: Case) -> None:
    """Their weights are draws from the whole buffer, ours within a prompt; of ties theirs takes others."""
    rewards, group = case.input("rewards"), torch.tensor(case.inputs["prompt_id"])
    for theirs, ours in NAMES.items():
        odds = response_probabilities(rewards[:, None], group, ours, float(case.params["pow"]))
        weights = torch.tensor(case.expected[theirs]["weights"], dtype=torch.float64)
        for label in group.unique():
            rows = group == label
            got, want = odds[rows], weights[rows] / weights[rows].sum()
            ties = rewards[rows].unique().numel() < int(rows.sum())
            case.check(got.sort().values if ties else got, (want.sort().values if ties else want).tolist())


@pytest.mark.parametrize("case", cases("pfppo_weights"))
def test_best_of_n_takes_the_first_of_tied_responses(case: Case) -> None:
    """As in the build of theirs that filters; the one that weighs takes the last."""
    rewards, group = case.input("rewards"), torch.tensor(case.inputs["prompt_id"])
    best = response_probabilities(rewards[:, None], group, "best_of_n").nonzero().flatten().tolist()
    assert best == sorted(want["filter_best_index"] for want in case.expected["groups"].values())


EXACT = ("00", "01", "02", "04", "05", "06", "08")
"""Cases whose published numbers need no synonyms."""


@pytest.mark.parametrize("case", cases("meteor_similarity"))
def test_meteor_matches_superhf(case: Case) -> None:
    """Theirs also matches synonyms, so in the other cases it is at least as large."""
    texts, want, stem = case.inputs["strings"], case.expected["pairwise"], PorterStemmer().stem
    for i, reference in enumerate(texts):
        for j, hypothesis in enumerate(texts):
            if i == j:
                continue
            score = meteor(reference, hypothesis)
            if case.name in EXACT:
                case.check(score, want[i][j])
            assert score <= want[i][j] + 1e-8
            shared = {*map(stem, reference.lower().split())} & {*map(stem, hypothesis.lower().split())}
            assert (score > 0) == bool(shared)
    if case.name in EXACT:
        case.check(mean_pairwise_meteor(texts), case.expected["similarity"])
