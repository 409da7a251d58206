"""PPO with a critic, and what grew from it: how rewards are scaled, kept, placed and held to a reference."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from paretune.algorithms.grpo import Gates, gated
from paretune.algorithms.preference import Responses, dpo
from paretune.algorithms.signature import extends
from paretune.bounds import Count, Natural, NotNegative, Positive, Share
from paretune.credit.constraint import Constraint, Lagrangian
from paretune.credit.dense import PlaceTokenReward
from paretune.credit.gae import Gae
from paretune.credit.penalty import Clip, EndReward, KlPenalty, Unfinished
from paretune.credit.resample import Odds, ResampleByRank
from paretune.credit.running import RunningScale
from paretune.credit.step import Step, chain, steps_of
from paretune.credit.whiten import Whiten
from paretune.errors import WiringError
from paretune.learn.recipe import Aside, CriticStart, Phase, Recipe, Soup, Weigh
from paretune.loss.policy import Clipped
from paretune.loss.term import Term
from paretune.loss.value import ValueClipped, ValueSquared
from paretune.models.measure import Behaviour, ImplicitReward, Measure, Reference, Values
from paretune.rollout.sample import Online


def ppo(
    weights: Mapping[str, float],
    *,
    gates: Gates = (),
    n: Count = 1,
    max_new: Count = 256,
    temperature: Positive = 1.0,
    clip: Share = 0.2,
    value_clip: Positive | None = 0.2,
    value_weight: Positive = 0.1,
    kl: NotNegative = 0.05,
    gamma: Share = 1.0,
    lam: Share = 0.95,
    unfinished: float | None = None,
    critic: Literal["policy", "reward"] = "reward",
    critic_rate: Positive = 1.0,
    critic_alone: Natural = 0,
    minibatch: Count | None = None,
    epochs: Count = 4,
) -> Recipe:
    """A critic says what each token was worth; the divergence is paid token by token in the reward.

    Args:
        weights: Weight of each objective.
        gates: (objective, on, at_least, otherwise): the objective's worth is `otherwise` below that.
        n: Responses to each prompt.
        max_new: Longest response, in tokens.
        temperature: Of sampling, and of every log-probability.
        clip: How far the probability ratio of a token may go from 1.
        value_clip: How far a value may move in one training step, in the units of the signal; None: any.
        value_weight: Coefficient of the critic's loss.
        kl: Price of one nat of divergence from the reference, in the units of the signal.
        gamma: Discount per token.
        lam: Between one-step errors (0) and whole returns (1).
        unfinished: Worth of a response that ran into the length limit, whatever it scored; None: its score.
        critic: Whose body the critic starts from; with "reward" it starts with that model's heads too.
        critic_rate: The critic's learning rate as a multiple of learn.lr.
        critic_alone: Training steps in which only the critic learns; the policy warms up after them.
        minibatch: Rows of one optimiser step; None: all that were sampled.
        epochs: Passes over the sampled responses.

    Source: Ouyang et al. 2022 (arXiv:2203.02155), with the details of Huang et al. 2024, "The N+
    implementation details of RLHF with PPO" (arXiv:2403.17031), for clips, coefficients and epochs. Differs:
    the reward stands on the last response token; the critic is a network of its own, its gradient bounded
    apart; temperature is 1 and the missing end costs nothing unless asked for (0.7 and -1 there).
    """
    price = (KlPenalty(kl),) if kl else ()
    value = ValueSquared() if value_clip is None else ValueClipped(value_clip)
    return Recipe(
        name="ppo",
        source=Online(n=n, max_new=max_new, temperature=temperature),
        worth=chain(*gated(weights, gates), *_cut_off(unfinished)),
        measure=(Behaviour(), Reference(), Values()),
        credit=chain(EndReward(), *price, Gae(gamma, lam), Whiten()),
        losses=(Term(1.0, Clipped(clip, clip)), Term(value_weight, value)),
        weigh=Weigh("token"),
        epochs=epochs,
        minibatch=minibatch,
        critic=CriticStart(of=critic, alone=critic_alone, rate=critic_rate),
    )


@extends(ppo, "unfinished")
def ppo_max(
    weights: Mapping[str, float],
    *,
    value_weight: Positive = 1.0,
    critic_rate: Positive = 3.3,
    critic_alone: Natural = 10,
    epochs: Count = 1,
    reward_clip: Positive | None = 0.8,
    scaling: Literal["normalise", "scale"] = "normalise",
    advantages: Literal["plain", "whitened"] = "plain",
    lm: NotNegative = 0.0,
    lm_rows: Count = 16,
    **more: Any,
) -> Recipe:
    """PPO with the stabilisers that were found to matter, and without those that were not.

    Rewards in standard deviations of all seen before, and clipped; a critic that starts from the reward model
    and learns alone first; a price by token; one pass over a small buffer; and, where asked for, the loss of
    demonstrations beside it.

    Args:
        weights: Weight of each objective.
        value_weight: Coefficient of the critic's loss.
        critic_rate: The critic's learning rate as a multiple of learn.lr; 1.65e-6 to 5e-7 in the paper.
        critic_alone: Training steps in which only the critic learns; the policy warms up after them.
        epochs: Passes over the sampled responses.
        reward_clip: Bound of the scaled reward; None: none.
        scaling: "normalise" also takes off the running mean; "scale" is what the released script does, there
            without a clip.
        advantages: "whitened" as well, which the paper advises against beside scaled rewards.
        lm: Coefficient of the likelihood of demonstrations.
        lm_rows: Demonstrations in each optimiser step.
        more: As for `ppo`.

    Source: Zheng et al. 2023, section 5.4 (arXiv:2307.04964). Differs: sampling is not warped, so that the
    ratio is between like distributions (their code samples at 0.8, top-p 0.9 with a penalty of repetition and
    takes log-probabilities without); their paper finds a reward clip of 0.3 and of 0.8 good.
    """
    base = ppo(
        weights,
        value_weight=value_weight,
        critic_rate=critic_rate,
        critic_alone=critic_alone,
        epochs=epochs,
        **more,
    )
    scale = RunningScale(mean="removed" if scaling == "normalise" else "kept")
    bound = () if reward_clip is None else (Clip(-reward_clip, reward_clip),)
    aside = Aside(coefficient=lm, rows=lm_rows) if lm else None
    steps = steps_of(base.credit)
    credit = (
        base.credit if advantages == "whitened" else chain(*(s for s in steps if not isinstance(s, Whiten)))
    )
    return base.but(name="ppo_max", worth=chain(base.worth, scale, *bound), credit=credit, aside=aside)


@extends(ppo)
def salsa(weights: Mapping[str, float], *, second: str = "", share: Share = 0.5, **more: Any) -> Recipe:
    """PPO held to the average of two starting models instead of to the one it starts from.

    Args:
        weights: Weight of each objective.
        second: Folder of the other model; "": one more is made as the start was, with another seed. That of
            the built-in world, which has no pretrained weights, is the start taught once more.
        share: Of the second model in the average.
        more: As for `ppo`.

    Source: Chegini et al. 2024 (arXiv:2411.01798). Differs: adapters are averaged as the products they add
    to the weights. At the first step the divergence is not 0: the policy starts beside its reference.
    """
    measure: tuple[Measure, ...] = (Behaviour(), Reference("soup"), Values())
    soup = Soup(role="soup", other=second, share=share)
    return ppo(weights, **more).but(name="salsa", measure=measure, before=(soup,))


@extends(ppo)
def safe_rlhf(
    weights: Mapping[str, float],
    *,
    gates: Gates = (),
    constraints: Sequence[Constraint] = (),
    rate: NotNegative = 0.1,
    start_at: Positive = 1.0,
    most: Positive = 5.0,
    window: Count = 128,
    delay: Natural = 0,
    kl: NotNegative = 0.01,
    value_clip: Positive | None = 5.0,
    epochs: Count = 1,
    **more: Any,
) -> Recipe:
    """PPO-Lagrangian: a head of the critic for each objective, and multipliers on their advantages.

    Args:
        weights: Weight of each objective beside its multiplier.
        gates: None: objectives are credited apart.
        constraints: The levels that means must reach; objectives bring them by `at_least`.
        rate: How fast the logarithm of a multiplier moves.
        start_at: Multipliers before the first step.
        most: Largest multiplier.
        window: Scores a level is taken over.
        delay: Steps before multipliers move.
        kl: Price of one nat of divergence, of each objective; the multipliers rescale it as they do scores.
        value_clip: How far a value may move in one training step; None: any.
        epochs: Passes over the sampled responses.
        more: As for `ppo`.

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
    base = ppo(weights, kl=kl, value_clip=value_clip, epochs=epochs, **more)
    both = Lagrangian(
        weights, tuple(constraints), "advantages", rate, "gradient", start_at, 0.0, most, window, delay
    )
    cut = [step for step in steps_of(base.worth) if isinstance(step, Unfinished)]
    *before, whiten = steps_of(base.credit)
    return base.but(name="safe_rlhf", worth=chain(*cut), credit=chain(*before, both, whiten))


