"""Alignment without a gradient: candidates respond, are scored, and are compared as wholes."""

from collections.abc import Mapping
from typing import Literal

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
    random_numbers: Literal["common", "fresh"] = "common",
    kl_coef: NonNegativeFloat = 0.0,
    lora_r: PositiveInt | None = None,
    sft_response_source: Literal["start", "stored"] = "start",
    sft_steps: PositiveInt = 20,
    sft_num_generations: PositiveInt = 8,
    base_precision: Literal["whole", "int8"] = "whole",
) -> EvolutionSpec:
    """A LoRA is fitted to the best of the start's own responses; then its singular values are searched.

    Args:
        weights: Weight of each objective.
        gates: (objective, on, at_least, otherwise): the objective's worth is `otherwise` below that.
        num_generations: Responses of a candidate to each prompt.
        max_new_tokens: Longest response, in tokens.
        temperature: Of sampling.
        population_size: Candidates of a generation.
        strategy: "cma" learns step size and covariance; "isotropic" keeps the step size, and needs no package.
        initial_sigma: First step size in mean singular values; null: such that candidates differ by a standard error.
        mean_lr: Of "isotropic" alone: how far the mean goes, in step sizes; null: 1 there.
        singular_value_fraction: Of the singular values of each factor, the largest that move.
        random_numbers: "common": candidates of a generation meet the same prompts and chance; "fresh": each its own.
        kl_coef: Price of one nat by which a response is likelier than under the start, in the units of the signal.
        lora_r: Rank of the adapter on the projections of attention; null: 8, or that of `policy.lora`.
        sft_response_source: What the adapter is fitted to: the best of the start's own responses, or of data.stored_responses.
        sft_steps: Training steps of that fit; its rate is training.learning_rate.
        sft_num_generations: Responses to each prompt of which the best is imitated.
        base_precision: "int8": the frozen layers reckon in eight bits while candidates respond.

    Source: Korotyshova et al. 2025 (arXiv:2507.04453): rank 8, population 96, all values, no KL. Differs:
    common chance; the incumbent is kept; the first step size, not in the paper, is calibrated; objectives.
    """
    first = sft(
        weights,
        gates=gates,
        response_source=sft_response_source,
        num_generations=sft_num_generations,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
    )
    return EvolutionSpec(
        name="essa",
        rollout=OnPolicy(
            num_generations=num_generations, max_new_tokens=max_new_tokens, temperature=temperature
        ),
        reward_steps=chain(*gated_weighted_sum(weights, gates)),
        phases=(PretrainPhase(role="warm", spec=first, max_steps=sft_steps),),
        strategy=_make_strategy(strategy, population_size, mean_lr),
        initial_sigma=initial_sigma,
        singular_value_fraction=singular_value_fraction,
        random_numbers=random_numbers,
        kl_coef=kl_coef,
        adapter=LoraSpec(r=lora_r or 8, alpha=2 * (lora_r or 8), target_modules=ATTENTION_MODULES),
        base_precision=base_precision,
    )


def _make_strategy(name: str, population_size: int, mean_lr: float | None) -> CmaES | IsotropicES:
    if name == "cma":
        return CmaES(population_size=population_size)
    return IsotropicES(population_size=population_size, mean_lr=1.0 if mean_lr is None else mean_lr)
