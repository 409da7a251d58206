"""Every test checks the shapes of every public signature; torch uses one thread a worker."""

from jaxtyping import install_import_hook

install_import_hook("paretune", "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture
def double():
    """Float64 wherever no type is said."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
