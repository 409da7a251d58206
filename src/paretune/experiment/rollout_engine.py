"""The engine of the section `rollout`: checked before a run, and started for the training."""

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from paretune.config.rollout_schema import InProcessVllmSection, LocalRolloutSection, ServerVllmSection
from paretune.config.validate import WORLD
from paretune.config.yaml import KeyPath
from paretune.core import ranks
from paretune.core.errors import ConfigError, MissingDependencyError
from paretune.experiment.context import RunContext
from paretune.experiment.resolved import ResolvedRun
from paretune.models.load import PolicyModel, load_model_config, resolve_device
from paretune.rollout.vllm import VllmSampler
from paretune.rollout.vllm_engine import Engine, EngineError, EngineFacts, InProcessEngine
from paretune.rollout.vllm_server import VllmServer, VllmServers

START_FIX = "start it as docs/vllm.md shows"


def check_rollout_engine(run: ResolvedRun) -> None:
    """Check that vLLM is installed, or that its servers answer and serve the policy of the recipe.

    Raises:
        MissingDependencyError: It is not installed.
        ConfigError: One line per server that does not answer or serves another model.
    """
    section = run.config.rollout
    if isinstance(section, InProcessVllmSection) and find_spec("vllm") is None:
        problem = "vllm in the training process needs the package vllm, which is not installed here"
        fix = "install it as docs/vllm.md shows, or write mode: server"
        raise MissingDependencyError(run.issue(("rollout", "engine"), problem, fix))
    if isinstance(section, ServerVllmSection):
        issues = [issue for i, url in enumerate(section.base_urls) for issue in _server_issues(run, i, url)]
        if issues:
            raise ConfigError("\n".join(issues))


def _server_issues(run: ResolvedRun, index: int, url: str) -> Iterator[str]:
    key: KeyPath = ("rollout", "base_urls", index)
    try:
        facts = VllmServer(url, timeout=1.0).facts()
    except EngineError as error:
        problem, _, fix = str(error).partition("; ")
        yield run.issue(key, problem, fix or START_FIX)
        return
    for problem, fix in _mismatches(run, facts):
        yield run.issue(key, problem, fix)


def _mismatches(run: ResolvedRun, facts: EngineFacts) -> Iterator[tuple[str, str]]:
    """What a server lacks for the policy of the recipe: problem and fix."""
    policy = run.config.policy
    if policy.path != WORLD:  # its size is known once it is made
        model = load_model_config(policy.path, revision=policy.revision).get_text_config()
        for name, served, wanted in (
            ("a vocabulary of", facts.vocab_size, model.vocab_size),
            ("a hidden size of", facts.hidden_size, model.hidden_size),
            ("a number of layers of", facts.num_layers, model.num_hidden_layers),
        ):
            if served != wanted:
                problem = f"serves another model: {name} {served:,}, and policy.path has {wanted:,}"
                yield problem, f"start it with --model {policy.path}"
    if policy.lora is not None and policy.lora.r > facts.max_lora_rank:
        fix = f"start it with --enable-lora --max-lora-rank {policy.lora.r}"
        if facts.max_lora_rank:
            yield (
                f"takes adapters up to rank {facts.max_lora_rank}, and policy.lora.r is {policy.lora.r}",
                fix,
            )
        else:
            yield "takes no adapters, and policy.lora trains one", fix
    longest = run.algorithm.rollout.max_new_tokens
    if longest is not None and longest >= facts.max_model_len:
        problem = f"takes {facts.max_model_len:,} tokens at most, and responses have up to {longest:,}"
        yield problem, "start it with a larger --max-model-len, or lower algorithm.max_new_tokens"
    if facts.logprobs_mode != "processed_logprobs":
        problem = f"answers with {facts.logprobs_mode}, which leave out the temperature"
        yield problem, "start it with --logprobs-mode processed_logprobs"
    if facts.device == "cpu" and facts.chunked_prefill:
        problem = "computes long batches of prompts in parts, and on a CPU a request with a seed then ends it"
        yield problem, "start it with --no-enable-chunked-prefill"


def make_vllm_sampler(ctx: RunContext, policy: PolicyModel) -> VllmSampler | None:
    """The sampler of the section `rollout` for the trained policy; None with the local engine.

    Raises:
        ParetuneError: The engine does not start.
    """
    section = ctx.config.rollout
    if isinstance(section, LocalRolloutSection):
        return None
    engine: Engine
    if isinstance(section, ServerVllmSection):
        engine = VllmServers(section.base_urls, section.timeout)
    else:
        engine = _in_process_engine(ctx, section)
    folder = None if section.shared_folder is None else Path(section.shared_folder).absolute()
    return VllmSampler(
        policy=policy, objectives=tuple(ctx.config.objectives), engine=engine, shared_folder=folder
    )


def _in_process_engine(ctx: RunContext, section: InProcessVllmSection) -> InProcessEngine:
    lora = ctx.config.policy.lora
    initial = replace(ctx.initial_policy, lora=None)
    ctx.console.log("starting vLLM, which takes a minute or more")
    return InProcessEngine(
        initial.path,
        revision=initial.revision,
        device="cuda" if resolve_device(ctx.device).type == "cuda" else "cpu",
        is_distributed=ranks.is_distributed(),
        lora_rank=None if lora is None else lora.r,
        dtype=section.dtype or ctx.config.policy.dtype,
        gpu_memory_utilization=section.gpu_memory_utilization,
        max_model_len=section.max_model_len,
    )
