"""Checks of what an algorithm requires and what the recipe provides: data, models, budget and files."""

from collections.abc import Iterator
from functools import reduce
from operator import or_

from paretune.config.issues import ConfigIssue
from paretune.config.schema import Config
from paretune.config.scorers import reward_model_objectives
from paretune.config.validate import non_default_keys
from paretune.core.requirements import Requirements
from paretune.rl.algorithm_spec import AlgorithmSpec, PretrainPhase, WeightAverage
from paretune.rl.evolution.spec import EvolutionSpec

Spec = AlgorithmSpec | EvolutionSpec


def requirement_issues(config: Config, spec: Spec) -> Iterator[ConfigIssue]:
    """What the algorithm requires and the recipe lacks, and what the recipe sets to no effect."""
    if config.training.gradient_checkpointing == "offload" and config.run.device == "cpu":
        path = ("training", "gradient_checkpointing")
        problem = "offload has no effect with run.device: cpu"
        yield ConfigIssue(path, problem, fix="remove it, or write recompute")
    yield from budget_issues(config, spec)
    required = _data_requirements(spec)
    yield from _missing_data_issues(config, spec, required)
    yield from _unused_data_issues(config, spec, required)
    yield from _unused_setting_issues(config, spec)
    yield from _phase_issues(config, spec)
    if not spec.rollout.generates and config.aggregate.name == "preference_weighted_sum":
        problem = "preference_weighted_sum needs prompts with preference weights; stored responses have none"
        fix = "write another aggregate, or an algorithm that samples its responses"
        yield ConfigIssue(("aggregate", "name"), problem, fix=fix)
    yield from _critic_issues(config, spec)


def _data_requirements(spec: Spec) -> Requirements:
    """The data that the algorithm and its phases require; found without a dry run."""
    demonstrations = Requirements(demonstrations=spec.auxiliary_lm is not None)
    return reduce(or_, (each.rollout.requirements() for each in spec.all_specs()), demonstrations)


def _available_data(config: Config) -> Requirements:
    """The data that the recipe provides; samplers and scorers are made for every run."""
    return Requirements(
        sampler=True,
        initial_policy_sampler=True,
        scorers=True,
        stored_responses=bool(non_default_keys(config.data.stored_responses)),
        demonstrations=config.policy.sft is not None or bool(config.data.demonstrations),
    )


def _response_source(spec: Spec) -> tuple[str, str]:
    """The argument that selects the responses to train on, and its value for sampling them."""
    if spec.gradient_free:
        return "sft_response_source", "frozen_policy"
    return "response_source", "frozen_policy or on_policy"


def _missing_data_issues(config: Config, spec: Spec, required: Requirements) -> Iterator[ConfigIssue]:
    for missing in required.missing(_available_data(config)):
        if missing.field == "stored_responses":
            key, sampled = _response_source(spec)
            problem = "needs stored responses, and there are none"
            fix = (
                "name data.stored_responses.ratings or data.stored_responses.pairs, or write "
                f"algorithm.{key}: {sampled}"
            )
        else:
            key, problem = "auxiliary_lm_coef", f"needs {missing}, and there are none"
            fix = "name data.demonstrations, or remove algorithm.auxiliary_lm_coef"
        yield ConfigIssue(("algorithm", key), problem, fix=fix)


def _unused_data_issues(config: Config, spec: Spec, required: Requirements) -> Iterator[ConfigIssue]:
    name, available = config.algorithm.name, _available_data(config)
    if available.stored_responses and not required.stored_responses:
        key, _ = _response_source(spec)
        method = "" if spec.gradient_free else "take an offline method with "
        fix = f"remove it, or {method or 'write '}algorithm.{key}: stored"
        problem = f"has no effect: {name} samples its own responses"
        yield ConfigIssue(("data", "stored_responses"), problem, fix=fix)
    if config.data.demonstrations and not required.demonstrations:
        fix = "remove it, or set algorithm.auxiliary_lm_coef of a method that has it"
        problem = f"has no effect: {name} has no auxiliary LM loss here"
        yield ConfigIssue(("data", "demonstrations"), problem, fix=fix)


