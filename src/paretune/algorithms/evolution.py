"""Gradient-free alignment: an evolution strategy on the singular values of a LoRA adapter."""

from collections.abc import Mapping
from typing import Any, Literal

from paretune.algorithms.grpo import Gates, gated_weighted_sum
from paretune.algorithms.preference import sft
from paretune.core.types import NonNegativeFloat, PositiveFloat, PositiveInt, UnitInterval
from paretune.credit.base import chain
from paretune.models.lora import LoraSpec
from paretune.rl.algorithm_spec import PretrainPhase
from paretune.rl.evolution.search import CmaES, IsotropicES
from paretune.rl.evolution.spec import ATTENTION_MODULES, EvolutionSpec
from paretune.rollout.sampler import OnPolicy


def essa(
    weights: Mapping[str, float],
    *,
    gates: Gates = (),
    num_generations: PositiveInt = 1,
    max_new_tokens: PositiveInt = 256,
    temperature: PositiveFloat = 1.0,
    population_size: PositiveInt = 96,
    strategy: Literal["cma", "isotropic"] = "cma",
    initial_sigma: PositiveFloat | None = None,
    mean_lr: PositiveFloat | None = None,
    singular_value_fraction: UnitInterval = 1.0,
    random_numbers: Literal["common", "independent"] = "common",
    kl_coef: NonNegativeFloat = 0.0,
    lora_r: PositiveInt | None = None,
    sft_response_source: Literal["frozen_policy", "stored"] = "frozen_policy",
    sft_steps: PositiveInt = 20,
    sft_num_generations: PositiveInt = 8,
    base_precision: Literal["full", "int8"] = "full",
) -> EvolutionSpec:
    """ESSA: fit a LoRA adapter to the best responses of the initial policy, then search its singular values.

    Args:
        weights: Weight of each objective.
        gates: (objective, condition objective, threshold, fallback below the threshold) of each gate.
        num_generations: Responses per prompt and candidate.
        max_new_tokens: Maximum response length in tokens.
        temperature: Sampling temperature.
        population_size: Candidates per generation.
        strategy: "cma" adapts step size and covariance; "isotropic" keeps the step size, needs no package.
        initial_sigma: In mean singular values; null: such that candidates differ by one standard error.
        mean_lr: For "isotropic" only: learning rate of the mean, in step sizes; null: 1.
        singular_value_fraction: Fraction of the singular values of each factor that is searched, the largest.
        random_numbers: "common": candidates of a generation share prompts and noise; or "independent".
        kl_coef: Penalty per nat of log-ratio of a response to the initial policy, in the units of the reward.
        lora_r: Rank of the adapter on the attention projections; null: 8, or that of `policy.lora`.
        sft_response_source: The adapter is fitted to the best of these: samples, or data.stored_responses.
        sft_steps: Training steps of that fit; its learning rate is training.learning_rate.
        sft_num_generations: Responses per prompt of which the best is used.
        base_precision: "int8": the frozen layers compute in 8 bits while candidates generate.

    Source: Korotyshova et al. 2025 (arXiv:2507.04453): rank 8, population 96, all values, no KL. Differs:
    common random numbers; the incumbent is kept; calibrated initial step size; several objectives.
    """
    sampling: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    source: dict[str, Any] = {"response_source": sft_response_source, "num_generations": sft_num_generations}
    sft_spec = sft(weights, gates=gates, **source, **sampling)
    return EvolutionSpec(
        name="essa",
        rollout=OnPolicy(num_generations=num_generations, **sampling),
        reward_steps=chain(*gated_weighted_sum(weights, gates)),
        phases=(PretrainPhase(role="warm", spec=sft_spec, max_steps=sft_steps),),
        strategy=_make_strategy(strategy, population_size, mean_lr),
        initial_sigma=initial_sigma,
        singular_value_fraction=singular_value_fraction,
        random_numbers=random_numbers,
        kl_coef=kl_coef,
        adapter=_adapter(lora_r or 8),
        base_precision=base_precision,
    )


def _adapter(rank: int) -> LoraSpec:
    return LoraSpec(r=rank, alpha=2 * rank, target_modules=ATTENTION_MODULES)


def _make_strategy(name: str, population_size: int, mean_lr: float | None) -> CmaES | IsotropicES:
    if name == "cma":
        return CmaES(population_size=population_size)
    return IsotropicES(population_size=population_size, mean_lr=1.0 if mean_lr is None else mean_lr)
