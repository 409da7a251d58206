"""A sampler whose responses come from vLLM, and the transfer of the trained weights to it.

Token ids go in and out, so that nothing is tokenized twice. After each transfer a probe compares the engine's
log-probabilities with those of the trainer: an engine that samples from other weights than it was given does
not say so.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from paretune.core import ranks
from paretune.core.batch import Batch
from paretune.core.errors import ResourceError
from paretune.core.rng import derive_seed
from paretune.core.types import PeftModel
from paretune.credit.base import Metrics
from paretune.data.records import Prompt, Sample
from paretune.models.forward.lm_head import lm_head_of
from paretune.models.forward.logprobs import compute_logprobs
from paretune.models.load import PolicyModel
from paretune.rollout.pending import Cancellation, FinishedRollout, PendingRollout, ThreadRollout
from paretune.rollout.sampler import OnPolicy, build_batch, encode_rollout_prompts
from paretune.rollout.vllm_engine import (
    Engine,
    EngineError,
    EngineFacts,
    GenerationRequest,
    Response,
    Weights,
    response_problem,
)
from paretune.rollout.vllm_weights import (
    FOLDER_PREFIX,
    KEEP_NAME,
    make_weights_folder,
    weight_checksum,
    whole_tensors,
    write_weights,
)

MAX_GAP = {"float32": 1e-3, "half": 0.3}
"""Largest difference in nats between the engine's log-probability of a probe token and the trainer's.

