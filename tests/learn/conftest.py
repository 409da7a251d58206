"""These tests ask whether an algorithm learns; tests/conformance asks whether its shapes are right.

Checking the shapes of every call would double their time, so it is off here.
"""

import jaxtyping
import pytest


@pytest.fixture(autouse=True)
def no_shape_checks():
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
