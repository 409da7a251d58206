"""Defaults that depend on the device."""

from paretune.experiment.settings import resolve_max_tokens_per_pass


def test_tokens_per_pass_default_to_a_number_for_the_device():
    assert resolve_max_tokens_per_pass(300, "cpu") == 300
    assert resolve_max_tokens_per_pass(None, "cpu") == 1024
    assert resolve_max_tokens_per_pass(None, "meta") == 16_384, "any other device"
