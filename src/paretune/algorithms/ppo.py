"""PPO with a critic, and what grew from it: how rewards are scaled, kept, placed and held to a reference."""

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
    """A critic says what each token was worth; the divergence is paid token by token in the reward.

    Args:
        weights: Weight of each objective.
        gates: (objective, on, at_least, otherwise): the objective's worth is `otherwise` below that.
        num_generations: Responses to each prompt.
        max_new_tokens: Longest response, in tokens.
        temperature: Of sampling, and of every log-probability.
        clip_range: How far the probability ratio of a token may go from 1.
        clip_range_vf: How far a value may move in one training step, in the units of the signal; None: any.
        vf_coef: Coefficient of the critic's loss.
        kl_coef: Price of one nat of divergence from the reference, in the units of the signal.
        gamma: Discount per token.
        lam: Between one-step errors (0) and whole returns (1).
        missing_eos_reward: Worth of a response that ran into the length limit, whatever it scored; None: its score.
        critic_init_from: Whose body the critic starts from; with "reward" it starts with that model's heads too.
        critic_lr_multiplier: The critic's learning rate as a multiple of training.learning_rate.
        critic_warmup_steps: Training steps in which only the critic learns; the policy warms up after them.
        minibatch_size: Rows of one optimiser step; None: all that were sampled.
        num_iterations: Passes over the sampled responses.

    Source: Ouyang et al. 2022 (arXiv:2203.02155), with the details of Huang et al. 2024, "The N+
    implementation details of RLHF with PPO" (arXiv:2403.17031), for clips, coefficients and epochs. Differs:
    the reward stands on the last response token; the critic is a network of its own, its gradient bounded
    apart; temperature is 1 and the missing end costs nothing unless asked for (0.7 and -1 there).
    """
    price = (KlPenalty(kl_coef),) if kl_coef else ()
    value = SquaredValueLoss() if clip_range_vf is None else ClippedValueLoss(clip_range_vf)
    return AlgorithmSpec(
        name="ppo",
        rollout=OnPolicy(
            num_generations=num_generations, max_new_tokens=max_new_tokens, temperature=temperature
        ),
        reward_steps=chain(*gated_weighted_sum(weights, gates), *_missing_eos_steps(missing_eos_reward)),
        model_passes=(OldLogprobs(), RefLogprobs(), CriticValues()),
        credit=chain(TerminalReward(), *price, Gae(gamma, lam), Whiten()),
        losses=(WeightedLoss(1.0, ClippedSurrogate(clip_range, clip_range)), WeightedLoss(vf_coef, value)),
        loss_aggregation=LossAggregation("token"),
        num_iterations=num_iterations,
        minibatch_size=minibatch_size,
        critic=CriticConfig(
            init_from=critic_init_from, warmup_steps=critic_warmup_steps, lr_multiplier=critic_lr_multiplier
        ),
    )