def _unused_setting_issues(config: Config, spec: Spec) -> Iterator[ConfigIssue]:
    """Settings of gradient-free and of gradient-based methods that have no effect for this one."""
    name, arguments, budget = config.algorithm.name, config.algorithm.arguments, config.run.budget
    if arguments.get("lora_r") is not None and config.policy.lora is not None:
        problem = "has no effect with policy.lora, which sets the rank"
        yield ConfigIssue(("algorithm", "lora_r"), problem, fix="remove it, or remove policy.lora")
    strategy = arguments.get("strategy", "cma")
    if arguments.get("mean_lr") is not None and strategy != "isotropic":
        fix = "remove it, or write algorithm.strategy: isotropic"
        yield ConfigIssue(("algorithm", "mean_lr"), f"has no effect with strategy {strategy}", fix=fix)
    if spec.gradient_free and budget is not None and budget.resource == "trained_tokens":
        problem = f"is never used: {name} trains by gradients only while it fits its adapter"
        yield ConfigIssue(("run", "budget", "resource"), problem, fix="write rollout_tokens or reward_calls")
    if not spec.gradient_free and config.run.num_workers > 1:
        problem = f"has no effect: {name} is not a gradient-free method"
        yield ConfigIssue(("run", "num_workers"), problem, fix="remove it")


def _phase_issues(config: Config, spec: Spec) -> Iterator[ConfigIssue]:
    for phase in spec.phases:
        if isinstance(phase, WeightAverage) and not phase.other_path and config.policy.sft is None:
            problem = "is missing: without policy.sft there is no second model"
            fix = "name the folder of a second model with the same pretrained weights, or set policy.sft"
            yield ConfigIssue(("algorithm", "other_path"), problem, fix=fix)


def _critic_issues(config: Config, spec: Spec) -> Iterator[ConfigIssue]:
    """The critic's warm-up and initial weights."""
    if spec.gradient_free or not spec.uses_critic:
        return
    warmup_steps, max_steps = spec.critic.warmup_steps, config.run.max_steps
    if warmup_steps >= max_steps:
        problem = f"is {warmup_steps} of {max_steps} steps, so the policy would never be updated"
        fix = "lower it, or raise run.max_steps"
        yield ConfigIssue(("algorithm", "critic_warmup_steps"), problem, fix=fix)
    reward = config.reward
    if spec.critic_init_from != "reward":
        return
    path = ("algorithm", "critic_init_from")
    if reward is None or len(reward_model_objectives(config)) < len(config.objectives):
        problem = "is the reward model, and other scorers score objectives too"
        yield ConfigIssue(path, problem, fix="write algorithm.critic_init_from: policy")
    elif reward.path is None and reward.init_from != "policy":
        problem = (
            "is the reward model, which is not initialized from the policy and may have another tokenizer"
        )
        fix = "write algorithm.critic_init_from: policy, or reward.init_from: policy"
        yield ConfigIssue(path, problem, fix=fix)


def phase_cost_bounds(config: Config, spec: Spec) -> tuple[int, int]:
    """Minimum and maximum of the budget's resource that the phases use; (0, 0) without a budget.

    A response has at least one token. The number of trained tokens depends on the data and on which responses
    can be compared, so it is not known here and counted as 0.
    """
    budget = config.run.budget
    if budget is None or budget.resource == "trained_tokens":
        return 0, 0
    minimum = maximum = 0
    for phase in spec.phases:
        if isinstance(phase, PretrainPhase) and phase.spec.rollout.generates:
            num_generations = phase.spec.rollout.num_generations or 0
            max_new_tokens = phase.spec.rollout.max_new_tokens or 0
            responses = phase.max_steps * config.training.prompts_per_step * num_generations
            minimum += responses
            maximum += responses * (max_new_tokens if budget.resource == "rollout_tokens" else 1)
    return minimum, maximum


def budget_issues(config: Config, spec: Spec) -> Iterator[ConfigIssue]:
    """A budget that the phases are certain to use up."""
    budget, (minimum, maximum) = config.run.budget, phase_cost_bounds(config, spec)
    if budget is not None and minimum >= budget.limit:
        amount = (
            f"{'' if minimum == maximum else 'at least '}{minimum:,} of {budget.limit:,} {budget.resource}"
        )
        problem = f"{config.algorithm.name} uses {amount} in its preceding phases"
        yield ConfigIssue(("run", "budget", "limit"), problem, fix="raise it, or shorten the phases")


def budget_warnings(config: Config, spec: Spec) -> Iterator[str]:
    """A warning about a budget that the phases may use up: the run would then fail after them."""
    budget, (_, maximum) = config.run.budget, phase_cost_bounds(config, spec)
    if budget is not None and maximum >= budget.limit:
        yield (
            f"{config.algorithm.name} uses up to {maximum:,} of {budget.limit:,} {budget.resource} in its "
            "preceding phases: if nothing is left, the run fails there; "
            "fix: raise run.budget, or shorten the phases"
        )
