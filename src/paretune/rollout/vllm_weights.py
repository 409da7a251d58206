"""Weights on their way to vLLM: whether they changed, their files, and the folder of the files."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from paretune.core.errors import ResourceError, first_line
from paretune.core.types import PeftModel
from paretune.models.save import silence_transformers
from paretune.models.sharding import full_tensors, is_sharded
from paretune.run.io import apply_umask

FOLDER_PREFIX = "paretune-weights-"
KEEP_NAME = "KEEP"
"""File that marks a folder of weights as evidence of a failed probe."""


def make_weights_folder(base: Path | None = None) -> Path:
    """A new folder for the weights of this process; those of processes that have ended are deleted first.

    Args:
        base: Where it is made; None: in memory, /dev/shm, where there is such a folder.

    Raises:
        ResourceError: It cannot be made.
    """
    base = default_weights_folder() if base is None else base
    owner = f"{FOLDER_PREFIX}{socket.gethostname()}-"
    try:
        base.mkdir(parents=True, exist_ok=True)
        for old in base.glob(f"{owner}*"):
            pid = old.name.removeprefix(owner).partition("-")[0]
            if pid.isdigit() and not psutil.pid_exists(int(pid)) and not (old / KEEP_NAME).exists():
                shutil.rmtree(old, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{owner}{os.getpid()}-", dir=base)).absolute()
        folder.chmod(0o755)  # a server may run as another user
    except OSError as error:
        raise _write_problem(base, error) from error
    return folder


def default_weights_folder() -> Path:
    """Where weights are handed over to an engine on this host: in memory, where there is such a folder."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() else Path(tempfile.gettempdir())


def weight_checksum(model: nn.Module) -> tuple[float, ...]:
    """Sum and norm in double precision of every trained tensor; of this rank's part, if they are divided.

    Much faster than a hash of the bytes, on any device, and a step of an optimizer changes them.
    """
    sums = []
    with torch.no_grad():
        for x in model.parameters():
            if x.requires_grad:
                part = x.to_local() if isinstance(x, DTensor) else x
                sums += [part.sum(dtype=torch.float64), torch.linalg.vector_norm(part, dtype=torch.float64)]
        return tuple(torch.stack([x.cpu() for x in sums]).tolist()) if sums else ()


def whole_tensors(model: nn.Module) -> dict[str, Tensor] | None:
    """All tensors of a model whose weights are divided over the ranks; None if this process has them whole.

    All ranks must call it.
    """
    if not is_sharded([model]):
        return None
    return {name: x.cpu() for name, x in full_tensors(model.state_dict()).items()}


def write_weights(model: Any, folder: Path, tensors: Mapping[str, Tensor] | None = None) -> int:
    """Write the weights, or the adapter alone if there is one; the folder has its name once it is complete.

    Args:
        model: Of transformers or peft.
        folder: Does not exist yet.
        tensors: Its tensors by name, where the model holds a part of each only.

    Returns:
        The bytes that were written.

    Raises:
        ResourceError: There is no space, or the folder is not writable.
    """
    draft = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(draft, ignore_errors=True)
    state = {} if tensors is None else {"state_dict": dict(tensors)}
    try:
        with silence_transformers(), _saving_on_every_rank(model):
            model.save_pretrained(str(draft), **state)
        apply_umask(draft)  # safetensors creates files that only the owner can read
        num_bytes = sum(file.stat().st_size for file in draft.iterdir())
        draft.replace(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise _write_problem(folder, error) from error
    return num_bytes


@contextmanager
def _saving_on_every_rank(model: Any) -> Iterator[None]:
    """Context in which a model of transformers is saved although this is not the first rank.

    transformers writes files on rank 0 alone; here each rank has an engine and a folder of its own.
    """
    name = "should_save_on_this_rank"
    if isinstance(model, PeftModel) or not hasattr(model, name):
        yield
        return
    setattr(model, name, lambda is_main_process: is_main_process)
    try:
        yield
    finally:
        delattr(model, name)  # the method of the class becomes visible again


def _write_problem(path: Path, error: Exception) -> ResourceError:
    fix = "free space there, or name another folder in rollout.shared_folder"
    return ResourceError(f"{path}: the weights for vLLM cannot be written ({first_line(error)}); fix: {fix}")
