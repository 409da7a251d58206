"""Saving of models in Hugging Face format, and a hash of their weights."""

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

from paretune.core import ranks
from paretune.core.types import PeftModel, PreTrainedTokenizerBase
from paretune.models.dequantize import dense_copy, is_quantized
from paretune.run.io import apply_umask, fsync_dir, fsync_tree


def save_model(model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save model and tokenizer atomically, so that the plain Auto classes load them.

    A model with an adapter is saved twice: merged in float32, and its adapter in `adapter/`. The model in
    memory is not merged: merging and unmerging in low precision would lose the update. All files are synced
    to disk before the folder is renamed to its final name, so that a folder of that name is complete even
    after a power failure. Of several ranks the first alone writes, and the others wait for it.

    Raises:
        RankError: The first rank could not save the model.
    """
    with ranks.fail_together("saving of the model"):
        if ranks.is_first():
            _write_model(model, tokenizer, folder)


def _write_model(model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    draft, old = (folder.with_name(folder.name + suffix) for suffix in (".tmp", ".old.tmp"))
    for stale in (draft, old):
        shutil.rmtree(stale, ignore_errors=True)
    draft.mkdir(parents=True)
    with silence_transformers():
        merged: Any = model
        if isinstance(model, PeftModel):
            model.save_pretrained(str(draft / "adapter"))
            quantized = is_quantized(model.get_base_model())
            merged = dense_copy(model) if quantized else copy.deepcopy(model).float().merge_and_unload()
        merged.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
    apply_umask(draft)  # safetensors creates files that only the owner can read
    fsync_tree(draft)
    # A folder cannot replace a non-empty folder in one step: the old one is moved away first.
    if folder.exists():
        folder.replace(old)
    draft.replace(folder)
    fsync_dir(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def parameter_hash(model: nn.Module) -> str:
    """SHA-256 of names, dtypes, shapes and bytes of all parameters."""
    digest = hashlib.sha256()
    for name, value in sorted(model.named_parameters()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        # Viewed as bytes, since numpy has no bfloat16.
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Hide progress bars, load reports and retry messages; real problems are raised as errors."""
    from transformers.utils import logging as hf_logging

    verbosity, bars_enabled = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hub_logger = logging.getLogger("huggingface_hub")
    hub_level = hub_logger.level
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    hub_logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        hub_logger.setLevel(hub_level)
        hf_logging.set_verbosity(verbosity)
        if bars_enabled:
            hf_logging.enable_progress_bar()
