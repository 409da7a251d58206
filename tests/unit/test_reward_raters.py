"""Training on separate votes: each response counts once, however many raters it had."""

from dataclasses import replace

import fitting_task as task
import pytest
import torch

from paretune.data.raters import separate_votes
from paretune.data.records import NO_VOTES, NO_WEIGHTS, Rating, Sample
from paretune.reward.checkpoint import reward_model_from_lm
from paretune.reward.model import RewardModelScorer
from paretune.reward.training import RewardTask, fit_reward_model
from paretune.training.optimizer import OptimizerConfig
from paretune.training.supervised import SupervisedConfig

NAMES = ("safe", "kind")


def rated(response, **votes):
    labels = {name: sum(values) / len(values) for name, values in votes.items()}
    many = {name: values for name, values in votes.items() if len(values) > 1}
    return Rating(prompt=task.prompt("a"), response=response, labels=labels, votes=many)


RATED = [
    rated("abc", safe=(1.0, 2.0, 5.0), kind=(2.0,)),
    rated("cb", safe=(4.0,)),
    rated("hgf", safe=(5.0, 4.0), kind=(1.0, 1.0, 4.0, 2.0)),
    rated("de!", kind=(5.0, 4.0)),
]
SEPARATE = list(separate_votes(RATED))


def new_model():
    return reward_model_from_lm(task.language(layers=1), NAMES, (1.5, 1.5), (3.0, 3.0))


def trained_scores(ratings):
    """Scores of RATED by a model that took three steps over all of `ratings`."""
    model = new_model()
    optim_config = OptimizerConfig(learning_rate=1e-2)
    fit_reward_model(
        model, ratings, SupervisedConfig(num_train_epochs=3, batch_size=64, optim_config=optim_config), seed=0
    )
    return RewardModelScorer(model)([Sample(prompt=r.prompt, response=r.response) for r in RATED])


@pytest.mark.parametrize("objective", NAMES)
def test_every_response_weighs_the_same_however_many_votes_it_has(objective):
    weights = RewardTask(new_model(), SEPARATE).weights_per_label[:, NAMES.index(objective)]
    sums = {r.response: 0.0 for r in RATED if objective in r.labels}
    for vote, weight in zip(SEPARATE, weights.tolist(), strict=True):
        if objective in vote.labels:
            sums[vote.response] += weight
    assert list(sums.values()) == pytest.approx([len(SEPARATE) / len(NAMES) / 3] * 3)


def test_separate_votes_train_the_same_model_as_their_means_by_squared_error():
    means = trained_scores([replace(rating, votes=NO_VOTES) for rating in RATED])
    torch.testing.assert_close(trained_scores(SEPARATE), means, atol=2e-3, rtol=0.0)
    as_responses = trained_scores([replace(vote, label_weights=NO_WEIGHTS) for vote in SEPARATE])
    assert (as_responses - means).abs().max() > 0.05
