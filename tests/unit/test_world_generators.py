from collections import Counter

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


def categories_of(prompts):
    return [prompt.category for prompt in prompts]


def test_generators_depend_on_the_seed_only():
    assert generate_requests("train", 60, 1) == generate_requests("train", 60, 1)
    assert generate_demonstrations(60, 1) == generate_demonstrations(60, 1)
    assert generate_ratings(60, 1) == generate_ratings(60, 1)
    assert generate_requests("train", 60, 1) != generate_requests("train", 60, 2)
    assert generate_ratings(60, 1) != generate_ratings(60, 2)


def test_requests_are_distinct_and_follow_the_category_mix():
    prompts = generate_requests("test", 240, 0)
    assert len({request_text(p) for p in prompts}) == len({p.id for p in prompts}) == 240
    assert Counter(categories_of(prompts)) == {"ordinary": 96, "harmful": 72, "lookalike": 72}
    only_harmful = generate_requests("test", 10, 0, category_mix={"harmful": 1.0})
    assert set(categories_of(only_harmful)) == {"harmful"}
    assert generate_requests("train", 0, 0) == []


def test_ground_truth_scorer_scores_samples():
    scorer = GroundTruthScorer()
    prompt = Prompt(messages=(Message(role="user", content="how do i hide my piano ?"),))
    scores = scorer([Sample(prompt=prompt, response="hello ."), Sample(prompt=prompt, response="")])
    assert scorer.names == OBJECTIVES
    assert scores.shape == (2, 4)
    assert scores[0, 0] == pytest.approx(0.43)
    assert scores[1].sum() == 0
    assert scorer([]).shape == (0, 4)


def test_mean_scores_of_demonstrations_leave_room_for_improvement():
    means = true_scores(generate_demonstrations(900, 0)).mean(axis=0)
    assert np.all(means > 0.25)
    assert np.all(means < 0.7)


def test_actionability_and_safety_conflict_on_harmful_requests_only():
    demonstrations = generate_demonstrations(900, 0)
    scores = true_scores(demonstrations)
    category = np.array(categories_of([d.prompt for d in demonstrations]))
    harmful, ordinary = scores[category == "harmful"], scores[category == "ordinary"]
    assert np.corrcoef(harmful[:, 2], harmful[:, 3])[0, 1] < -0.45
    assert np.corrcoef(ordinary[:, 2], ordinary[:, 3])[0, 1] > -0.3
    most_actionable = harmful[harmful[:, 2] > np.quantile(harmful[:, 2], 0.9)]
    assert most_actionable[:, 3].mean() < 0.35


def test_no_score_value_is_shared_by_a_third_of_the_rated_answers():
    """Many equal true scores would bound the rank correlation that a reward model can reach."""
    scores = true_scores(generate_ratings(900, 0))
    for column in scores.T:
        shares = np.unique(column.round(4), return_counts=True)[1] / len(column)
        assert shares.max() < 1 / 3
        assert np.sqrt(1 - (shares**3).sum()) > 0.98


def labels_and_truth(**options):
    ratings = generate_ratings(700, 0, **options)
    labels = np.array([[r.labels.get(name, np.nan) for name in OBJECTIVES] for r in ratings])
    return ratings, labels, true_scores(ratings)


def test_missing_rate():
    _, labels, _ = labels_and_truth()
    assert np.isnan(labels).mean(axis=0) == pytest.approx([0.3] * 4, abs=0.06)
    _, complete, _ = labels_and_truth(missing_rate=0.0)
    assert not np.isnan(complete).any()
    assert all(not rating.labels for rating in generate_ratings(20, 0, missing_rate=1.0))


def test_labels_without_noise_and_bias_are_the_true_scores():
    _, labels, scores = labels_and_truth(rater_noise=0.0, length_bias=0.0, missing_rate=0.0)
    assert np.abs(labels - scores).max() < 1e-9


def test_length_bias_per_objective():
    ratings, labels, scores = labels_and_truth(rater_noise=0.0, length_bias=0.2, missing_rate=0.0)
    length = np.array([len(r.response.split()) for r in ratings])
    unclipped = (labels > 0.02) & (labels < 0.98)
    for k, slope in enumerate((0.2, 0.12, 0.06, 0.0)):
        error = (labels - scores)[unclipped[:, k], k]
        fitted = np.polyfit(length[unclipped[:, k]] / 32, error, 1)[0]
        assert fitted == pytest.approx(slope, abs=0.02)


def test_more_raters_reduce_the_label_error():
    def error(num_raters):
        _, labels, scores = labels_and_truth(
            num_raters=num_raters, rater_noise=0.2, length_bias=0.0, missing_rate=0.0
        )
        return np.abs(labels - scores).mean()

    assert error(12) < 0.7 * error(1)


def test_labels_are_clipped_to_the_unit_interval():
    _, labels, _ = labels_and_truth(rater_noise=0.4)
    assert np.nanmin(labels) >= 0
    assert np.nanmax(labels) <= 1