@inherit_arguments(ppo, "unfinished")
def ppo_max(
    weights: Mapping[str, float],
    *,
    vf_coef: PositiveFloat = 1.0,
    critic_lr_multiplier: PositiveFloat = 3.3,
    critic_warmup_steps: NonNegativeInt = 10,
    num_iterations: PositiveInt = 1,
    reward_clip: PositiveFloat | None = 0.8,
    reward_scaling: Literal["normalise", "scale"] = "normalise",
    advantage_normalization: Literal["plain", "whitened"] = "plain",
    auxiliary_lm_coef: NonNegativeFloat = 0.0,
    auxiliary_lm_batch_size: PositiveInt = 16,
    **kwargs: Any,
) -> AlgorithmSpec:
    """PPO with the stabilisers that were found to matter, and without those that were not.

    Rewards in standard deviations of all seen before, and clipped; a critic that starts from the reward model
    and learns alone first; a price by token; one pass over a small buffer; and, where asked for, the loss of
    demonstrations beside it.

    Args:
        weights: Weight of each objective.
        vf_coef: Coefficient of the critic's loss.
        critic_lr_multiplier: The critic's learning rate as a multiple of training.learning_rate; 1.65e-6 to 5e-7 in the paper.
        critic_warmup_steps: Training steps in which only the critic learns; the policy warms up after them.
        num_iterations: Passes over the sampled responses.
        reward_clip: Bound of the scaled reward; None: none.
        reward_scaling: "normalise" also takes off the running mean; "scale" is what the released script does, there
            without a clip.
        advantage_normalization: "whitened" as well, which the paper advises against beside scaled rewards.
        auxiliary_lm_coef: Coefficient of the likelihood of demonstrations.
        auxiliary_lm_batch_size: Demonstrations in each optimiser step.
        kwargs: As for `ppo`.

    Source: Zheng et al. 2023, section 5.4 (arXiv:2307.04964). Differs: sampling is not warped, so that the
    ratio is between like distributions (their code samples at 0.8, top-p 0.9 with a penalty of repetition and
    takes log-probabilities without); their paper finds a reward clip of 0.3 and of 0.8 good.
    """
    base = ppo(
        weights,
        vf_coef=vf_coef,
        critic_lr_multiplier=critic_lr_multiplier,
        critic_warmup_steps=critic_warmup_steps,
        num_iterations=num_iterations,
        **kwargs,
    )
    scale = RunningNormalize(shift_mean="removed" if reward_scaling == "normalise" else "kept")
    bound = () if reward_clip is None else (ClipReward(-reward_clip, reward_clip),)
    aside = (
        AuxiliaryLm(coefficient=auxiliary_lm_coef, batch_size=auxiliary_lm_batch_size)
        if auxiliary_lm_coef
        else None
    )
    steps = flatten_steps(base.credit)
    credit = (
        base.credit
        if advantage_normalization == "whitened"
        else chain(*(s for s in steps if not isinstance(s, Whiten)))
    )
    return base.replace(
        name="ppo_max",
        reward_steps=chain(base.reward_steps, scale, *bound),
        credit=credit,
        auxiliary_lm=aside,
    )


