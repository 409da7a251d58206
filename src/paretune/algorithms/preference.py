"""Learning from comparisons and from the best: pairs, rankings, imitation; no critic, no group baseline."""

from collections.abc import Mapping
from typing import Any, Literal

from paretune.algorithms.grpo import Gates, gated
from paretune.algorithms.signature import extends
from paretune.bounds import Count, NotNegative, Positive
from paretune.credit.aggregate import Gate
from paretune.credit.keep import KeepBest
from paretune.credit.step import chain, steps_of
from paretune.errors import WiringError
from paretune.learn.recipe import Recipe, Weigh
from paretune.loss.exact import ExactKl
from paretune.loss.group import Reduction
from paretune.loss.imitate import Likelihood, LikelihoodOfBest
from paretune.loss.pair import Form
from paretune.loss.preference import Dpo, Margin, Tdpo
from paretune.loss.ranking import Ranking
from paretune.loss.term import Term
from paretune.models.measure import Measure, Reference
from paretune.rollout.sample import FromStart, Offline, Online

Responses = Literal["start", "online", "stored"]
"""Who wrote them: the policy as it was before the first update, as it is now, or whoever filled the files."""


def written(responses: Responses, n: int, max_new: int, temperature: float) -> Online | Offline:
    """Where responses come from; sampled ones need two of a prompt to compare.

    Raises:
        WiringError: One response has nobody to be compared with.
    """
    if responses == "stored":
        return Offline()
    if n < 2:
        raise WiringError(f"algorithm.n is {n}: responses to a prompt are compared; fix: 2 or more")
    kind = FromStart if responses == "start" else Online
    return kind(n=n, max_new=max_new, temperature=temperature)


def dpo(
    weights: Mapping[str, float],
    *,
    gates: Gates = (),
    responses: Responses = "start",
    n: Count = 4,
    max_new: Count = 256,
    temperature: Positive = 1.0,
    beta: Positive = 0.1,
    form: Form = "sigmoid",
    smoothing: NotNegative = 0.0,
    reduction: Reduction = "sum",
    reference: Literal["frozen", "none"] = "frozen",
    minibatch: Count | None = None,
    epochs: Count = 1,
) -> Recipe:
    """The best response of each prompt against the worst, by how much likelier each became.

    Args:
        weights: Weight of each objective.
        gates: (objective, on, at_least, otherwise): the objective's worth is `otherwise` below that.
        responses: "start" samples them from the policy as it was, "online" from the policy as it is, and
            "stored" reads data.stored, whose labels are then the scores.
        n: Responses to each prompt that are sampled; without effect on stored ones.
        max_new: Longest sampled response, in tokens.
        temperature: Of sampling, and of every log-probability.
        beta: How dear it is to leave the reference.
        form: "sigmoid" (with `smoothing` cDPO), "ipo", "robust" and others.
        smoothing: Probability that a comparison is the wrong way round.
        reduction: Of the tokens' log-ratios; the mean is TRL's for ipo.
        reference: "none" compares likelihoods themselves.
        minibatch: Rows of one optimiser step; None: all of the step.
        epochs: Passes over the responses of a step.

    Source: Rafailov et al. 2023 (arXiv:2305.18290); Mitchell 2023 for the smoothing; Azar et al. 2023 for
    "ipo" (arXiv:2310.12036); Guo et al. 2024 for "online" (arXiv:2402.04792). Differs: pairs are made by the
    combined objectives, of any number of responses; AdamW in the place of RMSprop.
    """
    loss = Dpo(beta, form, smoothing, reduction, reference)
    measure: tuple[Measure, ...] = (Reference(),) if reference == "frozen" else ()
    return Recipe(
        name="dpo",
        source=written(responses, n, max_new, temperature),
        worth=chain(*gated(weights, gates)),
        measure=measure,
        losses=(Term(1.0, loss),),
        weigh=Weigh("sequence"),
        epochs=epochs,
        minibatch=minibatch,
    )


@extends(dpo, "form", "smoothing", "reduction", "reference")
def tdpo(
    weights: Mapping[str, float],
    *,
    form: Literal[1, 2] = 2,
    alpha: NotNegative | None = None,
    beta: Positive = 0.1,
    **more: Any,
) -> Recipe:
    """DPO that also weighs how far each side has drifted from the reference, over the whole vocabulary.

    Args:
        weights: Weight of each objective.
        form: 1 or 2; form 2 leaves the drift of the chosen response alone.
        alpha: Share of the drift that counts in form 2; None: 0.5.
        beta: How dear it is to leave the reference.
        more: As for `dpo`.

    Source: Zeng et al. 2024 (arXiv:2404.11999). Differs: form 2 is the default, as in their function; their
    configuration file, and with it the command of their README, runs form 1.
    """
    return dpo(weights, beta=beta, **more).but(name="tdpo", losses=(Term(1.0, Tdpo(form, beta, alpha)),))


