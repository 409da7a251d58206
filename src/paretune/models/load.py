"""Load policies, tokenizers and configurations from folders or the Hugging Face hub; safetensors only."""

import copy
import json
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import torch
from huggingface_hub import constants
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn

from paretune.core.errors import DataError, ResourceError, first_line
from paretune.core.types import PeftModel, PreTrainedModel, PreTrainedTokenizerBase
from paretune.data.chat_template import set_chat_template_kwargs
from paretune.models.dequantize import is_quantized
from paretune.models.forward.lm_head import limit_vocab
from paretune.models.forward.logprobs import check_lm_head
from paretune.models.loading_report import require_complete
from paretune.models.lora import LoraSpec, add_lora, suppress_peft_warning, unwrap_model_for_forward
from paretune.models.model_limits import max_sequence_length, unknown_model_type
from paretune.models.model_store import model_key, read_once
from paretune.models.packages import asks_for_package, missing_package_error
from paretune.models.quantized_checkpoint import (
    loading_arguments,
    quantization_error,
    quantization_method,
)
from paretune.models.save import parameter_hash, save_model, silence_transformers
from paretune.models.stop_tokens import eos_ids_of
from paretune.models.weight_files import (
    require_full_precision,
    require_no_lfs_pointers,
    require_safetensors,
)

UNREADABLE_ERRORS = (OSError, ValueError, TypeError, KeyError, AttributeError, StrictDataclassError)
"""What transformers raises for a configuration or tokenizer with wrong values."""
TOKENIZER_NAME = "tokenizer.json"
REPO_ID_PATTERN = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# One connection is tried, not a download: a hub that needs longer than this would stall the whole run.
HUB_TIMEOUT_SECONDS = 5.0


def is_local_folder(path: str) -> bool:
    """True for an existing folder, False for a hub name `owner/name`.

    Paths that start with `.`, `/` or `~` are never hub names, so a mistyped path is not looked up online.

    Raises:
        DataError: Neither an existing folder nor a possible hub name.
    """
    if Path(path).is_dir():
        return True
    if REPO_ID_PATTERN.fullmatch(path) and not Path(path).exists():
        return False
    raise DataError(f"{path}: no such folder; fix: give a folder with config.json, or a hub name owner/name")


def use_local_files_only(path: str) -> bool:
    """True if a model is to be loaded without network access: a folder, or a hub name while offline.

    Raises:
        DataError: As `is_local_folder`.
    """
    # One short request decides. huggingface_hub itself would retry for a minute before it looks in its cache.
    return is_local_folder(path) or constants.HF_HUB_OFFLINE or not is_reachable(constants.ENDPOINT)


def is_reachable(endpoint: str) -> bool:
    """True if a server answers at this address, with any status code."""
    try:
        with urlopen(Request(endpoint, method="HEAD"), timeout=HUB_TIMEOUT_SECONDS):
            return True
    except HTTPError:
        return True
    except URLError as error:
        # A server with a certificate that Python's store rejects: the libraries bring their own store.
        return isinstance(error.reason, ssl.SSLError)
    except (OSError, ValueError, HTTPException):
        return False


def load_error(path: str, problem: str, error: BaseException, *, local_files_only: bool) -> DataError:
    """The error to raise when a folder or hub name cannot be loaded.

    Args:
        path: The folder or hub name.
        problem: What could not be loaded.
        error: The library's exception.
        local_files_only: The hub was not accessed.
    """
    reason = first_line(error)
    if Path(path).is_dir():
        return DataError(f"{path}: {problem} ({reason})")
    if local_files_only:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} does not answer"
        reason = f"{why}, and it is not in the local cache"
    return DataError(
        f"{path}: no such folder, so it was taken as a hub name: {problem} ({reason}); "
        "fix: give the path of a folder, starting with ./, or the name of a model on the hub"
    )


