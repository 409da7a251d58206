"""Alignment without a gradient: candidates respond, are scored, and are compared as wholes."""

from collections.abc import Mapping
from typing import Literal

from paretune.algorithms.grpo import Gates, gated
from paretune.algorithms.preference import sft
from paretune.bounds import Count, NotNegative, Positive, Share
from paretune.credit.step import chain
from paretune.learn.evolution import ATTENTION, Evolution
from paretune.learn.recipe import Phase
from paretune.learn.search import Cma, Isotropic
from paretune.models.adapt import Lora
from paretune.rollout.sample import Online


def essa(
    weights: Mapping[str, float],
    *,
    gates: Gates = (),
    n: Count = 1,
    max_new: Count = 256,
    temperature: Positive = 1.0,
    population: Count = 96,
    search: Literal["cma", "isotropic"] = "cma",
    sigma: Positive | None = None,
    rate: Positive | None = None,
    share: Share = 1.0,
    noise: Literal["common", "fresh"] = "common",
    kl: NotNegative = 0.0,
    r: Count | None = None,
    warm: Literal["start", "stored"] = "start",
    warm_steps: Count = 20,
    warm_n: Count = 8,
    body: Literal["whole", "int8"] = "whole",
) -> Evolution:
    """A LoRA is fitted to the best of the start's own responses; then its singular values are searched.

    Args:
        weights: Weight of each objective.
        gates: (objective, on, at_least, otherwise): the objective's worth is `otherwise` below that.
        n: Responses of a candidate to each prompt.
        max_new: Longest response, in tokens.
        temperature: Of sampling.
        population: Candidates of a generation.
        search: "cma" learns step size and covariance; "isotropic" keeps the step size, and needs no package.
        sigma: First step size in mean singular values; null: such that candidates differ by a standard error.
        rate: Of "isotropic" alone: how far the mean goes, in step sizes; null: 1 there.
        share: Of the singular values of each factor, the largest that move.
        noise: "common": candidates of a generation meet the same prompts and chance; "fresh": each its own.
        kl: Price of one nat by which a response is likelier than under the start, in the units of the signal.
        r: Rank of the adapter on the projections of attention; null: 8, or that of `policy.lora`.
        warm: What the adapter is fitted to: the best of the start's own responses, or of data.stored.
        warm_steps: Training steps of that fit; its rate is learn.lr.
        warm_n: Responses to each prompt of which the best is imitated.
        body: "int8": the frozen layers reckon in eight bits while candidates respond.

    Source: Korotyshova et al. 2025 (arXiv:2507.04453): rank 8, population 96, all values, no KL. Differs:
    common chance; the incumbent is kept; the first step size, not in the paper, is calibrated; objectives.
    """
    first = sft(weights, gates=gates, responses=warm, n=warm_n, max_new=max_new, temperature=temperature)
    return Evolution(
        name="essa",
        source=Online(n=n, max_new=max_new, temperature=temperature),
        worth=chain(*gated(weights, gates)),
        before=(Phase(role="warm", recipe=first, steps=warm_steps),),
        search=_search(search, population, rate),
        sigma=sigma,
        share=share,
        noise=noise,
        kl=kl,
        adapter=Lora(r=r or 8, alpha=2 * (r or 8), targets=ATTENTION),
        body=body,
    )


def _search(name: str, population: int, rate: float | None) -> Cma | Isotropic:
    if name == "cma":
        return Cma(population=population)
    return Isotropic(population=population, rate=1.0 if rate is None else rate)
