"""Requirements of rollout sources and specs, and the comparison with what a training context has."""

import pytest

from paretune.core.errors import WiringError
from paretune.core.requirements import ANY_NUMBER, Requirements
from paretune.rl.context import check_context
from paretune.rollout.sampler import FrozenPolicy, OnPolicy, RolloutSource, StoredResponses
from support.toy import OBJECTIVES
from toy import algorithm, toy_recipe, toy_world


def test_missing_names_every_field_that_is_not_available():
    needs = Requirements(
        sampler=True,
        initial_policy_sampler=True,
        stored_responses=True,
        scorers=True,
        demonstrations=True,
        frozen_roles=("dpo", "reference"),
        num_critic_heads=2,
        num_selected_rows=16,
    )
    missing = needs.missing(Requirements(frozen_roles=("reference",), num_critic_heads=1))
    assert [each.field for each in missing] == [
        "sampler",
        "initial_policy_sampler",
        "stored_responses",
        "scorers",
        "demonstrations",
        "frozen_roles",
        "num_critic_heads",
    ]
    assert str(missing[-2]) == "the frozen models dpo"
    assert str(missing[-1]) == "a critic with 2 heads (the given one has 1 head)"
    assert needs.missing(needs) == []


def test_a_critic_of_unknown_size_is_accepted_and_an_unused_one_is_not():
    assert Requirements(num_critic_heads=2).missing(Requirements(num_critic_heads=ANY_NUMBER)) == []
    (missing,) = Requirements().missing(Requirements(num_critic_heads=1))
    assert str(missing) == "no critic (the given one has 1 head)"


def test_union_has_the_requirements_of_both():
    union = Requirements(sampler=True, frozen_roles=("b",)) | Requirements(
        scorers=True, frozen_roles=("a",), num_critic_heads=1
    )
    assert union == Requirements(sampler=True, scorers=True, frozen_roles=("a", "b"), num_critic_heads=1)


@pytest.mark.parametrize(
    ("source", "requirements", "generates"),
    [
        (OnPolicy(), Requirements(sampler=True, scorers=True), True),
        (FrozenPolicy(), Requirements(initial_policy_sampler=True, scorers=True), True),
        (StoredResponses(), Requirements(stored_responses=True), False),
    ],
)
def test_rollout_sources_state_their_requirements(source, requirements, generates):
    assert isinstance(source, RolloutSource)
    assert source.requirements() == requirements
    assert source.generates is generates
    assert repr(source).startswith(type(source).__name__)


def test_stored_responses_cannot_be_changed():
    assert OnPolicy().replace(prompt_format="think").prompt_format == "think"
    assert StoredResponses().replace() == StoredResponses()
    with pytest.raises(WiringError, match="no prompt_format"):
        StoredResponses().replace(prompt_format="think")


def test_requirements_of_specs_come_from_rollout_losses_and_passes():
    assert toy_recipe().requirements(OBJECTIVES) == Requirements(
        sampler=True, scorers=True, frozen_roles=("reference",), num_selected_rows=16
    )
    assert algorithm("ppo").requirements(OBJECTIVES).num_critic_heads == 1
    assert algorithm("ppo").critic_init_from == "reward"
    assert algorithm("grpo").critic_init_from is None
    assert algorithm("dpo").requirements(OBJECTIVES).initial_policy_sampler
    assert algorithm("dpo", response_source="stored").requirements(OBJECTIVES).stored_responses
    evolution = algorithm("essa")
    assert evolution.requirements(OBJECTIVES).frozen_roles == ("reference",)
    assert (evolution.gradient_free, evolution.candidates_per_step) == (True, 97)
    assert [spec.name for spec in evolution.all_specs()] == ["essa", "sft"]


def test_the_context_check_names_the_algorithm_and_what_is_missing():
    with pytest.raises(WiringError, match=r'algorithm "dpo" needs a sampler of the initial policy; fix: '):
        check_context(algorithm("dpo"), toy_world())