@extends(ppo)
def pf_ppo(
    weights: Mapping[str, float],
    *,
    n: Count = 5,
    odds: Odds = "best_random",
    keep: Count = 2,
    power: NotNegative = 2.0,
    kl: NotNegative = 0.01,
    epochs: Count = 3,
    **more: Any,
) -> Recipe:
    """PPO on the responses whose reward can be trusted: those at the ends of each prompt's ranking.

    Args:
        weights: Weight of each objective.
        n: Responses to each prompt that are sampled.
        odds: How likely each rank is to be learnt from; `paretune filtration` says which suits a reward.
        keep: Responses to each prompt that are learnt from.
        power: For odds "power".
        kl: Price of one nat of divergence from the reference.
        epochs: Passes over the kept responses.
        more: As for `ppo`.

    Source: Shen and Zhang 2024 (arXiv:2409.06957). Differs: responses are drawn within each prompt; the
    critic and the advantages see what was kept.
    """
    if n < keep:
        raise WiringError(f"algorithm.n is {n}, and {keep} of them are to be kept; fix: n of at least that")
    base = ppo(weights, n=n, kl=kl, epochs=epochs, **more)
    return base.but(name="pf_ppo", worth=chain(base.worth, ResampleByRank(odds, keep, power)))


@extends(ppo)
def rto(
    weights: Mapping[str, float],
    *,
    gates: Gates = (),
    max_new: Count = 256,
    temperature: Positive = 1.0,
    dense: Positive = 0.05,
    dense_clip: Positive | None = None,
    place: Literal["token", "end", "shaping"] = "token",
    kl: NotNegative = 0.01,
    dpo_steps: Count = 30,
    dpo_n: Count = 4,
    dpo_beta: Positive = 0.1,
    responses: Responses = "start",
    epochs: Count = 1,
    **more: Any,
) -> Recipe:
    """A policy is tuned to preferences first; what it gained on each token is then PPO's dense reward.

    Args:
        weights: Weight of each objective.
        gates: (objective, on, at_least, otherwise): the objective's worth is `otherwise` below that.
        max_new: Longest response, in tokens.
        temperature: Of sampling, and of every log-probability.
        dense: What a nat that the tuned policy gained on a token is worth, in the units of the signal.
        dense_clip: Bound of that; the released runs have 0.05, which the paper does not mention.
        place: Where it is paid: "token" where it was earned, "end" all at the last token, "shaping" so that
            nobody's whole return changes.
        kl: Price of one nat of divergence from the reference.
        dpo_steps: Training steps of the preference phase.
        dpo_n: Responses to each prompt in that phase.
        dpo_beta: How dear it is to leave the reference in that phase.
        responses: Who writes those of that phase; as for `dpo`.
        epochs: Passes over the sampled responses.
        more: As for `ppo`.

    Source: Zhong et al. 2024 (arXiv:2404.18922). Differs: the preference phase learns from pairs by the same
    combined objectives, unless stored pairs are named.
    """
    first = dpo(
        weights,
        gates=gates,
        responses=responses,
        n=dpo_n,
        max_new=max_new,
        temperature=temperature,
        beta=dpo_beta,
    )
    how = {"max_new": max_new, "temperature": temperature, "kl": kl, "epochs": epochs, **more}
    base = ppo(weights, gates=gates, **how)
    placed = () if place == "token" else (PlaceTokenReward(place),)
    return base.but(
        name="rto",
        before=(Phase(role="dpo", recipe=first, steps=dpo_steps),),
        measure=(*base.measure, ImplicitReward(dense, "dpo", clip=dense_clip)),
        credit=chain(*placed, *steps_of(base.credit)),
    )


def _cut_off(worth: float | None) -> tuple[Step, ...]:
    return () if worth is None else (Unfinished(worth),)
