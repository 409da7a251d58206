"""What the sampler needs of a vLLM engine, and the engine in this process."""

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
import torch.distributed
from torch import Tensor

from paretune.core import ranks
from paretune.core.errors import MissingDependencyError, ResourceError, first_line
from paretune.rollout.pending import Cancellation

EXTENSION = "paretune.rollout.vllm_extension.WeightLoader"
"""Class that workers get their further methods from."""
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values of `max_lora_rank` that vLLM accepts, apart from 1."""


class EngineError(RuntimeError):
    """An engine failed, was not reached, or gave a malformed answer; never leaves the sampler."""


class GenerationRequest(NamedTuple):
    """Responses to sample to one prompt."""

    prompt_ids: Sequence[int]
    num_generations: int
    max_new_tokens: int
    temperature: float
    seed: int
    """Of the first response; vLLM adds the number of the response to it."""
    stop_token_ids: Sequence[int]
    """Ids that end a response, of which each is its last token; no other id ends one."""
    excluded_ids: Sequence[int] = ()
    """Ids that are never sampled: rows of the embedding that the tokenizer does not know."""

    def sampling_params(self) -> dict[str, Any]:
        """The arguments that `SamplingParams` and the server have in common.

        The neutral values are written out: a server may have other defaults from the model's generation
        configuration, and the log-probabilities would be those of another distribution.
        """
        excluded = {"logit_bias": dict.fromkeys(self.excluded_ids, -100.0)} if self.excluded_ids else {}
        return {
            **excluded,
            "n": self.num_generations,
            "max_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            "stop_token_ids": list(self.stop_token_ids),
            "ignore_eos": True,  # the model's own EOS ids are no stop unless they are in the list
            "logprobs": 0,  # of the sampled token alone
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }


class Response(NamedTuple):
    """Token ids of a response and their log-probabilities."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str


