import subprocess
import sys

import pytest

from paretune.core.errors import ConfigError
from paretune.data.records import Sample
from paretune.reward.scorers import Scorer
from paretune.worlds import World, get_world, world_names


@pytest.mark.parametrize("name", world_names())
def test_world_is_consistent(name):
    world = get_world(name)
    assert isinstance(world, World)
    assert world.name == name
    assert sum(world.category_mix.values()) == pytest.approx(1.0)
    assert set(world.refusal_categories) <= set(world.category_mix)
    assert set(world.refusal_categories.values()) <= {"up", "down"}
    assert world.policy_config(len(world.tokenizer())).max_position_embeddings == world.context_length
    pools, test_prompts = world.prompts(num_prompts=60, num_test_prompts=20, seed=0)
    assert set(pools) <= set(world.category_mix)
    assert all(prompt.category == category for category, pool in pools.items() for prompt in pool)
    assert (sum(map(len, pools.values())), len(test_prompts)) == (60, 20)
    assert 0 < world.max_prompt_tokens(test_prompts) < world.context_length


@pytest.mark.parametrize("name", world_names())
def test_test_ratings_have_true_scores_of_the_objectives(name):
    world = get_world(name)
    objectives = world.objectives[:2]
    train, test = world.ratings(
        num_ratings=10,
        num_raters=2,
        rater_noise=0.1,
        length_bias=0.0,
        missing_rate=0.5,
        confidence_bias=0.0,
        seed=0,
        objectives=objectives,
    )
    assert len(train) == 10
    assert all(rating.labels.keys() <= set(objectives) for rating in train)
    scorer = world.scorer()
    assert isinstance(scorer, Scorer)
    assert scorer.names == world.objectives
    scores = scorer([Sample(prompt=rating.prompt, response=rating.response) for rating in test[:20]])
    for rating, row in zip(test[:20], scores[:, :2].tolist(), strict=True):
        assert list(rating.labels) == list(objectives)
        assert list(rating.labels.values()) == pytest.approx(row, abs=1e-6)
    assert len(world.demonstrations(num_demonstrations=5, seed=0)) == 5


def test_unknown_world_is_an_error_that_names_the_known_ones():
    with pytest.raises(ConfigError, match='no built-in world "moon"; fix: use one of helpdesk'):
        get_world("moon")


def test_facts_of_a_world_load_no_torch():
    code = (
        "import sys\nfrom paretune.worlds import get_world\n"
        "world = get_world()\nworld.objectives, world.category_mix, world.refusal_categories\n"
        "sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
