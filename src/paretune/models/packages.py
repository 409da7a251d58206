"""Packages that a checkpoint needs and that are not installed: one line with the package to install."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from paretune.core.errors import MissingDependencyError, first_line

# transformers writes "`pip install -U bitsandbytes>=0.46.1`", "Install it with `pip install tiktoken`" and
# "requires the SentencePiece library"; the second pattern is read only where the first is not there.
_PIP_PATTERN = re.compile(r"pip install\s+(?:-U\s+|--upgrade\s+)?['\"]?([A-Za-z][\w.-]*(?:\[[\w,]+\])?)")
_LIBRARY_PATTERN = re.compile(r"requires (?:the )?([A-Za-z][\w-]*)(?: library|[,. :]|$)")
COMPANION_PACKAGES = {"optimum": "optimum gptqmodel", "sentencepiece": "sentencepiece protobuf"}
"""Packages that are of no use without another one, which the library would name only after the first."""
SENTENCEPIECE_FILE = "tokenizer.model"
_SENTENCEPIECE_START = b"\x0a"
"""First byte of a SentencePiece model, which is a protocol buffer; Tiktoken files of this name are text."""


def missing_package(error: BaseException) -> str:
    """The package that a library's error message asks for; "" if it names none."""
    text = str(error)
    for pattern in (_PIP_PATTERN, _LIBRARY_PATTERN):
        if match := pattern.search(text):
            return match[1].lower()
    return (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""


def asks_for_package(error: BaseException) -> bool:
    """True if a library failed because a package is missing, whatever the type of its exception."""
    return isinstance(error, ImportError) or _PIP_PATTERN.search(str(error)) is not None


def missing_package_error(path: str, error: BaseException, detail: str = "") -> MissingDependencyError:
    """The error to raise when a checkpoint needs a package that is not installed.

    Args:
        path: Folder or hub name of the checkpoint.
        error: The library's exception.
        detail: What needs it, after the path.
    """
    package = missing_package(error)
    # transformers tries Tiktoken after SentencePiece and then names only the second.
    if package == "tiktoken" and _has_sentencepiece_tokenizer(path):
        package = "sentencepiece"
    if not package:
        reason = first_line(error)
        return MissingDependencyError(f"{path}{detail}: a package is missing ({reason}); fix: install it")
    problem = f"needs the package {package}, which is missing or too old here"
    packages = COMPANION_PACKAGES.get(package, package)
    separator = " " if detail else ": "
    return MissingDependencyError(f"{path}{detail}{separator}{problem}; fix: pip install -U {packages}")


@contextmanager
def missing_package_as_error(path: str) -> Iterator[None]:
    """Turns the ImportError of a library into an error that names the package.

    Raises:
        MissingDependencyError: There was an ImportError.
    """
    try:
        yield
    except MissingDependencyError:
        raise
    except ImportError as error:
        raise missing_package_error(path, error) from error


def _has_sentencepiece_tokenizer(path: str) -> bool:
    file = Path(path) / SENTENCEPIECE_FILE
    if find_spec("sentencepiece") is not None or not file.is_file():
        return False
    with file.open("rb") as stream:
        return stream.read(1) == _SENTENCEPIECE_START
