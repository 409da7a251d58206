"""Every test checks the types and shapes of signatures at run time; torch uses one thread per worker."""

import gc
import os
from importlib.util import find_spec
from pathlib import Path

import jaxtyping

from support.signatures import check_signature

SOURCE = Path(find_spec("paretune").origin).parent


def is_checked(path):
    """False for the modules that run once per record and have no shapes, such as readers of files.

    They are left to mypy: checking each of their calls doubles the time of tests that read or generate data.
    The public API has messages of its own for arguments of the wrong type.
    """
    once_per_record = path.relative_to(SOURCE).parts[0] in {"api", "config", "data", "worlds"}
    return not once_per_record or "from jaxtyping import" in path.read_text(encoding="utf-8")


# The hook decorates every function with `jaxtyping.jaxtyped`.
jaxtyping.jaxtyped = check_signature
jaxtyping.install_import_hook(
    [
        ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
        for path in sorted(SOURCE.rglob("*.py"))
        if path.name != "__init__.py" and is_checked(path)
    ],
    "beartype.beartype",
)

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)

# Nothing here survives a power failure, and waiting for the disk takes a fifth of the time.
os.fsync = lambda descriptor: None


def pytest_collection_finish():
    """Exempt from garbage collection what is imported by now: looking through it takes 0.3 s each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def double():
    """Float64 wherever no type is said."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
