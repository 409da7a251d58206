"""An algorithm put together in a recipe: its parts by name."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from paretune.algorithms.grpo import Gates
from paretune.algorithms.parts import (
    CREDIT,
    LOSS,
    MODEL_PASS,
    USER_PART,
    PartError,
    Parts,
    build_parts,
    describe_parts,
)
from paretune.algorithms.ppo import make_auxiliary_lm, ppo
from paretune.algorithms.preference import ResponseSource
from paretune.algorithms.signature import inherit_arguments
from paretune.core.errors import WiringError
from paretune.core.reductions import LossAggregationMode
from paretune.core.types import NonNegativeFloat, PositiveInt
from paretune.credit.aggregation import Gate
from paretune.credit.base import chain, flatten_steps
from paretune.credit.constraints import Constraint, Lagrangian
from paretune.rl.algorithm_spec import AlgorithmSpec, LossAggregation
from paretune.rollout.sampler import FrozenPolicy, OnPolicy, RolloutSource, StoredResponses

PPO_ONLY = ("clip_range", "clip_range_vf", "vf_coef", "kl_coef", "gamma", "lam", "missing_eos_reward")
"""Arguments of PPO that are fields of its parts."""


@inherit_arguments(ppo, *PPO_ONLY)
def custom(
    weights: Mapping[str, float],
    *,
    gates: Gates = (),
    constraints: Sequence[Constraint] = (),
    response_source: ResponseSource = "on_policy",
    num_generations: PositiveInt = 8,
    reward_steps: Annotated[Parts, CREDIT] = ({"type": "WeightedSum"},),
    model_passes: Annotated[Parts, MODEL_PASS] = ({"type": "OldLogprobs"},),
    credit: Annotated[Parts, CREDIT] = ({"type": "GroupNormalize"}, {"type": "BroadcastToTokens"}),
    losses: Annotated[Parts, LOSS] = ({"type": "ClippedSurrogate"},),
    loss_aggregation: LossAggregationMode = "token_mean",
    norm_length: PositiveInt | None = None,
    num_iterations: PositiveInt = 1,
    auxiliary_lm_coef: NonNegativeFloat = 0.0,
    auxiliary_lm_batch_size: PositiveInt = 16,
    **kwargs: Any,
) -> AlgorithmSpec:
    """Custom: an algorithm from parts; each is {type: NAME} with the fields of that class.

    The defaults are GRPO without a KL penalty. Gates of the objectives act before the first reward step. A
    part of one's own is {type: python, function: file.py:NAME, arguments: {...}}.

    Args:
        weights: Weight of each objective, for every part that does not set its own.
        gates: (objective, condition objective, threshold, fallback below the threshold) of each gate.
        constraints: Those of the objectives, for every part that does not set its own.
        response_source: on_policy, frozen_policy (the initial one), or stored: data.stored_responses.
        num_generations: Responses per prompt that are sampled.
        reward_steps: Credit steps before the model passes: aggregation, shaping, selection.
        model_passes: Forward passes without gradient.
        credit: Credit steps after the model passes: KL penalty, normalization, advantages.
        losses: Losses, each with a `coefficient`.
        loss_aggregation: Weight of each token in the losses (`LossAggregation`).
        norm_length: Constant divisor of seq_mean_token_sum_norm; None: `max_new_tokens`.
        num_iterations: Passes over the sampled responses.
        auxiliary_lm_coef: Coefficient of the auxiliary LM loss on demonstrations.
        auxiliary_lm_batch_size: Demonstrations per optimizer step.
        kwargs: As for `ppo`.

    Raises:
        WiringError: A part refuses its fields, or a setting has no effect.

    Source: none; the docstring of each part names its own.
    """
    defaults = objective_values(weights, constraints)
    _check_constraints(constraints, (*reward_steps, *credit))
    base = ppo(weights, num_generations=num_generations, num_iterations=num_iterations, **kwargs)
    gate_steps = (Gate(*gate) for gate in gates)
    sampled: OnPolicy = base.rollout  # type: ignore[assignment]
    return base.replace(
        name="custom",
        rollout=_rollout(response_source, sampled),
        reward_steps=chain(*gate_steps, *build_parts(CREDIT, reward_steps, defaults, "reward_steps")),
        model_passes=build_parts(MODEL_PASS, model_passes, defaults, "model_passes"),
        credit=chain(*build_parts(CREDIT, credit, defaults, "credit")),
        losses=build_parts(LOSS, losses, defaults, "losses"),
        loss_aggregation=_loss_aggregation(loss_aggregation, norm_length, sampled.max_new_tokens),
        auxiliary_lm=make_auxiliary_lm(auxiliary_lm_coef, auxiliary_lm_batch_size),
    )


def objective_values(weights: Mapping[str, float], constraints: Sequence[Constraint]) -> dict[str, Any]:
    """What parts take from the section `objectives` if they do not set it."""
    return {"weights": dict(weights), "objectives": tuple(weights), "constraints": tuple(constraints)}


def _check_constraints(constraints: Sequence[Constraint], steps: Parts) -> None:
    """Constraints of the objectives must have a step that enforces them."""
    takes_them = any(
        isinstance(step, Mapping)
        and "constraints" not in step
        and step.get("type") in (Lagrangian.__name__, USER_PART)
        for step in steps
    )
    if constraints and not takes_them:
        raise PartError(
            f"has no step that enforces at_least of {constraints[0].objective}; fix: {{type: Lagrangian}} "
            "for WeightedSum, or aggregate: {name: lagrangian}, or leave out at_least",
            ("reward_steps",),
        )


def custom_arguments(
    spec: AlgorithmSpec, weights: Mapping[str, float], constraints: Sequence[Constraint] = ()
) -> dict[str, Any]:
    """The arguments with which `custom` builds the same parts, as `paretune explain` prints them.

    Args:
        spec: An algorithm without the gates of the objectives, which `custom` adds.
        weights: The weights of its objectives; parts that have them leave them out.
        constraints: The constraints of its objectives, likewise.

    Raises:
        WiringError: It has phases, a prompt format or a scorer view, or a part that needs a second model.
    """
    if spec.phases or spec.prompt_format or spec.scorer_view != "full":
        raise WiringError(
            f"{spec.name} trains further models first, or asks for a format; custom does neither"
        )
    defaults = objective_values(weights, constraints)
    rollout, aggregation, critic = spec.rollout, spec.loss_aggregation, spec.critic
    sources: dict[type, str] = {OnPolicy: "on_policy", FrozenPolicy: "frozen_policy"}
    source = sources.get(type(rollout), "stored")
    values: dict[str, Any] = {"response_source": source}
    if rollout.generates:
        values |= {
            "num_generations": rollout.num_generations,
            "max_new_tokens": rollout.max_new_tokens,
            "temperature": rollout.temperature,
        }
    values |= {
        "reward_steps": describe_parts(flatten_steps(spec.reward_steps), defaults),
        "model_passes": describe_parts(spec.model_passes, defaults),
        "credit": describe_parts(flatten_steps(spec.credit), defaults),
        "losses": describe_parts(spec.losses, defaults),
        "loss_aggregation": aggregation.mode,
        "num_iterations": spec.num_iterations,
        "minibatch_size": spec.minibatch_size,
    }
    if aggregation.mode == "seq_mean_token_sum_norm":
        values["norm_length"] = aggregation.norm_length
    if spec.uses_critic:
        values |= {
            "critic_init_from": critic.init_from,
            "critic_warmup_steps": critic.warmup_steps,
            "critic_lr_multiplier": critic.lr_multiplier,
        }
    if spec.auxiliary_lm is not None:
        values["auxiliary_lm_coef"] = spec.auxiliary_lm.coefficient
        values["auxiliary_lm_batch_size"] = spec.auxiliary_lm.batch_size
    return values


def _rollout(response_source: ResponseSource, sampled: OnPolicy) -> RolloutSource:
    if response_source == "stored":
        return StoredResponses()
    if response_source == "on_policy":
        return sampled
    return FrozenPolicy(
        num_generations=sampled.num_generations,
        max_new_tokens=sampled.max_new_tokens,
        temperature=sampled.temperature,
    )


def _loss_aggregation(mode: Any, norm_length: int | None, max_new_tokens: int) -> LossAggregation:
    if mode != "seq_mean_token_sum_norm":
        if norm_length is not None:
            raise WiringError(
                f"algorithm.norm_length has no effect with loss_aggregation {mode}; fix: remove it, or write "
                "seq_mean_token_sum_norm"
            )
        return LossAggregation(mode)
    return LossAggregation(mode, norm_length or max_new_tokens)
