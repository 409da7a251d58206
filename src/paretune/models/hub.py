"""Names of models that are no folder: what is taken as a hub name, and whether a hub can be asked at all."""

import re
import ssl
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from huggingface_hub import constants

from paretune.errors import DataError

REPO_ID_PATTERN = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_TIMEOUT_SECONDS = 5.0
"""How long the hub may take to answer at all."""


def is_local_folder(path: str) -> bool:
    """True for a folder, False for something that can only be a hub name; what begins with . / or ~ is none.

    Raises:
        DataError: Neither.
    """
    if Path(path).is_dir():
        return True
    if REPO_ID_PATTERN.fullmatch(path) and not Path(path).exists():
        return False
    raise DataError(f"{path}: no such folder; fix: give a folder with config.json, or a hub name owner/name")


def use_local_files_only(path: str) -> bool:
    """Whether a model is to be read without the network: a folder, or a hub name while no hub answers.

    The hub is asked once and for `SECONDS`. The libraries would ask again and again for a minute before they
    look whether the model lies in the cache.

    Raises:
        DataError: As `is_folder`.
    """
    return is_local_folder(path) or constants.HF_HUB_OFFLINE or not is_reachable(constants.ENDPOINT)


def is_reachable(endpoint: str) -> bool:
    """Whether anything answers at this address, whatever it says."""
    try:
        with urlopen(Request(endpoint, method="HEAD"), timeout=HUB_TIMEOUT_SECONDS):
            return True
    except HTTPError:
        return True
    except URLError as error:
        # Python's certificates may not know what the libraries' own do.
        return isinstance(error.reason, ssl.SSLError)
    except (OSError, ValueError, HTTPException):
        return False


def load_error(path: str, problem: str, error: BaseException, *, local_files_only: bool) -> DataError:
    """The error for what a folder or a hub name does not hold; `local_files_only`: the network was not asked."""
    said = first_line(error)
    if Path(path).is_dir():
        return DataError(f"{path}: {problem} ({said})")
    if local_files_only:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} does not answer"
        said = f"{why}, and the cache does not hold it"
    return DataError(
        f"{path}: there is no such folder, so it was taken as a hub name: {problem} ({said}); "
        "fix: put ./ in front of a folder, or name a model of the hub"
    )


def first_line(error: BaseException) -> str:
    """What an error of a library says, as far as it fits in a line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
