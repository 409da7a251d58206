"""What a recipe leaves to the device."""

from paretune.experiment.context import resolve_max_tokens_per_pass


def test_a_forward_pass_is_as_large_as_the_recipe_says_or_as_suits_the_device():
    assert resolve_max_tokens_per_pass(300, "cpu") == 300
    assert resolve_max_tokens_per_pass(None, "cpu") == 1024
    assert resolve_max_tokens_per_pass(None, "meta") == 16_384, "any other device"
