"""PPO with a critic and its descendants: PPO-max, SALSA, Safe RLHF, PF-PPO, RTO."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from paretune.algorithms.grpo import Gates, gated_weighted_sum
from paretune.algorithms.preference import ResponseSource, dpo
from paretune.algorithms.signature import inherit_arguments
from paretune.core.errors import WiringError
from paretune.core.types import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, UnitInterval
from paretune.credit.base import CreditStep, chain, flatten_steps
from paretune.credit.constraints import Constraint, Lagrangian
from paretune.credit.normalization import RunningNormalize, Whiten
from paretune.credit.returns import Gae, RedistributeTokenRewards
from paretune.credit.selection import FiltrationStrategy, ResampleByRank
from paretune.credit.shaping import ClipReward, EosTrick, KlPenalty, TerminalReward
from paretune.loss.auxiliary import ClippedValueLoss, SquaredValueLoss
from paretune.loss.base import WeightedLoss
from paretune.loss.policy import ClippedSurrogate
from paretune.models.model_passes import CriticValues, ImplicitReward, ModelPass, OldLogprobs, RefLogprobs
from paretune.rl.algorithm_spec import (
    AlgorithmSpec,
    AuxiliaryLm,
    CriticConfig,
    LossAggregation,
    PretrainPhase,
    WeightAverage,
)
from paretune.rollout.sampler import OnPolicy


def ppo(
    weights: Mapping[str, float],
    *,
    gates: Gates = (),
    num_generations: PositiveInt = 1,
    max_new_tokens: PositiveInt = 256,
    temperature: PositiveFloat = 1.0,
    clip_range: UnitInterval = 0.2,
    clip_range_vf: PositiveFloat | None = 0.2,
    vf_coef: PositiveFloat = 0.1,
    kl_coef: NonNegativeFloat = 0.05,
    gamma: UnitInterval = 1.0,
    lam: UnitInterval = 0.95,
    missing_eos_reward: float | None = None,
    critic_init_from: Literal["policy", "reward"] = "reward",
    critic_lr_multiplier: PositiveFloat = 1.0,
    critic_warmup_steps: NonNegativeInt = 0,
    minibatch_size: PositiveInt | None = None,
    num_iterations: PositiveInt = 4,
) -> AlgorithmSpec:
    """PPO with a critic, GAE, and a KL penalty per token in the reward.

    Args:
        weights: Weight of each objective.
        gates: (objective, condition objective, threshold, fallback below the threshold) of each gate.
        num_generations: Responses per prompt.
        max_new_tokens: Maximum response length in tokens.
        temperature: Sampling temperature, also used for all log-probabilities.
        clip_range: Clip range of the probability ratio around 1.
        clip_range_vf: Clip range of values, in the units of the reward; None: not clipped.
        vf_coef: Coefficient of the critic's loss.
        kl_coef: KL penalty per nat, in the units of the reward.
        gamma: Discount per token.
        lam: GAE lambda: one-step TD errors (0) to returns (1).
        missing_eos_reward: Reward of every truncated response, whatever its scores; None: its scores.
        critic_init_from: Model whose body the critic is initialized from; "reward" also takes its heads.
        critic_lr_multiplier: The critic's learning rate as a multiple of training.learning_rate.
        critic_warmup_steps: Initial training steps that train only the critic; the policy's warmup follows.
        minibatch_size: Rows per optimizer step; None: all sampled responses.
        num_iterations: Passes over the sampled responses.

    Source: Ouyang et al. 2022 (arXiv:2203.02155), with the details of Huang et al. 2024, "The N+
    implementation details of RLHF with PPO" (arXiv:2403.17031), for clipping, coefficients and epochs.
    Differs: the reward is at the last response token; the critic is a separate network with its own gradient
    clipping; the temperature is 1 and a missing EOS has no penalty by default (0.7 and -1 there).
    """
    penalty = (KlPenalty(kl_coef),) if kl_coef else ()
    value_loss = SquaredValueLoss() if clip_range_vf is None else ClippedValueLoss(clip_range_vf)
    return AlgorithmSpec(
        name="ppo",
        rollout=_on_policy(num_generations, max_new_tokens, temperature),
        reward_steps=chain(*gated_weighted_sum(weights, gates), *_missing_eos_steps(missing_eos_reward)),
        model_passes=(OldLogprobs(), RefLogprobs(), CriticValues()),
        credit=chain(TerminalReward(), *penalty, Gae(gamma, lam), Whiten()),
        losses=(_clipped_policy_loss(clip_range), WeightedLoss(vf_coef, value_loss)),
        loss_aggregation=LossAggregation("token_mean"),
        num_iterations=num_iterations,
        minibatch_size=minibatch_size,
        critic=_critic(critic_init_from, critic_warmup_steps, critic_lr_multiplier),
    )


@inherit_arguments(ppo, "missing_eos_reward")
def ppo_max(
    weights: Mapping[str, float],
    *,
    vf_coef: PositiveFloat = 1.0,
    critic_lr_multiplier: PositiveFloat = 3.3,
    critic_warmup_steps: NonNegativeInt = 10,
    num_iterations: PositiveInt = 1,
    reward_clip: PositiveFloat | None = 0.8,
    reward_scaling: Literal["normalize", "scale"] = "normalize",
    advantage_normalization: Literal["none", "whiten"] = "none",
    auxiliary_lm_coef: NonNegativeFloat = 0.0,
    auxiliary_lm_batch_size: PositiveInt = 16,
    **kwargs: Any,
) -> AlgorithmSpec:
    """PPO-max: PPO with the stabilizers that were found to matter, and without the others.

    Rewards normalized by running moments, and clipped; a critic that is initialized from the reward model and
    trained alone first; a KL penalty per token; one pass over a small buffer; and optionally an auxiliary LM
    loss on demonstrations.

    Args:
        weights: Weight of each objective.
        vf_coef: Coefficient of the critic's loss.
        critic_lr_multiplier: The critic's learning rate as a multiple of training.learning_rate; 1.65e-6 to
            5e-7 in the paper.
        critic_warmup_steps: Initial training steps that train only the critic; the policy's warmup follows.
        num_iterations: Passes over the sampled responses.
        reward_clip: Bound of the scaled reward; None: not clipped.
        reward_scaling: "normalize" also subtracts the running mean; "scale", without clipping, is the
            released script.
        advantage_normalization: "whiten" whitens advantages, which the paper advises against with scaled
            rewards.
        auxiliary_lm_coef: Coefficient of the auxiliary LM loss on demonstrations.
        auxiliary_lm_batch_size: Demonstrations per optimizer step.
        kwargs: As for `ppo`.

    Source: Zheng et al. 2023, section 5.4 (arXiv:2307.04964). Differs: sampling is not truncated, so that
    the ratio compares equal distributions (their code samples with temperature 0.8, top-p 0.9 and a
    repetition penalty, and computes log-probabilities without); their paper recommends a reward clip of 0.3
    and of 0.8.
    """
    base = ppo(
        weights,
        vf_coef=vf_coef,
        critic_lr_multiplier=critic_lr_multiplier,
        critic_warmup_steps=critic_warmup_steps,
        num_iterations=num_iterations,
        **kwargs,
    )
    scale = RunningNormalize(shift_mean="subtract" if reward_scaling == "normalize" else "none")
    clip = () if reward_clip is None else (ClipReward(-reward_clip, reward_clip),)
    return base.replace(
        name="ppo_max",
        reward_steps=chain(base.reward_steps, scale, *clip),
        credit=base.credit if advantage_normalization == "whiten" else _without_whitening(base.credit),
        auxiliary_lm=make_auxiliary_lm(auxiliary_lm_coef, auxiliary_lm_batch_size),
    )


@inherit_arguments(ppo)
def salsa(
    weights: Mapping[str, float], *, other_path: str = "", other_fraction: UnitInterval = 0.5, **kwargs: Any
) -> AlgorithmSpec:
    """SALSA: PPO with the weight average of two initial models as reference, instead of the initial policy.

    Args:
        weights: Weight of each objective.
        other_path: Folder of the other model; "": train one like the initial policy, with another seed. For
            the built-in world, which has no pretrained weights, the initial policy is fine-tuned once more.
        other_fraction: Weight of the second model in the average.
        kwargs: As for `ppo`.

    Source: Chegini et al. 2024 (arXiv:2411.01798). Differs: adapters are averaged as the products they add
    to the weights. At the first step the KL is not 0: the policy is not its reference.
    """
    passes: tuple[ModelPass, ...] = (OldLogprobs(), RefLogprobs("weight_average"), CriticValues())
    average = WeightAverage(role="weight_average", other_path=other_path, fraction=other_fraction)
    return ppo(weights, **kwargs).replace(name="salsa", model_passes=passes, phases=(average,))


@inherit_arguments(ppo)
def safe_rlhf(
    weights: Mapping[str, float],
    *,
    gates: Gates = (),
    constraints: Sequence[Constraint] = (),
    multiplier_lr: NonNegativeFloat = 0.1,
    multiplier_init: PositiveFloat = 1.0,
    multiplier_max: PositiveFloat = 5.0,
    window_size: PositiveInt = 128,
    multiplier_delay_steps: NonNegativeInt = 0,
    kl_coef: NonNegativeFloat = 0.01,
    clip_range_vf: PositiveFloat | None = 5.0,
    num_iterations: PositiveInt = 1,
    **kwargs: Any,
) -> AlgorithmSpec:
    """Safe RLHF, PPO-Lagrangian: a critic head for each objective, and multipliers on their advantages.

    Args:
        weights: Weight of each objective, added to its multiplier.
        gates: Must be empty: each objective has its own advantage.
        constraints: Lower bounds of means; objectives give them by `at_least`.
        multiplier_lr: Learning rate of the logarithm of a multiplier.
        multiplier_init: Multipliers before the first training step.
        multiplier_max: Largest multiplier.
        window_size: Number of latest scores that a mean is taken over.
        multiplier_delay_steps: Training steps before the multipliers are first updated.
        kl_coef: KL penalty per nat, for each objective; the multipliers rescale it like scores.
        clip_range_vf: Clip range of values, in the units of the reward; None: not clipped.
        num_iterations: Passes over the sampled responses.
        kwargs: As for `ppo`.

    Raises:
        WiringError: There is no constraint, or a gate, or no weighted objective besides the constrained one.

    Source: Dai et al. 2023 (arXiv:2310.12773). Differs: any number of objectives and constraints, on scores
    that are to be large; their cost model is an objective of the reward model.
    """
    if gates:
        raise WiringError('"safe_rlhf" keeps objectives separate and takes no gate; fix: leave out `gate`')
    constrained = {constraint.objective for constraint in constraints}
    if constrained and len(constrained | {name for name, weight in weights.items() if weight}) == 1:
        raise WiringError(
            f'"safe_rlhf" trades a constraint off against a reward, and "{min(constrained)}" is both, so its '
            "multiplier has no effect; fix: give another objective a weight, or use ppo and leave out "
            "at_least"
        )
    base = ppo(weights, kl_coef=kl_coef, clip_range_vf=clip_range_vf, num_iterations=num_iterations, **kwargs)
    multiplier = (multiplier_lr, multiplier_init, multiplier_max)
    lagrangian = _lagrangian(weights, constraints, multiplier, (window_size, multiplier_delay_steps))
    # The weighted sum of ppo goes: objectives stay separate until the Lagrangian, which comes before Whiten,
    # since whitened advantages no longer have the units of the scores.
    eos_steps = [step for step in flatten_steps(base.reward_steps) if isinstance(step, EosTrick)]
    *earlier, whiten = flatten_steps(base.credit)
    credit = chain(*earlier, lagrangian, whiten)
    return base.replace(name="safe_rlhf", reward_steps=chain(*eos_steps), credit=credit)


@inherit_arguments(ppo)
def pf_ppo(
    weights: Mapping[str, float],
    *,
    num_generations: PositiveInt = 5,
    filter_strategy: FiltrationStrategy = "best_random",
    num_kept: PositiveInt = 2,
    filter_power: NonNegativeFloat = 2.0,
    kl_coef: NonNegativeFloat = 0.01,
    num_iterations: PositiveInt = 3,
    **kwargs: Any,
) -> AlgorithmSpec:
    """PF-PPO: PPO on the responses whose reward is reliable, those at the ends of each prompt's ranking.

    Args:
        weights: Weight of each objective.
        num_generations: Responses per prompt that are sampled.
        filter_strategy: Sampling probability of each rank; `paretune reward-filtering` tells which one suits
            a reward model.
        num_kept: Responses per prompt that are trained on.
        filter_power: Exponent of the strategy "power".
        kl_coef: KL penalty per nat, in the units of the reward.
        num_iterations: Passes over the kept responses.
        kwargs: As for `ppo`.

    Raises:
        WiringError: `num_kept` is larger than `num_generations`.

    Source: Shen and Zhang 2024 (arXiv:2409.06957). Differs: responses are sampled within each prompt; the
    critic and the advantages use the kept responses only.
    """
    if num_generations < num_kept:
        raise WiringError(
            f"algorithm.num_generations is {num_generations}, and algorithm.num_kept {num_kept}; "
            f"fix: num_generations of at least {num_kept}"
        )
    base = ppo(
        weights, num_generations=num_generations, kl_coef=kl_coef, num_iterations=num_iterations, **kwargs
    )
    return base.replace(
        name="pf_ppo",
        reward_steps=chain(base.reward_steps, ResampleByRank(filter_strategy, num_kept, filter_power)),
    )


@inherit_arguments(ppo)
def rto(
    weights: Mapping[str, float],
    *,
    gates: Gates = (),
    max_new_tokens: PositiveInt = 256,
    temperature: PositiveFloat = 1.0,
    dense_reward_coef: PositiveFloat = 0.05,
    dense_reward_clip: PositiveFloat | None = None,
    dense_reward_placement: Literal["token", "end", "shaping"] = "token",
    kl_coef: NonNegativeFloat = 0.01,
    dpo_steps: PositiveInt = 30,
    dpo_num_generations: PositiveInt = 4,
    dpo_beta: PositiveFloat = 0.1,
    response_source: ResponseSource = "frozen_policy",
    num_iterations: PositiveInt = 1,
    **kwargs: Any,
) -> AlgorithmSpec:
    """RTO: train a policy by DPO first; its log-ratio to the reference is the token reward of PPO.

    Args:
        weights: Weight of each objective.
        gates: (objective, condition objective, threshold, fallback below the threshold) of each gate.
        max_new_tokens: Maximum response length in tokens.
        temperature: Sampling temperature, also used for all log-probabilities.
        dense_reward_coef: Token reward per nat of log-ratio of the DPO policy, in the units of the reward.
        dense_reward_clip: Bound of the token reward; the released runs have 0.05, which the paper does not
            mention.
        dense_reward_placement: "token": at each token; "end": the sum at the last token; "shaping": at each
            token, with the sum subtracted at the last one, so that the return of the response does not
            change.
        kl_coef: KL penalty per nat, in the units of the reward.
        dpo_steps: Training steps of the DPO phase.
        dpo_num_generations: Responses per prompt in that phase.
        dpo_beta: Strength of the implicit KL penalty to the reference in that phase.
        response_source: Source of the responses of that phase; as for `dpo`.
        num_iterations: Passes over the sampled responses.
        kwargs: As for `ppo`.

    Source: Zhong et al. 2024 (arXiv:2404.18922). Differs: the pairs of the DPO phase are made by the same
    combined objectives, unless it uses stored responses.
    """
    shared: dict[str, Any] = {"gates": gates, "max_new_tokens": max_new_tokens, "temperature": temperature}
    dpo_spec = dpo(
        weights,
        response_source=response_source,
        num_generations=dpo_num_generations,
        beta=dpo_beta,
        **shared,
    )
    base = ppo(weights, kl_coef=kl_coef, num_iterations=num_iterations, **shared, **kwargs)
    placement = dense_reward_placement
    redistribute = () if placement == "token" else (RedistributeTokenRewards(placement),)
    return base.replace(
        name="rto",
        phases=(PretrainPhase(role="dpo", spec=dpo_spec, max_steps=dpo_steps),),
        model_passes=(*base.model_passes, ImplicitReward(dense_reward_coef, "dpo", clip=dense_reward_clip)),
        credit=chain(*redistribute, *flatten_steps(base.credit)),
    )


def _missing_eos_steps(reward: float | None) -> tuple[CreditStep, ...]:
    return () if reward is None else (EosTrick(reward),)


def _on_policy(num_generations: int, max_new_tokens: int, temperature: float) -> OnPolicy:
    return OnPolicy(num_generations=num_generations, max_new_tokens=max_new_tokens, temperature=temperature)


def _critic(init_from: Literal["policy", "reward"], warmup_steps: int, lr_multiplier: float) -> CriticConfig:
    return CriticConfig(init_from=init_from, warmup_steps=warmup_steps, lr_multiplier=lr_multiplier)


def _without_whitening(credit: CreditStep) -> CreditStep:
    return chain(*(step for step in flatten_steps(credit) if not isinstance(step, Whiten)))


def make_auxiliary_lm(coefficient: float, batch_size: int) -> AuxiliaryLm | None:
    """The auxiliary LM loss; None with coefficient 0."""
    return AuxiliaryLm(coefficient=coefficient, batch_size=batch_size) if coefficient else None


def _clipped_policy_loss(clip_range: float) -> WeightedLoss:
    return WeightedLoss(1.0, ClippedSurrogate(clip_range, clip_range))


def _lagrangian(
    weights: Mapping[str, float],
    constraints: Sequence[Constraint],
    multiplier: tuple[float, float, float],
    window: tuple[int, int],
) -> Lagrangian:
    lr, init, upper = multiplier
    return Lagrangian(weights, tuple(constraints), "advantages", lr, "gradient", init, 0.0, upper, *window)
