"""Writing of models in Hugging Face format, and what names their weights."""

import copy
import hashlib
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paretune.core.types import PeftModel, PreTrainedTokenizerBase
from paretune.run.io import apply_umask, fsync_dir, fsync_tree


def save_model(model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write model and tokenizer so that the plain Auto classes load them; whole, or not at all.

    An adapted model is written twice: merged in float32, and its adapter in `adapter/`. The model itself is
    not merged: doing and undoing that in low precision loses the update. Everything has reached the disk
    before the folder gets its name, so that after a power cut a folder of that name is complete.
    """
    draft, old = (folder.with_name(folder.name + end) for end in (".tmp", ".old.tmp"))
    for left_over in (draft, old):
        shutil.rmtree(left_over, ignore_errors=True)
    draft.mkdir(parents=True)
    with silence_transformers():
        whole: Any = model
        if isinstance(model, PeftModel):
            model.save_pretrained(str(draft / "adapter"))
            whole = copy.deepcopy(model).float().merge_and_unload()
        whole.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
    apply_umask(draft)
    fsync_tree(draft)
    if folder.exists():
        folder.replace(old)
    draft.replace(folder)
    fsync_dir(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def parameter_hash(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of all parameters."""
    digest = hashlib.sha256()
    for name, value in sorted(model.named_parameters()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def silence_transformers() -> Iterator[None]:
    """No progress bars, load reports and retries: what matters in them is raised as an error."""
    from transformers.utils import logging as hf_logging

    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hub = logging.getLogger("huggingface_hub")
    hub_level = hub.level
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    hub.setLevel(logging.ERROR)
    try:
        yield
    finally:
        hub.setLevel(hub_level)
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()
