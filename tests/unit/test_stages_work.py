"""What a recipe leaves to the device."""

from paretune.stages.work import micro_tokens


def test_a_forward_pass_is_as_large_as_the_recipe_says_or_as_suits_the_device():
    assert micro_tokens(300, "cpu") == 300
    assert micro_tokens(None, "cpu") == 1024
    assert micro_tokens(None, "meta") == 16_384, "any other device"