class Weights(NamedTuple):
    """Weights to hand over."""

    folder: Path
    """Safetensors as `save_pretrained` writes them."""
    version: str
    is_adapter: bool
    tensors: Iterable[tuple[str, Tensor]] | None = None
    """Instead of the files: all weights by name, on the engine's own device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """The model of an engine and its limits."""

    dtype: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    max_model_len: int
    max_lora_rank: int
    """0: the engine takes no adapter."""
    logprobs_mode: str
    device: str
    chunked_prefill: bool
    version: str
    """Of the full weights that were loaded last; "": those that it was started with."""


@runtime_checkable
class Engine(Protocol):
    """One engine in this process, or several servers with the same weights."""

    is_shared: bool
    """All ranks use it, and only the first one hands weights over."""
    takes_tensors: bool
    """Full weights are handed over as tensors instead of files."""

    def facts(self) -> EngineFacts:
        """The model and its limits; of several servers, the smallest limits."""
        ...

    def generate(
        self, requests: Sequence[GenerationRequest], cancellation: Cancellation | None = None
    ) -> list[list[Response] | EngineError]:
        """The responses to each prompt, or the reason why there are none.

        Args:
            requests: One per prompt.
            cancellation: Ends shared engines' requests from another thread.

        Raises:
            EngineError: No engine is left.
        """
        ...

    def load(self, weights: Weights, probes: Sequence[GenerationRequest]) -> dict[str, list[list[Response]]]:
        """Load weights, forget what was cached under older ones, and sample the probes.

        Returns:
            The responses to the probes by name of the engine.

        Raises:
            EngineError: No engine loaded them.
        """
        ...

    def state(self) -> dict[str, Any]:
        """What `adopt` needs, as values of JSON."""
        ...

    def adopt(self, state: dict[str, Any]) -> None:
        """Use the weights that another rank loaded into the same servers."""
        ...

    def holds(self, version: str) -> bool:
        """Whether all engines that answer still have these weights: a server may have been restarted."""
        ...

    def sleep(self) -> None:
        """Free accelerator memory until the next `load`."""
        ...

    def close(self) -> None:
        """End it; a second call does nothing."""
        ...


class InProcessEngine:
    """vLLM in this process, beside the training weights."""

    is_shared = False

    def __init__(
        self,
        model: str,
        *,
        device: Literal["cpu", "cuda"],
        lora_rank: int | None = None,
        revision: str | None = None,
        is_distributed: bool = False,
        takes_tensors: bool | None = None,
        **arguments: Any,
    ) -> None:
        """Start the engine; takes a minute or more.

        Args:
            model: Folder or hub name of the weights to start with.
            device: Where it computes.
            lora_rank: Rank of the adapters to hand over; None: all weights are handed over.
            revision: Commit, tag or branch of a hub name.
            is_distributed: This process is one of several ranks.
            takes_tensors: See `Engine`; None: on an accelerator, where files would take a detour.
            **arguments: Further arguments of `vllm.LLM`; None values are left out.

        Raises:
            MissingDependencyError: vLLM cannot be imported.
            ResourceError: It does not start.
        """
        llm_class = _import_llm()
        lora, on_own_device = lora_rank is not None, is_distributed and device == "cuda"
        if lora_rank is not None:
            accepted = next((r for r in _LORA_RANKS if r >= lora_rank), lora_rank)
            arguments |= {"max_lora_rank": accepted, "max_loras": 1, "max_cpu_loras": 2}
        try:
            self._llm: Any = llm_class(
                model=model,
                revision=revision,
                skip_tokenizer_init=True,  # token ids go in and out
                logprobs_mode="processed_logprobs",  # with the temperature
                generation_config="vllm",  # not the model's own defaults, such as top_p
                worker_extension_cls=EXTENSION,
                # "uni" takes the first accelerator, "external_launcher" that of the rank.
                distributed_executor_backend="external_launcher" if on_own_device else "uni",
                enable_lora=lora,
                enable_prefix_caching=True,
                # A request with a seed whose prompt is computed in parts ends vLLM 0.32 on a CPU: it wants to
                # wind a generator back, which a CPU's cannot.
                enable_chunked_prefill=False if device == "cpu" else None,
                enforce_eager=device == "cpu",
                use_tqdm_on_load=False,  # it would print a progress bar at each hand-over
                enable_sleep_mode=device == "cuda",
                **{key: value for key, value in arguments.items() if value is not None},
            )
        except (ValueError, RuntimeError, OSError, AssertionError) as error:
            raise ResourceError(
                f"rollout.engine: vllm does not start ({first_line(error)}); fix: see the options in rollout"
            ) from error
        self.takes_tensors = device == "cuda" if takes_tensors is None else takes_tensors
        self._sleeps = device == "cuda"  # on a CPU vLLM only warns
        self._asleep = False
        self._adapter: Any = None
        self._num_adapters = 0

    def facts(self) -> EngineFacts:
        """See `Engine`."""
        return EngineFacts(**self._call("paretune_facts")[0])

    def generate(
        self, requests: Sequence[GenerationRequest], cancellation: Cancellation | None = None
    ) -> list[list[Response] | EngineError]:
        """See `Engine`."""
        return [*self._generate(requests)]

    def _generate(self, requests: Sequence[GenerationRequest]) -> list[list[Response]]:
        from vllm import SamplingParams

        try:
            outputs = self._llm.generate(
                [{"prompt_token_ids": list(request.prompt_ids)} for request in requests],
                [SamplingParams(**request.sampling_params(), detokenize=False) for request in requests],
                use_tqdm=False,
                lora_request=self._adapter,
            )
        except (ValueError, RuntimeError) as error:
            raise EngineError(f"the vLLM engine in this process failed: {first_line(error)}") from error
        return [[_response(completion) for completion in output.outputs] for output in outputs]

    def load(self, weights: Weights, probes: Sequence[GenerationRequest]) -> dict[str, list[list[Response]]]:
        """See `Engine`."""
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False
        if weights.is_adapter:
            self._load_adapter(weights)
        elif weights.tensors is not None:
            self._call("paretune_load_tensors", weights.tensors, weights.version)
        else:
            self._call("paretune_load_weights", str(weights.folder), weights.version)
        if not self._llm.reset_prefix_cache():
            raise EngineError("vLLM kept its prefix cache, which belongs to older weights")
        return {"the vLLM engine": self._generate(probes)}

    def state(self) -> dict[str, Any]:
        """See `Engine`; nobody else uses this engine."""
        return {}

    def adopt(self, state: dict[str, Any]) -> None:
        """See `Engine`; nobody else uses this engine."""

    def holds(self, version: str) -> bool:
        """See `Engine`. False while it is asleep: its cache and, at level 2, its weights are gone."""
        return not self._asleep

    def sleep(self) -> None:
        """See `Engine`."""
        if self._sleeps and not self._asleep:
            self._llm.sleep(level=1)
            self._asleep = True

    def close(self) -> None:
        """See `Engine`."""
        if self._llm is not None:
            with _process_group_kept():
                self._llm.llm_engine.engine_core.shutdown()
            self._llm = None

    def _load_adapter(self, weights: Weights) -> None:
        from vllm.lora.request import LoRARequest

        # A new id each time: vLLM does not read an adapter again whose id it knows, and says nothing.
        self._num_adapters += 1
        old, new = self._adapter, LoRARequest(weights.version, self._num_adapters, str(weights.folder))
        try:
            self._llm.llm_engine.add_lora(new)
            if old is not None:
                self._llm.llm_engine.remove_lora(old.lora_int_id)
        except (ValueError, RuntimeError, OSError) as error:
            raise EngineError(f"the adapter cannot be loaded: {first_line(error)}") from error
        self._adapter = new

    def _call(self, method: str, *args: Any) -> list[Any]:
        try:
            return self._llm.collective_rpc(method, args=args)
        except (ValueError, RuntimeError, OSError, AssertionError) as error:
            raise EngineError(f"vLLM's {method} failed: {first_line(error)}") from error


def _import_llm() -> Any:
    """The class `LLM` of vLLM.

    Raises:
        MissingDependencyError: vLLM cannot be imported.
    """
    # vLLM reads these when it is imported. In one process the trainer's tensors can be handed over as they
    # are, and nothing outlives this process.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of names of torch that vLLM still uses
            from vllm import LLM
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingDependencyError(
            f"rollout.engine: vllm cannot be imported ({first_line(error)}); fix: install it as "
            "docs/vllm.md shows"
        ) from error
    return LLM


@contextmanager
def _process_group_kept() -> Iterator[None]:
    """Context in which vLLM, as it ends, leaves the default process group: it is that of the ranks.

    vLLM uses a group that exists when it starts, and destroys it at its end all the same.
    """
    destroy = torch.distributed.destroy_process_group

    def destroy_own(group: Any = None) -> None:
        if group is not None or not ranks.is_distributed():
            destroy(group)

    torch.distributed.destroy_process_group = destroy_own
    try:
        yield
    finally:
        torch.distributed.destroy_process_group = destroy


def _response(completion: Any) -> Response:
    ids = list(completion.token_ids)
    logprobs = [step[token].logprob for token, step in zip(ids, completion.logprobs or (), strict=True)]
    return Response(ids, logprobs, str(completion.finish_reason))


def response_problem(response: Response, request: GenerationRequest, vocab_size: int) -> str:
    """What is malformed about a response; "" if nothing is."""
    ids, logprobs, reason = response
    if not ids or len(ids) != len(logprobs):
        return f"{len(ids)} tokens and {len(logprobs)} log-probabilities"
    if len(ids) > request.max_new_tokens:
        return f"{len(ids)} tokens, and max_tokens is {request.max_new_tokens}"
    if not all(0 <= token < vocab_size for token in ids):
        return f"a token id outside the vocabulary of {vocab_size:,}"
    stopped = ids[-1] in request.stop_token_ids
    if reason not in ("stop", "length") or (not stopped and len(ids) < request.max_new_tokens):
        return f"{len(ids)} tokens without an end, finish_reason {reason}"
    return ""


def facts_from_json(values: Mapping[str, Any]) -> EngineFacts:
    """The facts as a server sends them; unknown keys of a newer extension are left out."""
    return EngineFacts(**{name: values[name] for name in EngineFacts.__slots__})