@extends(dpo, "form", "smoothing", "reduction", "reference")
def modpo(
    weights: Mapping[str, float],
    *,
    gates: Gates = (),
    preferred: str = "",
    beta: Positive = 0.1,
    **more: Any,
) -> Recipe:
    """Pairs made by one objective, with what the others are worth taken off: one loss for all of them.

    Args:
        weights: Weight of each objective.
        gates: (objective, on, at_least, otherwise): the objective's worth is `otherwise` below that.
        preferred: The objective that makes the pairs; "": the first that has a weight.
        beta: How dear it is to leave the reference.
        more: As for `dpo`.

    Raises:
        WiringError: `preferred` has no weight, or nothing else has one.

    Source: Zhou et al. 2023 (arXiv:2310.03708). Differs: the others are scores, and not the implicit rewards
    of models that were tuned to them; they have to be on the scale of beta times a log-ratio.
    """
    used = {name: weight for name, weight in weights.items() if weight}
    first = preferred or next(iter(used), "")
    if first not in used:
        raise WiringError(
            f"algorithm.preferred is {first}, which has no weight; fix: one of {', '.join(used)}"
        )
    loss = Dpo(beta, margin=Margin(first, used))
    worth = chain(*(Gate(*gate) for gate in gates))
    return dpo(weights, beta=beta, **more).but(name="modpo", worth=worth, losses=(Term(1.0, loss),))


@extends(dpo, "form", "smoothing", "reduction", "reference", "beta")
def pro(
    weights: Mapping[str, float],
    *,
    anchor: NotNegative = 0.05,
    anchor_reduction: Reduction = "mean",
    n: Count = 4,
    **more: Any,
) -> Recipe:
    """Every response against all the worse ones, the more the wider the gap; the best is imitated.

    Args:
        weights: Weight of each objective.
        anchor: Weight of imitating the best, times (n - 1)^2 as in the paper.
        anchor_reduction: Of the best response's tokens; the sum, which is the paper's, grows with its length.
        n: Responses to each prompt that are sampled; for stored ones, how many a list usually has.
        more: As for `dpo`.

    Source: Song et al. 2023 (arXiv:2306.17492). Differs: the gaps are those of the combined objectives.
    """
    own = anchor * (n - 1) ** 2
    imitate = (Term(own, LikelihoodOfBest(anchor_reduction)),) if own else ()
    losses = (Term(1.0, Ranking()), *imitate)
    return dpo(weights, n=n, **more).but(name="pro", measure=(Reference(),), losses=losses)


@extends(dpo, "form", "smoothing", "reduction", "reference", "beta", "responses")
def superhf(
    weights: Mapping[str, float],
    *,
    n: Count = 16,
    keep: Count = 1,
    kl: NotNegative = 0.35,
    **more: Any,
) -> Recipe:
    """Sample many, imitate the best, and stay near what the reference would have said.

    Args:
        weights: Weight of each objective.
        n: Responses to each prompt, of which the best are kept.
        keep: How many are kept.
        kl: Coefficient of the exact KL(reference || policy).
        more: As for `dpo`; an optimiser step is of responses that were kept.

    Source: Mukobi et al. 2023 (arXiv:2310.16763). Differs: likelihood and divergence are means over the same
    tokens; their code adds up rows in one of them.
    """
    if n <= keep:
        raise WiringError(f"algorithm.n is {n}, and {keep} are kept: nothing is chosen; fix: more than that")
    near = (Term(kl, ExactKl()),) if kl else ()
    base = dpo(weights, responses="online", n=n, **more)
    return base.but(
        name="superhf",
        worth=chain(*steps_of(base.worth), KeepBest(keep)),
        losses=(Term(1.0, Likelihood()), *near),
        weigh=Weigh("token"),
    )


@extends(dpo, "form", "smoothing", "reduction", "reference", "beta")
def sft(weights: Mapping[str, float], **more: Any) -> Recipe:
    """Imitate the best response of each prompt, by the combined objectives; nothing else.

    Args:
        weights: Weight of each objective.
        more: As for `dpo`; responses "stored" imitates the best of what lies in files, "start" is rejection
            sampling.

    Source: the supervised stage of Ouyang et al. 2022 (arXiv:2203.02155), on the best of n.
    """
    imitate = (Term(1.0, LikelihoodOfBest("mean")),)
    return dpo(weights, **more).but(name="sft", measure=(Reference(),), losses=imitate)
