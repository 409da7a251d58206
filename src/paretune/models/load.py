"""Loading and saving of policies and tokenizers in Hugging Face format; safetensors only."""

import copy
import hashlib
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from paretune.errors import DataError
from paretune.models.adapt import Lora, add_lora, bare
from paretune.models.forward import probe_head

__all__ = [
    "Language",
    "Lora",
    "ModelSpec",
    "as_language",
    "context_length",
    "context_of",
    "is_folder",
    "load_policy",
    "load_tokenizer",
    "parameter_hash",
    "quiet",
    "read_weights",
    "save_model",
    "stops_of",
]

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Which weights, in which precision, and what of them is trained."""

    path: str
    """A folder, or a hub name `owner/name`; only the latter may use the network."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    lora: Lora | None = None
    revision: str | None = None
    """Commit or tag of a hub name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """A causal model and its tokenizer, and how their responses end."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    stops: tuple[int, ...]
    """Token ids that end a response; the first is the one put at the end of given responses."""
    pad: int
    """Fills rows; may be a stop, since masks come from lengths."""


def load_policy(spec: ModelSpec, *, seed: int = 0) -> Language:
    """Read a policy in evaluation mode, dropout off, its head checked against `forward`.

    Args:
        spec: Which weights; with `lora` the base is frozen and a fresh adapter put on it.
        seed: Draws the adapter.

    Raises:
        DataError: There is no such folder or hub name, or what is there cannot be read.
        WiringError: LoRA fits no layer, or the family's head is not understood.
    """
    tokenizer = load_tokenizer(spec.path, revision=spec.revision)
    dtype = torch.bfloat16 if spec.dtype == "bfloat16" else torch.float32
    model = read_weights(AutoModelForCausalLM, spec.path, dtype=dtype, revision=spec.revision)
    probe_head(model)
    adapted = model if spec.lora is None else add_lora(model, spec.lora, seed)
    return as_language(adapted, tokenizer)


def as_language(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Language:
    """A model and a tokenizer as one, with the ends of responses read from both.

    Raises:
        DataError: Neither names a token that ends a response.
    """
    with bare(model) as base:
        stops = stops_of(base, tokenizer)
        vocab = base.get_input_embeddings().weight.shape[0]
    pad = stops[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return Language(
        model=model.eval(), tokenizer=tokenizer, stops=stops, pad=pad if pad < vocab else stops[0]
    )


def stops_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids that end a response: those of the generation configuration, else the tokenizer's.

    First comes the one the chat template puts at the end of an assistant's turn, where it has one of them.

    Raises:
        DataError: None is known.
    """
    given: int | list[int] | None = model.generation_config.eos_token_id if model.generation_config else None
    if given is None:
        given = model.config.eos_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    if given is None:
        raise DataError(
            f"{model.config.name_or_path or 'the model'}: no token ends a response; "
            "fix: set eos_token_id in generation_config.json"
        )
    stops = [given] if isinstance(given, int) else list(given)
    if tokenizer.chat_template is None:
        return tuple(stops)
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]
    ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    begin = len(tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False))
    last = next((token for token in ids[begin:] if token in stops), stops[0])
    return (last, *(token for token in stops if token != last))


def load_tokenizer(path: str, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name.

    Raises:
        DataError: There is none, or it cannot be read.
    """
    local = is_folder(path)
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(
                path, local_files_only=local, revision=revision or "main", trust_remote_code=False
            )
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no tokenizer can be read here ({_first_line(error)})") from error


def read_weights(
    kind: Any,
    path: str,
    *,
    dtype: torch.dtype,
    revision: str | None = None,
    new: Sequence[str] = (),
    **more: Any,
) -> PreTrainedModel:
    """A network of an Auto class from safetensors, in evaluation mode.

    Args:
        kind: The Auto class, such as AutoModelForCausalLM.
        path: A folder or a hub name.
        dtype: Precision of the weights.
        revision: Commit or tag of a hub name.
        new: Beginnings of the names of weights that may be absent and are drawn afresh.
        **more: Changes to the configuration.

    Raises:
        DataError: Nothing there, a pickle instead of safetensors, damaged files, or weights that are absent.
    """
    local = is_folder(path)
    if local and not list(Path(path).glob("*.safetensors")):
        pickled = [*Path(path).glob("*.bin"), *Path(path).glob("*.pt"), *Path(path).glob("*.pth")]
        found = f"only {pickled[0].name}, a pickle that could run code" if pickled else "none"
        raise DataError(f"{path}: weights must be safetensors, and here is {found}; fix: convert the model")
    try:
        with quiet():
            model, loaded = kind.from_pretrained(
                path,
                dtype=dtype,
                revision=revision or "main",
                local_files_only=local,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **more,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise DataError(f"{path}: the model cannot be read ({_first_line(error)})") from error
    absent = sorted(name for name in loaded["missing_keys"] if not name.startswith(tuple(new)))
    if absent:
        raise DataError(f"{path}: {len(absent)} weights are absent from the file, the first {absent[0]}")
    return model.eval()


def is_folder(path: str) -> bool:
    """True for a folder, False for something that can only be a hub name.

    Raises:
        DataError: Neither.
    """
    if Path(path).is_dir():
        return True
    if HUB_NAME.fullmatch(path) and not Path(path).exists():
        return False
    raise DataError(f"{path}: no such folder; fix: give a folder with config.json, or a hub name owner/name")


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and load reports of transformers: what matters in them is raised as an error."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


def save_model(model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write model and tokenizer so that the plain Auto classes load them; whole, or not at all.

    An adapted model is written twice: merged in float32, and its adapter in `adapter/`. The model itself is
    not merged: doing and undoing that in low precision loses the update.
    """
    draft = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    with quiet():
        whole: Any = model
        if isinstance(model, PeftModel):
            model.save_pretrained(str(draft / "adapter"))
            whole = copy.deepcopy(model).float().merge_and_unload()
        whole.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
    shutil.rmtree(folder, ignore_errors=True)
    draft.replace(folder)


def context_length(model: nn.Module) -> int:
    """The longest row the model can read, in tokens."""
    with bare(model) as base:
        return _context(base.config)


def _context(config: Any) -> int:
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or 2**31)


def context_of(path: str, *, revision: str | None = None) -> int:
    """The longest row that the model of a folder or hub name can read, from its configuration alone.

    Raises:
        DataError: There is no configuration, or it cannot be read.
    """
    local = is_folder(path)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(
                path, local_files_only=local, revision=revision or "main", trust_remote_code=False
            )
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no model configuration can be read here ({_first_line(error)})") from error
    return _context(config)


def parameter_hash(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of all parameters."""
    digest = hashlib.sha256()
    for name, value in sorted(model.named_parameters()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
