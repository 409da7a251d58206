"""The help desk as a whole: determinism, raters, true scores, and the built-in conflict."""

import numpy as np
import pytest

from paretune.data.records import Message, Prompt, Sample
from paretune.worlds.helpdesk.world import (
    OBJECTIVES,
    GroundTruthScorer,
    generate_demonstrations,
    generate_ratings,
    generate_requests,
    ground_truth_scores,
    request_text,
)


def true_scores(records):
    return np.array([ground_truth_scores(request_text(r.prompt), r.response) for r in records])


def kinds(records):
    return np.array([r.prompt.kind for r in records])


def test_the_same_seed_gives_the_same_world_and_another_seed_another():
    assert generate_requests("train", 60, 1) == generate_requests("train", 60, 1)
    assert generate_demonstrations(60, 1) == generate_demonstrations(60, 1)
    assert generate_ratings(60, 1) == generate_ratings(60, 1)
    assert generate_requests("train", 60, 1) != generate_requests("train", 60, 2)
    assert generate_ratings(60, 1) != generate_ratings(60, 2)


def test_requests_are_different_named_and_mixed_as_asked():
    prompts = generate_requests("test", 240, 0)
    assert len({request_text(p) for p in prompts}) == len({p.id for p in prompts}) == 240
    assert [sum(p.category == kind for p in prompts) for kind in ("ordinary", "harmful", "lookalike")] == [
        96,
        72,
        72,
    ]
    assert {p.category for p in generate_requests("test", 10, 0, category_mix={"harmful": 1.0})} == {
        "harmful"
    }
    assert generate_requests("train", 0, 0) == []


def test_the_true_scorer_scores_samples():
    scorer = GroundTruthScorer()
    prompt = Prompt(messages=(Message(role="user", content="how do i hide my piano ?"),))
    scores = scorer([Sample(prompt=prompt, response="hello ."), Sample(prompt=prompt, response="")])
    assert scorer.names == OBJECTIVES
    assert scores.shape == (2, 4)
    assert scores[0, 0] == pytest.approx(0.43)
    assert scores[1].sum() == 0
    assert scorer([]).shape == (0, 4)


def test_every_true_score_of_the_start_has_room_to_rise():
    means = true_scores(generate_demonstrations(900, 0)).mean(axis=0)
    assert np.all(means > 0.25)
    assert np.all(means < 0.7)


def test_actionability_and_safety_conflict_on_harmful_requests_only():
    found = generate_demonstrations(900, 0)
    scores, kind = true_scores(found), kinds(found)
    harmful, ordinary = scores[kind == "harmful"], scores[kind == "ordinary"]
    assert np.corrcoef(harmful[:, 2], harmful[:, 3])[0, 1] < -0.45
    assert np.corrcoef(ordinary[:, 2], ordinary[:, 3])[0, 1] > -0.3
    most_actionable = harmful[harmful[:, 2] > np.quantile(harmful[:, 2], 0.9)]
    assert most_actionable[:, 3].mean() < 0.35


def test_no_objective_has_a_level_that_holds_a_third_of_the_rated_answers():
    """Many equal true scores would bound the rank correlation that any reward model can reach."""
    scores = true_scores(generate_ratings(900, 0))
    for column in scores.T:
        shares = np.unique(column.round(4), return_counts=True)[1] / len(column)
        assert shares.max() < 1 / 3
        assert np.sqrt(1 - (shares**3).sum()) > 0.98


def labels_and_truth(**options):
    found = generate_ratings(700, 0, **options)
    labels = np.array([[r.labels.get(name, np.nan) for name in OBJECTIVES] for r in found])
    return found, labels, true_scores(found)


def test_labels_are_missing_as_often_as_asked():
    _, labels, _ = labels_and_truth()
    assert np.isnan(labels).mean(axis=0) == pytest.approx([0.3] * 4, abs=0.06)
    _, complete, _ = labels_and_truth(missing=0.0)
    assert not np.isnan(complete).any()
    assert all(not rating.labels for rating in generate_ratings(20, 0, missing_rate=1.0))


def test_raters_without_noise_and_bias_tell_the_truth():
    _, labels, scores = labels_and_truth(noise=0.0, length_bias=0.0, missing=0.0)
    assert np.abs(labels - scores).max() < 1e-9


def test_raters_like_length_in_politeness_and_meaningfulness_but_not_in_safety():
    found, labels, scores = labels_and_truth(noise=0.0, length_bias=0.2, missing=0.0)
    length = np.array([len(r.response.split()) for r in found])
    inside = (labels > 0.02) & (labels < 0.98)
    for k, slope in enumerate((0.2, 0.12, 0.06, 0.0)):
        error = (labels - scores)[inside[:, k], k]
        fitted = np.polyfit(length[inside[:, k]] / 32, error, 1)[0]
        assert fitted == pytest.approx(slope, abs=0.02)


def test_more_raters_make_labels_better():
    def error(raters):
        _, labels, scores = labels_and_truth(raters=raters, noise=0.2, length_bias=0.0, missing=0.0)
        return np.abs(labels - scores).mean()

    assert error(12) < 0.7 * error(1)


def test_labels_lie_in_the_unit_interval():
    _, labels, _ = labels_and_truth(noise=0.4)
    assert np.nanmin(labels) >= 0
    assert np.nanmax(labels) <= 1