In float32 a right engine differs by 1e-5, and one with an old head, adapter or cache by tenths. In half
precision rounding alone gives up to a tenth.
"""
PROBE_TOKENS = 16
PROBE_LENGTHS = (24, 300)
"""Tokens of the two probe prompts. The long one fills several blocks of the prefix cache (16 tokens, on a CPU
128), so that a cache of older weights shows."""
PROBE_TEMPERATURES = (1.0, 0.7)
"""The second one shows log-probabilities that leave out the temperature."""
RESUME_FIX = "start the servers again and repeat the command: the run continues from its last checkpoint"


class _RolloutRequest(NamedTuple):
    """The requests of a rollout, and what its responses are read with."""

    prompts: Sequence[Prompt]
    rollout: OnPolicy
    requests: Sequence[GenerationRequest]


@dataclass(kw_only=True)
class VllmSampler:
    """Samples by vLLM. A response depends on its prompt and (seed, step, prompt_index, number) alone.

    That holds in float32 on a CPU; on a GPU vLLM's kernels depend on the batch unless it is told otherwise
    (VLLM_BATCH_INVARIANT=1). The samples are other ones than those of `LocalSampler`.

    A prompt whose request fails has no responses in the batch, so that its number is missing in `group`.
    """

    policy: PolicyModel
    """The trained policy, whose weights `sync` hands over."""
    objectives: tuple[str, ...]
    engine: Engine
    shared_folder: Path | None = None
    """Where the weights are handed over; None: in memory, /dev/shm, if there is one."""
    _facts: EngineFacts | None = None
    _folder: Path | None = None
    _checksum: tuple[float, ...] = ()
    _version: str = ""
    _num_versions: int = 0
    _has_synced: bool = False

    def __call__(
        self,
        prompts: Sequence[Prompt],
        rollout: OnPolicy,
        *,
        seed: int,
        step: int,
        prompt_index: Sequence[int] | None = None,
    ) -> tuple[Batch, tuple[Sample, ...]]:
        """See `Sampler`. Calls `sync` first, if the caller has not; of several ranks, all must.

        Raises:
            DataError: A prompt is empty, leaves no room for a response, or cannot take the prompt format.
            ResourceError: No engine is left, or no prompt got a response.
        """
        request = self._request(prompts, rollout, seed, step, prompt_index)
        return self._build(request, self._generate(request, None))

    def start(
        self,
        prompts: Sequence[Prompt],
        rollout: OnPolicy,
        *,
        seed: int,
        step: int,
        prompt_index: Sequence[int] | None = None,
    ) -> PendingRollout:
        """As a call, in a thread where servers compute. No `sync` until its result is there."""
        request = self._request(prompts, rollout, seed, step, prompt_index)
        if not self.engine.is_shared:  # the engine computes in this process
            return FinishedRollout(lambda: self._build(request, self._generate(request, None)))
        cancellation = Cancellation()
        return ThreadRollout(
            lambda: self._generate(request, cancellation),
            lambda results: self._build(request, results),
            cancellation.cancel,
        )

    def _request(
        self,
        prompts: Sequence[Prompt],
        rollout: OnPolicy,
        seed: int,
        step: int,
        prompt_index: Sequence[int] | None,
    ) -> _RolloutRequest:
        if not self._has_synced and not (ranks.is_distributed() and self._version):
            self.sync(step)
        self._has_synced = False  # the weights may change before the next call
        max_length = self._engine_facts().max_model_len
        prompt_ids = encode_rollout_prompts(self.policy, prompts, rollout, max_length)
        index = range(len(prompt_ids)) if prompt_index is None else prompt_index
        requests = [
            GenerationRequest(
                ids,
                rollout.num_generations,
                rollout.max_new_tokens,
                rollout.temperature,
                # vLLM adds the number of the response to it, within 63 bits.
                derive_seed(seed, step, "sample", index[i]) >> 1,
                self.policy.eos_ids,
                self._excluded_ids(),
            )
            for i, ids in enumerate(prompt_ids)
        ]
        return _RolloutRequest(prompts, rollout, requests)

    def _generate(
        self, request: _RolloutRequest, cancellation: Cancellation | None
    ) -> list[list[Response] | EngineError]:
        try:
            return self.engine.generate(request.requests, cancellation)
        except EngineError as error:
            raise ResourceError(f"rollout: {error}; fix: {RESUME_FIX}") from error

    def _build(
        self, request: _RolloutRequest, results: Sequence[list[Response] | EngineError]
    ) -> tuple[Batch, tuple[Sample, ...]]:
        complete = self._complete_groups(request.requests, results)
        group = [i for i, responses in complete.items() for _ in responses]
        responses = [
            (r.token_ids, np.asarray(r.logprobs, np.float32), r.token_ids[-1] not in self.policy.eos_ids)
            for responses in complete.values()
            for r in responses
        ]
        prompt_ids = [list(each.prompt_ids) for each in request.requests]
        return build_batch(
            self.policy,
            self.objectives,
            request.prompts,
            prompt_ids,
            group,
            responses,
            request.rollout.prompt_format,
        )

    def _complete_groups(
        self, requests: Sequence[GenerationRequest], results: Sequence[list[Response] | EngineError]
    ) -> dict[int, list[Response]]:
        """Responses by prompt, without the prompts whose request failed: missing is not 0."""
        complete: dict[int, list[Response]] = {}
        reason = ""
        for i, (request, result) in enumerate(zip(requests, results, strict=True)):
            if isinstance(result, EngineError):
                reason = reason or str(result)
            elif problem := _first_problem(result, request, self._num_ids):
                reason = reason or f"a response of {problem}"
            else:
                complete[i] = result
        if not complete:
            raise ResourceError(f"rollout: no prompt got a response ({reason}); fix: {RESUME_FIX}")
        return complete

    def sync(self, step: int) -> Metrics:
        """Hand the weights over if they changed, and compare engine and trainer by the probe.

        Of several ranks all call it. Servers get the weights from the first one.

        Returns:
            The largest gap of the probe, and the bytes handed over; nothing if the engine has the weights.

        Raises:
            ResourceError: No engine can be reached, the weights cannot be written, or the probe failed.
        """
        self._has_synced = True
        checksum = weight_checksum(self.policy.model)
        has_weights = checksum == self._checksum and self.engine.holds(self._version)
        if not ranks.any_of(not has_weights):
            return {}
        model = self.policy.model.eval()
        tensors = whole_tensors(model)
        probes = self._probes()
        self._num_versions += 1
        if self._folder is None:
            self._folder = make_weights_folder(self.shared_folder)
        parent = self._folder
        folder = parent / f"v{self._num_versions}"
        version = f"{parent.name.removeprefix(FOLDER_PREFIX)}-v{self._num_versions}"

        def hand_over() -> dict[str, Any]:
            return self._hand_over(folder, version, tensors, probes)

        if self.engine.is_shared:
            answer = ranks.on_first(hand_over, "hand-over of the weights to vLLM")
        else:
            with ranks.fail_together("hand-over of the weights to vLLM"):
                answer = hand_over()
        if not ranks.is_first():
            self.engine.adopt(answer["state"])
        gap = self._largest_gap(probes, answer["responses"], folder, step)
        self._checksum, self._version = checksum, version
        if not (parent / KEEP_NAME).exists():
            shutil.rmtree(parent / f"v{self._num_versions - 1}", ignore_errors=True)
        return {"sync/probe_gap": gap, "sync/bytes": float(answer["bytes"])}

    def sleep(self) -> None:
        """Free the engine's accelerator memory until the next `sync`."""
        self.engine.sleep()

    def close(self) -> None:
        """End the engine and delete the files of weights, unless a probe failed on them."""
        self.engine.close()
        if self._folder is not None and not (self._folder / KEEP_NAME).exists():
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder, self._version, self._checksum = None, "", ()

    def _hand_over(
        self,
        folder: Path,
        version: str,
        tensors: Mapping[str, Tensor] | None,
        probes: Sequence[GenerationRequest],
    ) -> dict[str, Any]:
        """Write the weights, let the engine load them, and sample the probes; values of JSON."""
        is_adapter = isinstance(self.policy.model, PeftModel)
        in_memory = self.engine.takes_tensors and not is_adapter
        if in_memory:
            state = self.policy.model.state_dict() if tensors is None else tensors
            weights = Weights(folder, version, is_adapter, state.items())
            num_bytes = sum(x.numel() * x.element_size() for x in state.values())
        else:
            num_bytes = write_weights(self.policy.model, folder, tensors)
            weights = Weights(folder, version, is_adapter)
        try:
            responses = self.engine.load(weights, probes)
        except EngineError as error:
            raise ResourceError(f"rollout: the weights in {folder} were not loaded: {error}") from error
        return {"responses": responses, "state": self.engine.state(), "bytes": num_bytes}

    def _probes(self) -> list[GenerationRequest]:
        """The probes: the same prompts each time, so that a cache of older weights would be used."""
        longest = self._engine_facts().max_model_len - PROBE_TOKENS
        return [
            GenerationRequest(
                [(37 * i + 11 * length + 3) % self._num_ids for i in range(min(length, longest))],
                1,
                PROBE_TOKENS,
                temperature,
                0,
                (),
                self._excluded_ids(),
            )
            for length, temperature in zip(PROBE_LENGTHS, PROBE_TEMPERATURES, strict=True)
        ]

    def _largest_gap(
        self,
        probes: Sequence[GenerationRequest],
        responses: Mapping[str, Sequence[Sequence[Sequence[Any]]]],
        folder: Path,
        step: int,
    ) -> float:
        """The largest gap between an engine's log-probabilities of probe tokens and the trainer's.

        Raises:
            ResourceError: It is too large, or a response is malformed; the files are kept.
        """
        largest = 0.0
        for name, groups in responses.items():
            for request, group in zip(probes, groups, strict=True):
                response = Response(*group[0])
                problem = response_problem(response, request, self._num_ids)
                gap = float("nan") if problem else self._gap(request, response)
                largest = max(largest, gap)
                # `not <=` also catches NaN.
                if not gap <= self._max_gap():
                    kept = self._keep(folder)
                    reason = problem or (
                        f"the log-probability of a probe token differs by {gap:.3g} nats, and the limit is "
                        f"{self._max_gap():g}"
                    )
                    raise ResourceError(
                        f"step {step}: {name} does not sample from the weights that it was given: {reason}; "
                        f"{kept}; fix: start the engine with the recipe's model, as docs/vllm.md shows"
                    )
        return largest

    @torch.no_grad()
    def _gap(self, request: GenerationRequest, response: Response) -> float:
        row = torch.tensor([[*request.prompt_ids, *response.token_ids]])
        mask = torch.ones_like(row, dtype=torch.bool)
        is_response = mask.clone()
        is_response[:, : len(request.prompt_ids)] = False
        expected = compute_logprobs(
            self.policy.model, row, mask, is_response, temperature=request.temperature
        )[is_response]
        return float((expected.cpu().double() - torch.tensor(response.logprobs).double()).abs().max())

    def _keep(self, folder: Path) -> str:
        """Keep the files for an inquiry; where they are."""
        if not folder.exists():  # handed over as tensors
            return "the weights were handed over in memory"
        (folder.parent / KEEP_NAME).touch()
        return f"the weights are kept in {next(folder.glob('*.safetensors'), folder)}"

    def _engine_facts(self) -> EngineFacts:
        """The facts of the engine, asked for once."""
        if self._facts is None:
            try:
                self._facts = self.engine.facts()
            except EngineError as error:
                raise ResourceError(f"rollout: {error}; fix: {RESUME_FIX}") from error
        return self._facts

    def _max_gap(self) -> float:
        trainer = next(self.policy.model.parameters()).dtype
        full = self._engine_facts().dtype == "float32" and trainer == torch.float32
        return MAX_GAP["float32" if full else "half"]

    @property
    def _num_ids(self) -> int:
        """Token ids that the policy samples; the embedding may have more rows."""
        return int(lm_head_of(self.policy.model).weight.shape[0])

    def _excluded_ids(self) -> range:
        return range(self._num_ids, max(self._engine_facts().vocab_size, self._num_ids))


def _first_problem(responses: Sequence[Response], request: GenerationRequest, vocab_size: int) -> str:
    problems = (response_problem(response, request, vocab_size) for response in responses)
    return next((problem for problem in problems if problem), "")