@inherit_arguments(ppo)
def salsa(
    weights: Mapping[str, float], *, other_path: str = "", other_fraction: UnitInterval = 0.5, **kwargs: Any
) -> AlgorithmSpec:
    """PPO held to the average of two starting models instead of to the one it starts from.

    Args:
        weights: Weight of each objective.
        other_path: Folder of the other model; "": one more is made as the start was, with another seed. That of
            the built-in world, which has no pretrained weights, is the start taught once more.
        other_fraction: Of the second model in the average.
        kwargs: As for `ppo`.

    Source: Chegini et al. 2024 (arXiv:2411.01798). Differs: adapters are averaged as the products they add
    to the weights. At the first step the divergence is not 0: the policy starts beside its reference.
    """
    measure: tuple[ModelPass, ...] = (OldLogprobs(), RefLogprobs("soup"), CriticValues())
    soup = WeightAverage(role="soup", other_path=other_path, fraction=other_fraction)
    return ppo(weights, **kwargs).replace(name="salsa", model_passes=measure, phases=(soup,))


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
    """PPO-Lagrangian: a head of the critic for each objective, and multipliers on their advantages.

    Args:
        weights: Weight of each objective beside its multiplier.
        gates: None: objectives are credited apart.
        constraints: The levels that means must reach; objectives bring them by `at_least`.
        multiplier_lr: How fast the logarithm of a multiplier moves.
        multiplier_init: Multipliers before the first step.
        multiplier_max: Largest multiplier.
        window_size: Scores a level is taken over.
        multiplier_delay_steps: Steps before multipliers move.
        kl_coef: Price of one nat of divergence, of each objective; the multipliers rescale it as they do scores.
        clip_range_vf: How far a value may move in one training step; None: any.
        num_iterations: Passes over the sampled responses.
        kwargs: As for `ppo`.

    Raises:
        WiringError: There is no constraint, or a gate, or nothing beside what is constrained.

    Source: Dai et al. 2023 (arXiv:2310.12773). Differs: any number of objectives and constraints, on scores
    that are to be large; their cost model is an objective of the reward model.
    """
    if gates:
        raise WiringError('"safe_rlhf" credits objectives apart and takes no gate; fix: leave out `when`')
    held = {constraint.objective for constraint in constraints}
    if held and len(held | {name for name, weight in weights.items() if weight}) == 1:
        raise WiringError(
            f'"safe_rlhf" weighs a constraint against a reward, and "{min(held)}" is both: its multiplier '
            "has no effect; fix: give another objective a weight, or take ppo and leave out at_least"
        )
    base = ppo(weights, kl_coef=kl_coef, clip_range_vf=clip_range_vf, num_iterations=num_iterations, **kwargs)
    both = Lagrangian(
        weights,
        tuple(constraints),
        "advantages",
        multiplier_lr,
        "gradient",
        multiplier_init,
        0.0,
        multiplier_max,
        window_size,
        multiplier_delay_steps,
    )
    cut = [step for step in flatten_steps(base.reward_steps) if isinstance(step, EosTrick)]
    *before, whiten = flatten_steps(base.credit)
    return base.replace(name="safe_rlhf", reward_steps=chain(*cut), credit=chain(*before, both, whiten))


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
    """PPO on the responses whose reward can be trusted: those at the ends of each prompt's ranking.

    Args:
        weights: Weight of each objective.
        num_generations: Responses to each prompt that are sampled.
        filter_strategy: How likely each rank is to be learnt from; `paretune filtration` says which suits a reward.
        num_kept: Responses to each prompt that are learnt from.
        filter_power: For odds "power".
        kl_coef: Price of one nat of divergence from the reference.
        num_iterations: Passes over the kept responses.
        kwargs: As for `ppo`.

    Source: Shen and Zhang 2024 (arXiv:2409.06957). Differs: responses are drawn within each prompt; the
    critic and the advantages see what was kept.
    """
    if num_generations < num_kept:
        raise WiringError(
            f"algorithm.num_generations is {num_generations}, and {num_kept} of them are to be kept; fix: n of at least that"
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
    response_source: ResponseSource = "start",
    num_iterations: PositiveInt = 1,
    **kwargs: Any,
) -> AlgorithmSpec:
    """A policy is tuned to preferences first; what it gained on each token is then PPO's dense reward.

    Args:
        weights: Weight of each objective.
        gates: (objective, on, at_least, otherwise): the objective's worth is `otherwise` below that.
        max_new_tokens: Longest response, in tokens.
        temperature: Of sampling, and of every log-probability.
        dense_reward_coef: What a nat that the tuned policy gained on a token is worth, in the units of the signal.
        dense_reward_clip: Bound of that; the released runs have 0.05, which the paper does not mention.
        dense_reward_placement: Where it is paid: "token" where it was earned, "end" all at the last token, "shaping" so that
            nobody's whole return changes.
        kl_coef: Price of one nat of divergence from the reference.
        dpo_steps: Training steps of the preference phase.
        dpo_num_generations: Responses to each prompt in that phase.
        dpo_beta: How dear it is to leave the reference in that phase.
        response_source: Who writes those of that phase; as for `dpo`.
        num_iterations: Passes over the sampled responses.
        kwargs: As for `ppo`.

    Source: Zhong et al. 2024 (arXiv:2404.18922). Differs: the preference phase learns from pairs by the same
    combined objectives, unless stored pairs are named.
    """
    first = dpo(
        weights,
        gates=gates,
        response_source=response_source,
        num_generations=dpo_num_generations,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        beta=dpo_beta,
    )
    how = {
        "max_new": max_new_tokens,
        "temperature": temperature,
        "kl": kl_coef,
        "epochs": num_iterations,
        **kwargs,
    }
    base = ppo(weights, gates=gates, **how)
    placed = () if dense_reward_placement == "token" else (RedistributeTokenRewards(dense_reward_placement),)
    return base.replace(
        name="rto",
        phases=(PretrainPhase(role="dpo", spec=first, max_steps=dpo_steps),),
        model_passes=(*base.model_passes, ImplicitReward(dense_reward_coef, "dpo", clip=dense_reward_clip)),
        credit=chain(*placed, *flatten_steps(base.credit)),
    )


def _missing_eos_steps(reward: float | None) -> tuple[CreditStep, ...]:
    return () if reward is None else (EosTrick(reward),)
