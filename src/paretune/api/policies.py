"""Policies: loading, and responses to prompts."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from paretune.api.arguments import check_arguments
from paretune.api.inputs import Prompts, read_prompts
from paretune.core.errors import ConfigError
from paretune.data.records import Prompt
from paretune.evaluate.generate import Generations, generate
from paretune.models.load import ModelSpec, PolicyModel
from paretune.models.load import load_policy as load_policy_model
from paretune.models.lora import LoraSpec
from paretune.rollout.probe import probe_sampler
from paretune.rollout.sampler import LocalSampler, Sampler
from paretune.run.io import read_json

PolicyLike = str | Path | PolicyModel
"""A model folder, a run folder (its trained policy) or a hub name; or a model in memory (`load_policy`)."""
MakeSampler = Callable[[PolicyModel, tuple[str, ...]], Sampler]
"""Makes a sampler of a policy, from the policy and the objectives of its batches."""


@check_arguments
def load_policy(
    path: str | Path,
    *,
    dtype: str = "float32",
    revision: str | None = None,
    lora: LoraSpec | None = None,
    device: str = "auto",
    seed: int = 0,
) -> PolicyModel:
    """Load a policy with its tokenizer, in evaluation mode.

    Args:
        path: A model folder, a run folder (its trained policy) or a hub name.
        dtype: float32 or bfloat16.
        revision: Revision on the hub.
        lora: Add a new adapter, which training then changes instead of the weights.
        device: auto, cpu or cuda.
        seed: Seed of the adapter's initial weights.

    Raises:
        DataError: There is no such model, or its files cannot be read.
        ConfigError: A run folder without a trained policy, or an unknown dtype.
        WiringError: The family is not supported, or `lora` matches no layer.
        ResourceError: The device is not available.
    """
    spec = ModelSpec(path=policy_path(path), revision=revision, lora=lora, device=device)
    return load_policy_model(replace(spec, dtype="bfloat16" if dtype == "bfloat16" else "float32"), seed=seed)


def policy_path(path: str | Path) -> str:
    """The folder or hub name of a policy: of a run folder, its `final/`.

    Raises:
        ConfigError: The run has no trained policy yet.
    """
    if read_json(Path(path) / "run.json") is None:
        return str(path)
    if not (Path(path) / "final" / "config.json").exists():
        raise ConfigError(f"{path}: this run has no trained policy yet; fix: resume the run first")
    return str(Path(path) / "final")


def as_policy(policy: PolicyLike, device: str) -> PolicyModel:
    """The policy in memory.

    Raises:
        ParetuneError: It cannot be loaded; see `load_policy`.
    """
    return policy if isinstance(policy, PolicyModel) else load_policy(policy, device=device)


def frozen_copy(policy: PolicyModel) -> PolicyModel:
    """A copy of the policy without gradients."""
    return replace(policy, model=copy.deepcopy(policy.model).requires_grad_(False))


class Generation(NamedTuple):
    """How responses are sampled; see `sample`."""

    num_generations: int
    max_new_tokens: int
    temperature: float
    seed: int
    sampler: MakeSampler = LocalSampler


def generate_responses(policy: PolicyModel, settings: Generation, prompts: tuple[Prompt, ...]) -> Generations:
    """The responses of a policy, whose sampler is tried with a few tokens first.

    Raises:
        WiringError: A number is out of range, or the sampler disagrees with the model.
        DataError: A prompt leaves no room for a response.
    """
    probe_sampler(policy)
    return generate(
        settings.sampler(policy, ()),
        prompts,
        num_generations=settings.num_generations,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=settings.seed,
    )


@check_arguments
def sample(
    policy: PolicyLike,
    prompts: Prompts,
    *,
    num_generations: int = 1,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    seed: int = 1000,
    device: str = "auto",
    sampler: MakeSampler = LocalSampler,
) -> list[list[str]]:
    """Sample responses: for each prompt a list of `num_generations` texts.

    Args:
        policy: The policy.
        prompts: The prompts.
        num_generations: Responses per prompt.
        max_new_tokens: Longest response in tokens.
        temperature: Sampling temperature.
        seed: Seed of the responses.
        device: auto, cpu or cuda.
        sampler: Makes the sampler of the policy.

    Raises:
        DataError: There are no prompts, or one leaves no room for a response.
        WiringError: A number is out of range.
    """
    records = read_prompts(prompts)
    generations = generate_responses(
        as_policy(policy, device),
        Generation(num_generations, max_new_tokens, temperature, seed, sampler),
        records,
    )
    texts = [each.response for each in generations.samples]
    return [texts[i : i + num_generations] for i in range(0, len(texts), num_generations)]
