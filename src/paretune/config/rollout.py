"""The section `rollout`: its rules, and the importance correction that it adds to the algorithm."""

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

from paretune.algorithms.ratio_variants import with_importance_correction
from paretune.config.issues import ConfigIssue
from paretune.config.rollout_schema import (
    EngineSection,
    ImportanceCorrection,
    LocalRolloutSection,
    ServerVllmSection,
)
from paretune.config.schema import Config
from paretune.config.validate import non_default_keys
from paretune.config.yaml import short_repr
from paretune.core.errors import WiringError
from paretune.credit.base import flatten_steps
from paretune.credit.importance_sampling import TruncatedImportanceSampling
from paretune.loss.policy import PolicyLoss
from paretune.rl.algorithm_spec import AlgorithmSpec, map_phases
from paretune.rl.evolution.spec import EvolutionSpec

Spec = AlgorithmSpec | EvolutionSpec

CORRECTION_KEY = ("rollout", "importance_correction")
_NO_SAMPLING = "does not sample from the trained policy"


def apply_importance_correction(config: Config, spec: Spec) -> Spec:
    """The algorithm with the importance correction of the section `rollout`, its phases included.

    Raises:
        WiringError: It has no policy loss that could be weighted, or corrects itself.
    """
    section, level = config.rollout, importance_level(config.rollout)
    if level == "none":
        return spec
    if section.importance_correction is not None:
        if isinstance(spec, EvolutionSpec) or not _has_policy_loss(spec):
            raise WiringError("has no effect: the algorithm has no policy loss on sampled responses")
        if _corrects_itself(spec):
            raise WiringError("has no effect: the algorithm has TruncatedImportanceSampling already")
    if isinstance(spec, EvolutionSpec):
        return spec
    step = TruncatedImportanceSampling(level=level, max_ratio=section.max_importance_ratio)
    return _corrected(spec, step)


def importance_level(section: EngineSection) -> ImportanceCorrection:
    """The importance correction of a section, with its default: stale responses are corrected."""
    if section.importance_correction is not None:
        return section.importance_correction
    return "token" if section.max_staleness else "none"


def _has_policy_loss(spec: AlgorithmSpec) -> bool:
    return spec.rollout.requirements().sampler and any(isinstance(x.loss, PolicyLoss) for x in spec.losses)


def _corrects_itself(spec: AlgorithmSpec) -> bool:
    return any(isinstance(step, TruncatedImportanceSampling) for step in flatten_steps(spec.credit))


def _corrected(spec: AlgorithmSpec, step: TruncatedImportanceSampling) -> AlgorithmSpec:
    """The spec and its phases, with the correction where there is a policy loss without one."""
    phases = map_phases(spec.phases, lambda phase: _corrected(phase, step))
    spec = spec.replace(phases=phases)
    if not _has_policy_loss(spec) or _corrects_itself(spec):
        return spec
    return with_importance_correction(spec, step)


def rollout_issues(config: Config, spec: Spec) -> Iterator[ConfigIssue]:
    """Settings of the section `rollout` without effect, or that cannot work."""
    section = config.rollout
    samples = any(each.rollout.requirements().sampler for each in spec.all_specs())
    if section.max_staleness and (spec.gradient_free or not samples):
        reason = "searches without steps of an optimizer" if spec.gradient_free else _NO_SAMPLING
        problem = f"has no effect: {config.algorithm.name} {reason}"
        yield ConfigIssue(("rollout", "max_staleness"), problem, fix="remove it")
    yield from _correction_issues(section)
    if isinstance(section, LocalRolloutSection):
        return
    if spec.gradient_free:
        problem = f"vllm cannot be used: {config.algorithm.name} samples from many candidates at a time"
        yield ConfigIssue(("rollout", "engine"), problem, fix="remove the section rollout")
        return
    if not samples:
        problem = f"vllm has no effect: {config.algorithm.name} {_NO_SAMPLING}"
        yield ConfigIssue(("rollout", "engine"), problem, fix="remove the section rollout")
    if isinstance(section, ServerVllmSection):
        yield from _server_issues(config, section)


def _correction_issues(section: EngineSection) -> Iterator[ConfigIssue]:
    level = importance_level(section)
    if isinstance(section, LocalRolloutSection) and level != "none" and not section.max_staleness:
        problem = "has no effect: the local engine samples from the weights that are trained"
        yield ConfigIssue(CORRECTION_KEY, problem, fix="remove it, or write max_staleness: 1")
    if "max_importance_ratio" in non_default_keys(section) and level == "none":
        problem, fix = "has no effect without importance_correction", "set both, or remove it"
        yield ConfigIssue(("rollout", "max_importance_ratio"), problem, fix=fix)


def _server_issues(config: Config, section: ServerVllmSection) -> Iterator[ConfigIssue]:
    for index, url in enumerate(section.base_urls):
        path = ("rollout", "base_urls", index)
        if problem := url_problem(url):
            fix = "write it like http://127.0.0.1:8000"
            yield ConfigIssue(path, f"{short_repr(url)} {problem}", fix=fix, standalone=True)
        elif url in section.base_urls[:index]:
            yield ConfigIssue(path, f"{short_repr(url)} is listed twice", fix="remove it", standalone=True)
        elif section.shared_folder is None and not _is_this_host(urlsplit(url).hostname or ""):
            problem = f"is missing: {short_repr(url)} is on another host, which does not see /dev/shm here"
            fix = "name a folder that both hosts see under this name"
            yield ConfigIssue(("rollout", "shared_folder"), problem, fix=fix)
    if config.policy.sft is not None and config.policy.lora is not None:
        problem = "server has the base model from before policy.sft, and the adapter belongs to that after"
        fix = (
            "write mode: in_process, or train the model first and name it in policy.path, without policy.sft"
        )
        yield ConfigIssue(("rollout", "mode"), problem, fix=fix)


def url_problem(url: str) -> str:
    """What is wrong about the address of a server; "" if nothing is."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        return f"is no address: {error}"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "is no address"
    if parts.query or parts.fragment or parts.username:
        return "has more than a host, a port and a path"
    return ""


def _is_this_host(host: str) -> bool:
    return host in ("localhost", "::1", socket.gethostname()) or host.startswith("127.")
