"""Schema of the section `rollout`: the engine that samples the responses to train on."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from paretune.config.data_schema import Dtype, NonEmptyStr, PathStr, Section
from paretune.core.types import PositiveFloat, PositiveInt

ImportanceCorrection = Literal["none", "token", "sequence"]


class EngineSection(Section):
    """Settings of every engine."""

    engine: Literal["local", "vllm"]
    max_staleness: Annotated[int, Field(ge=0, le=1)] = 0
    """1: sample the responses of the next step while this one trains, from the weights that this one started
    from. It saves time only with mode: server."""
    importance_correction: ImportanceCorrection | None = None
    """Multiply the policy loss by the truncated ratio p_trainer / p_sampler, of each token or of the whole
    response. It corrects for an engine that rounds differently (above all in bfloat16) and for stale weights.
    null: token with max_staleness: 1, none otherwise."""
    max_importance_ratio: Annotated[float, Field(ge=1)] = 2.0
    """Larger ratios are truncated to this value."""


class LocalRolloutSection(EngineSection):
    """Sampling on the training weights, in this process."""

    engine: Literal["local"] = "local"


class VllmRolloutSection(EngineSection):
    """Sampling by vLLM, whose copy of the weights is renewed before each rollout."""

    engine: Literal["vllm"]
    shared_folder: PathStr | None = None
    """Folder in which the weights are handed over; null: in memory, /dev/shm. Servers on other hosts must see
    it under the same name."""


class InProcessVllmSection(VllmRolloutSection):
    """vLLM in the training process; with several ranks, one engine in each."""

    mode: Literal["in_process"]
    dtype: Dtype | None = None
    """Precision of the engine; null: that of the policy."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the accelerator's memory for the engine; on a CPU, of the main memory."""
    max_model_len: PositiveInt | None = None
    """Longest prompt and response together, in tokens; null: the model's context."""


class ServerVllmSection(VllmRolloutSection):
    """vLLM servers, started with the worker extension of paretune: docs/vllm.md shows how."""

    mode: Literal["server"]
    base_urls: Annotated[tuple[NonEmptyStr, ...], Field(min_length=1, strict=False)]
    """Their addresses, such as [http://127.0.0.1:8000]; the prompts of a step are dealt to them in turn."""
    timeout: PositiveFloat = 600.0
    """Seconds until a request for the responses to one prompt, or to load weights, counts as failed."""


VllmSection = Annotated[InProcessVllmSection | ServerVllmSection, Field(discriminator="mode")]


def _default_engine(value: Any) -> Any:
    """A section that only has keys of every engine is of the local one."""
    if (
        not isinstance(value, dict)
        or "engine" in value
        or not value.keys() <= EngineSection.model_fields.keys()
    ):
        return value
    return {"engine": "local", **value}


RolloutSection = Annotated[
    LocalRolloutSection | VllmSection, Field(discriminator="engine"), BeforeValidator(_default_engine)
]
"""Any engine."""
