"""Where the shared data, models and golden numbers lie; a test that needs them skips when they are absent."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def shared(*parts: str) -> Path:
    """A path below the shared folder, or a skip with a plain message."""
    path = Path(os.environ.get("PARETUNE_SHARED", ROOT.parent / "shared")).joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(parts)} of the shared folder, which is not here")
    return path