__all__ = [
    "LoraSpec",
    "ModelSpec",
    "PolicyModel",
    "as_policy_model",
    "context_length",
    "eos_ids_of",
    "is_local_folder",
    "load_model_config",
    "load_policy",
    "load_pretrained",
    "load_tokenizer",
    "parameter_hash",
    "require_safetensors",
    "resolve_device",
    "save_model",
    "silence_transformers",
    "stored_context_length",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The weights of a policy, their precision and device, and the adapter to train."""

    path: str
    """A folder, or a hub name `owner/name`; only hub names access the network."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    lora: LoraSpec | None = None
    revision: str | None = None
    """Commit, tag or branch of a hub name; default: main."""
    adapter_path: str | None = None
    """Folder of a trained adapter to load, instead of a new one."""
    device: str = "cpu"
    """Device of the weights; see `resolve_device`."""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of every rendering of the chat template."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyModel:
    """A causal model with its tokenizer and special token ids."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]
    """Token ids that end a response; the first one is appended to stored responses."""
    pad_id: int
    """Padding token id; may also be an EOS id, since masks are computed from lengths."""


def load_policy(spec: ModelSpec, *, seed: int = 0) -> PolicyModel:
    """Load a policy in evaluation mode (no dropout) and check its LM head with `check_lm_head`.

    Args:
        spec: The weights. With `lora`, the base model is frozen and a new adapter added; with
            `adapter_path`, a trained adapter is loaded.
        seed: Seed of a new adapter's initial weights.

    Raises:
        DataError: No such folder or hub name, or its files cannot be read.
        WiringError: LoRA target modules match no layer, or the family's LM head is not supported.
        ResourceError: The device is not available.
    """
    from transformers import AutoModelForCausalLM

    device = resolve_device(spec.device)
    tokenizer = load_tokenizer(
        spec.path, revision=spec.revision, chat_template_kwargs=spec.chat_template_kwargs
    )
    dtype = torch.bfloat16 if spec.dtype == "bfloat16" else torch.float32
    model = load_pretrained(
        AutoModelForCausalLM, spec.path, dtype=dtype, revision=spec.revision, device=device
    )
    check_lm_head(model)
    network: nn.Module = model
    if spec.adapter_path is not None:
        network = _load_adapter(model, spec.adapter_path)
    elif spec.lora is not None:
        network = add_lora(model, spec.lora, seed)
    # Moved last, so that a new adapter's weights are drawn on the CPU and are the same for every device.
    # Quantized weights are on their device already: some kinds cannot be moved.
    return as_policy_model(network if is_quantized(model) else network.to(device), tokenizer)


def resolve_device(name: str) -> torch.device:
    """The device of this name; "auto" is the first CUDA device if one is available, else the CPU.

    Raises:
        ResourceError: A CUDA device is requested and none is available.
    """
    has_cuda = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_cuda else "cpu")
    if name.startswith("cuda") and not has_cuda:
        raise ResourceError(f"run.device: {name}: no CUDA device is available; fix: use auto or cpu")
    return torch.device(name)


def _load_adapter(model: PreTrainedModel, adapter_path: str) -> PeftModel:
    """The base model with the trained adapter, not merged: merging in bfloat16 would round the update."""
    from peft import PeftModel as PeftModelClass

    if not (Path(adapter_path) / "adapter_model.safetensors").is_file():
        raise DataError(
            f"{adapter_path}: no adapter_model.safetensors in this folder; fix: give the folder of an adapter"
        )
    try:
        with suppress_peft_warning():
            return PeftModelClass.from_pretrained(model, adapter_path, is_trainable=False).eval()
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise DataError(f"{adapter_path}: the adapter cannot be read ({first_line(error)})") from error


def as_policy_model(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> PolicyModel:
    """Combine a model and a tokenizer; EOS and padding ids are taken from their configurations.

    Raises:
        DataError: Neither defines an EOS token, or one of them has no embedding.
    """
    with unwrap_model_for_forward(model) as base:
        eos_ids = eos_ids_of(base, tokenizer)
        vocab_size = base.get_input_embeddings().weight.shape[0]
        name = base.config.name_or_path or "the model"
    outside = [token for token in eos_ids if not 0 <= token < vocab_size]
    if outside:
        problem = f"the stop token {outside[0]} is outside the {vocab_size:,} rows of the embedding"
        raise DataError(f"{name}: {problem}; fix: correct eos_token_id in generation_config.json")
    if vocab_size > len(tokenizer):
        limit_vocab(model, 1 + max(*tokenizer.get_vocab().values(), *eos_ids))
    pad_id = eos_ids[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    # A padding token that was added to the tokenizer only has no embedding.
    pad_id = pad_id if pad_id < vocab_size else eos_ids[0]
    return PolicyModel(model=model.eval(), tokenizer=tokenizer, eos_ids=eos_ids, pad_id=pad_id)


def load_tokenizer(
    path: str, *, revision: str | None = None, chat_template_kwargs: Mapping[str, Any] | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name; the same object for every caller, to be copied before changes.

    Args:
        path: A folder or a hub name.
        revision: Commit, tag or branch of a hub name.
        chat_template_kwargs: Arguments of every rendering of the chat template.

    Raises:
        DataError: There is none, or it cannot be read.
        MissingDependencyError: A package that it needs is missing.
    """
    from transformers import AutoTokenizer

    def read() -> PreTrainedTokenizerBase:
        require_no_lfs_pointers(path)
        try:
            tokenizer: PreTrainedTokenizerBase = _from_pretrained(
                AutoTokenizer, path, revision, "cannot load the tokenizer"
            )
        except DataError as error:
            if not Path(path).is_dir() or (Path(path) / TOKENIZER_NAME).is_file():
                raise
            problem = f"no {TOKENIZER_NAME}, nor other files of a tokenizer that can be read"
            fix = "write the tokenizer of the model there with save_pretrained"
            raise DataError(f"{path}: {problem}; fix: {fix}") from error
        if len(tokenizer) < 64 and {*tokenizer.get_vocab()} <= {*tokenizer.all_special_tokens}:  # of no files
            raise DataError(f"{path}: the tokenizer knows no text; fix: write that of the model there")
        set_chat_template_kwargs(tokenizer, chat_template_kwargs or {})
        return tokenizer

    arguments = json.dumps(chat_template_kwargs or {}, sort_keys=True, default=str)
    return read_once(("tokenizer", arguments, model_key(path, revision)), read)


def load_pretrained(
    auto_class: Any,
    path: str,
    *,
    dtype: torch.dtype,
    revision: str | None = None,
    device: torch.device | None = None,
    allowed_missing_prefixes: Sequence[str] = (),
    **config_overrides: Any,
) -> PreTrainedModel:
    """Load a model with an Auto class from safetensors, in evaluation mode.

    Args:
        auto_class: The Auto class, such as AutoModelForCausalLM.
        path: A folder or a hub name.
        dtype: Precision of the weights.
        revision: Commit, tag or branch of a hub name.
        device: Device of quantized weights, which are loaded where they stay; other weights are loaded to the
            CPU.
        allowed_missing_prefixes: Name prefixes of weights that may be missing; they are initialized randomly.
        **config_overrides: Fields of the model configuration to override.

    Raises:
        DataError: No such model, pickle files instead of safetensors, damaged files, or missing weights.
        MissingDependencyError: A package that the model needs is missing.
        ResourceError: The weights are quantized in a way that cannot be loaded on this device.
    """
    require_safetensors(path)
    local = use_local_files_only(path)
    method = quantization_method(load_model_config(path, revision=revision))
    if not method:
        require_full_precision(path)
    try:
        with silence_transformers():
            model, loaded = auto_class.from_pretrained(
                path,
                dtype=dtype,
                revision=revision or "main",
                local_files_only=local,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                adapter_kwargs={"local_files_only": local},  # transformers does not forward it itself
                **loading_arguments(method, device),
                **config_overrides,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError, ImportError) as error:
        if method and not isinstance(error, OSError):
            raise quantization_error(path, method, device or "cpu", error) from error
        if asks_for_package(error):
            raise missing_package_error(path, error) from error
        raise load_error(path, "cannot load the model", error, local_files_only=local) from error
    require_complete(path, model, loaded, allowed_missing_prefixes)
    return model.eval()


def context_length(model: nn.Module) -> int:
    """The model's maximum sequence length (prompt plus response) in tokens."""
    with unwrap_model_for_forward(model) as base:
        return max_sequence_length(base.config)


def stored_context_length(path: str, *, revision: str | None = None) -> int:
    """The maximum sequence length of a model, read from its configuration without loading weights.

    Raises:
        DataError: There is no configuration, or it cannot be read.
    """
    return max_sequence_length(load_model_config(path, revision=revision))


def load_model_config(path: str, *, revision: str | None = None) -> Any:
    """The model configuration of a folder or hub name.

    Raises:
        DataError: There is none, or it cannot be read.
        MissingDependencyError: A package that it needs is missing.
    """
    from transformers import AutoConfig

    def read() -> Any:
        if problem := unknown_model_type(path):
            raise DataError(f"{path}: {problem}")
        return _from_pretrained(AutoConfig, path, revision, "cannot load the model configuration")

    return copy.deepcopy(read_once(("config", model_key(path, revision)), read))


def stored_eos_ids(path: str, *, revision: str | None = None) -> tuple[Any, str]:
    """`eos_token_id` of a model that is not loaded, and the name of the configuration that has it.

    Raises:
        DataError: Its configuration cannot be read.
    """
    from transformers import GenerationConfig

    if not is_local_folder(path) or (Path(path) / "generation_config.json").exists():
        problem = "cannot load the generation configuration"
        return _from_pretrained(GenerationConfig, path, revision, problem).eos_token_id, "generation_config"
    return load_model_config(path, revision=revision).eos_token_id, "config"


def _from_pretrained(auto_class: Any, path: str, revision: str | None, problem: str) -> Any:
    """Load a tokenizer or configuration with an Auto class."""
    require_no_lfs_pointers(path)
    local = use_local_files_only(path)
    try:
        with silence_transformers():
            return auto_class.from_pretrained(
                path, local_files_only=local, revision=revision or "main", trust_remote_code=False
            )
    except (*UNREADABLE_ERRORS, ImportError) as error:
        if asks_for_package(error):
            raise missing_package_error(path, error) from error
        raise load_error(path, problem, error, local_files_only=local) from error
