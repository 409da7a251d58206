"""Names of models that are no folder: what is taken as a hub name, and whether a hub can be asked at all.

Loading and saving of policies and tokenizers in Hugging Face format; safetensors only.
"""

import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from torch import nn

from paretune.core.errors import DataError, ResourceError
from paretune.core.types import PeftModel, PreTrainedModel, PreTrainedTokenizerBase
from paretune.models.forward.logprobs import check_lm_head
from paretune.models.lora import LoraSpec, add_lora, suppress_peft_warning, unwrap_model_for_forward
from paretune.models.save import parameter_hash, save_model, silence_transformers

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
    """Which weights, in which precision, and what of them is trained."""

    path: str
    """A folder, or a hub name `owner/name`; only the latter may use the network."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    lora: LoraSpec | None = None
    revision: str | None = None
    """Commit or tag of a hub name."""
    adapter_path: str | None = None
    """Folder of a trained adapter to put on the weights, instead of a fresh one."""
    device: str = "cpu"
    """Where the weights are put: see `device_named`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyModel:
    """A causal model and its tokenizer, and how their responses end."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]
    """Token ids that end a response; the first is the one put at the end of given responses."""
    pad_id: int
    """Fills rows; may be a stop, since masks come from lengths."""


def load_policy(spec: ModelSpec, *, seed: int = 0) -> PolicyModel:
    """Read a policy in evaluation mode, dropout off, its head checked against `forward`.

    Args:
        spec: Which weights; with `lora` the base is frozen and a fresh adapter put on it, with `adapter`
            a trained one.
        seed: Draws the adapter.

    Raises:
        DataError: There is no such folder or hub name, or what is there cannot be read.
        WiringError: LoRA fits no layer, or the family's head is not understood.
        ResourceError: The machine lacks the device.
    """
    from transformers import AutoModelForCausalLM

    device = resolve_device(spec.device)
    tokenizer = load_tokenizer(spec.path, revision=spec.revision)
    dtype = torch.bfloat16 if spec.dtype == "bfloat16" else torch.float32
    model = load_pretrained(AutoModelForCausalLM, spec.path, dtype=dtype, revision=spec.revision)
    check_lm_head(model)
    adapted: nn.Module = model
    if spec.adapter_path is not None:
        adapted = _load_adapter(model, spec.adapter_path)
    elif spec.lora is not None:
        adapted = add_lora(model, spec.lora, seed)
    return as_policy_model(adapted.to(device), tokenizer)


def resolve_device(name: str) -> torch.device:
    """The device of this name; "auto" is the first CUDA device where there is one, else the CPU.

    Raises:
        ResourceError: There is no CUDA device and it was asked for.
    """
    there = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if there else "cpu")
    if name.startswith("cuda") and not there:
        raise ResourceError(f"run.device: {name}: this machine has no CUDA device; fix: use auto or cpu")
    return torch.device(name)


def _load_adapter(model: PreTrainedModel, adapter_path: str) -> PeftModel:
    """The model as it was when the adapter was trained: neither merged nor rounded."""
    from peft import PeftModel as Adapted

    if not (Path(adapter_path) / "adapter_model.safetensors").is_file():
        raise DataError(
            f"{adapter_path}: no adapter_model.safetensors here; fix: name the folder of an adapter"
        )
    try:
        with suppress_peft_warning():
            return Adapted.from_pretrained(model, adapter_path, is_trainable=False).eval()
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise DataError(f"{adapter_path}: the adapter cannot be read ({first_line(error)})") from error


def as_policy_model(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> PolicyModel:
    """A model and a tokenizer as one, with the ends of responses read from both.

    Raises:
        DataError: Neither names a token that ends a response.
    """
    with unwrap_model_for_forward(model) as base:
        stops = eos_ids_of(base, tokenizer)
        vocab = base.get_input_embeddings().weight.shape[0]
    pad = stops[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return PolicyModel(
        model=model.eval(), tokenizer=tokenizer, eos_ids=stops, pad_id=pad if pad < vocab else stops[0]
    )


def eos_ids_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
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
    from transformers import AutoTokenizer

    return _from_pretrained(AutoTokenizer, path, revision, "no tokenizer can be read here")


def load_pretrained(
    auto_class: Any,
    path: str,
    *,
    dtype: torch.dtype,
    revision: str | None = None,
    allowed_missing_prefixes: Sequence[str] = (),
    **config_overrides: Any,
) -> PreTrainedModel:
    """A network of an Auto class from safetensors, in evaluation mode.

    Args:
        auto_class: The Auto class, such as AutoModelForCausalLM.
        path: A folder or a hub name.
        dtype: Precision of the weights.
        revision: Commit or tag of a hub name.
        allowed_missing_prefixes: Beginnings of the names of weights that may be absent and are drawn afresh.
        **more: Changes to the configuration.

    Raises:
        DataError: Nothing there, a pickle instead of safetensors, damaged files, or weights that are absent.
    """
    require_safetensors(path)
    local = use_local_files_only(path)
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
                adapter_kwargs={"local_files_only": local},  # not handed on by transformers itself
                **config_overrides,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise load_error(path, "the model cannot be read", error, local_files_only=local) from error
    absent = sorted(
        name for name in loaded["missing_keys"] if not name.startswith(tuple(allowed_missing_prefixes))
    )
    if absent:
        raise DataError(f"{path}: {len(absent)} weights are absent from the file, the first {absent[0]}")
    return model.eval()


def require_safetensors(path: str) -> None:
    """See that a folder holds weights that can be read safely; a hub name is not looked at.

    Raises:
        DataError: There are none, or only pickles.
    """
    if is_local_folder(path) and not list(Path(path).glob("*.safetensors")):
        pickled = [*Path(path).glob("*.bin"), *Path(path).glob("*.pt"), *Path(path).glob("*.pth")]
        found = f"only {pickled[0].name}, a pickle that could run code" if pickled else "none"
        raise DataError(f"{path}: weights must be safetensors, and here is {found}; fix: convert the model")


def context_length(model: nn.Module) -> int:
    """The longest row the model can read, in tokens."""
    with unwrap_model_for_forward(model) as base:
        return _max_position_embeddings(base.config)


def _max_position_embeddings(config: Any) -> int:
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or 2**31)


def stored_context_length(path: str, *, revision: str | None = None) -> int:
    """The longest row that the model of a folder or hub name can read, from its configuration alone.

    Raises:
        DataError: There is no configuration, or it cannot be read.
    """
    return _max_position_embeddings(load_model_config(path, revision=revision))


def load_model_config(path: str, *, revision: str | None = None) -> Any:
    """The configuration of the model of a folder or hub name.

    Raises:
        DataError: There is none, or it cannot be read.
    """
    from transformers import AutoConfig

    return _from_pretrained(AutoConfig, path, revision, "no model configuration can be read here")


def _from_pretrained(auto_class: Any, path: str, revision: str | None, problem: str) -> Any:
    """What an Auto class makes of the small files of a folder or hub name."""
    local = use_local_files_only(path)
    try:
        with silence_transformers():
            return auto_class.from_pretrained(
                path, local_files_only=local, revision=revision or "main", trust_remote_code=False
            )
    except (OSError, ValueError) as error:
        raise load_error(path, problem, error, local_files_only=local) from error
