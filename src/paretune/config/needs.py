"""What an algorithm's parts need of the rest of a recipe, and what they leave without effect."""

from collections.abc import Iterator

from paretune.config.beforehand import budget_issues
from paretune.config.faults import ConfigIssue
from paretune.config.rules import non_default_keys
from paretune.config.schema import Config
from paretune.learn.evolution import EvolutionSpec
from paretune.learn.recipe import AlgorithmSpec, WeightAverage, phase_specs
from paretune.learn.search import IsotropicES
from paretune.rollout.sample import StoredResponses


def requirement_issues(config: Config, spec: AlgorithmSpec | EvolutionSpec) -> Iterator[ConfigIssue]:
    """Stored responses, demonstrations and second models that are missing, or that nobody reads."""
    if config.training.gradient_checkpointing == "offload" and config.run.device == "cpu":
        fix = "leave it out, or write recompute"
        yield ConfigIssue(
            ("training", "gradient_checkpointing"), "offload has no effect with run.device: cpu", fix=fix
        )
    yield from budget_issues(config, spec)
    if isinstance(spec, EvolutionSpec):
        yield from _evolution_issues(config, spec)
    else:
        yield from _gradient_issues(config, spec)


def _evolution_issues(config: Config, evolution: EvolutionSpec) -> Iterator[ConfigIssue]:
    """Of a method without gradients, and of the fit of its adapter."""
    name, said = config.algorithm.name, config.algorithm.arguments
    reads = isinstance(evolution.adapter_phase.spec.rollout, StoredResponses)
    yield from _stored_response_issues(
        config,
        reads,
        "warm",
        "write algorithm.sft_response_source: start",
        "write algorithm.sft_response_source: stored",
    )
    if config.data.demonstrations:
        yield ConfigIssue(
            ("data", "demonstrations"), f"has no effect: {name} remembers none", fix="leave it out"
        )
    if said.get("r") is not None and config.policy.lora is not None:
        fix = "leave it out, or leave out policy.lora"
        yield ConfigIssue(
            ("algorithm", "lora_r"), "has no effect beside policy.lora, which has its own rank", fix=fix
        )
    if said.get("rate") is not None and not isinstance(evolution.strategy, IsotropicES):
        fix = "leave it out, or write algorithm.strategy: isotropic"
        yield ConfigIssue(
            ("algorithm", "multiplier_lr"), f"has no effect with search {said.get('search', 'cma')}", fix=fix
        )
    if config.run.budget is not None and config.run.budget.resource == "trained_tokens":
        wrong = f"is never spent: {name} has no gradient once its adapter is fitted"
        yield ConfigIssue(("run", "budget", "resource"), wrong, fix="take rollout_tokens or reward_calls")


def _gradient_issues(config: Config, spec: AlgorithmSpec) -> Iterator[ConfigIssue]:
    """Of a method that learns by gradients."""
    if config.run.num_workers > 1:
        wrong = f"has no effect: {config.algorithm.name} tries no candidates"
        yield ConfigIssue(("run", "num_workers"), wrong, fix="leave it out")
    name = config.algorithm.name
    reads = any(isinstance(each.rollout, StoredResponses) for each in (spec, *phase_specs(spec.phases)))
    offline = "take an offline method with algorithm.response_source: stored"
    yield from _stored_response_issues(
        config, reads, "responses", "take another algorithm.response_source", offline
    )
    if spec.auxiliary_lm is not None and config.policy.sft is None and not config.data.demonstrations:
        fix = "name data.demonstrations, or leave algorithm.auxiliary_lm_coef out"
        yield ConfigIssue(
            ("algorithm", "auxiliary_lm_coef"), "needs demonstrations, and there are none", fix=fix
        )
    if spec.auxiliary_lm is None and config.data.demonstrations:
        fix = "leave it out, or give a method that takes it algorithm.auxiliary_lm_coef"
        yield ConfigIssue(("data", "demonstrations"), f"has no effect: {name} remembers none here", fix=fix)
    for made in spec.phases:
        if isinstance(made, WeightAverage) and not made.other_path and config.policy.sft is None:
            fix = "name the folder of a second model made from the same start, or fit one by policy.sft"
            yield ConfigIssue(
                ("algorithm", "other_path"), "is missing: policy.sft makes no second model", fix=fix
            )
    if isinstance(spec.rollout, StoredResponses):
        yield from _offline_issues(config)
    if "values" in spec.requires():
        yield from _critic_issues(config, spec)


def _stored_response_issues(
    config: Config, reads_stored: bool, key: str, fix_if_missing: str, fix_if_unused: str
) -> Iterator[ConfigIssue]:
    """Stored responses that are missing, or that nobody reads.

    Args:
        config: The experiment.
        reads_stored: The method reads some.
        key: The argument of the algorithm that decides it.
        fix_if_missing: What makes the method read none.
        fix_if_unused: What makes it read them.
    """
    stored = non_default_keys(config.data.stored_responses)
    if reads_stored and not stored:
        fix = f"name data.stored_responses.ratings or data.stored_responses.pairs, or {fix_if_missing}"
        yield ConfigIssue(("algorithm", key), "reads stored responses, and there are none", fix=fix)
    if stored and not reads_stored:
        wrong = f"has no effect: {config.algorithm.name} samples its own responses"
        yield ConfigIssue(("data", "stored_responses"), wrong, fix=f"leave it out, or {fix_if_unused}")


def _offline_issues(config: Config) -> Iterator[ConfigIssue]:
    """What has no meaning where responses are read and not sampled."""
    if config.aggregate.name == "preference":
        fix = "take another aggregate, or an algorithm that samples"
        yield ConfigIssue(
            ("aggregate", "name"), "preference needs prompts that ask; stored responses bring none", fix=fix
        )


def _critic_issues(config: Config, spec: AlgorithmSpec) -> Iterator[ConfigIssue]:
    """What a critic starts from, and how long it learns alone."""
    if spec.critic.warmup_steps >= config.run.max_steps:
        wrong = (
            f"is {spec.critic.warmup_steps} of {config.run.max_steps} steps: the policy would learn nothing"
        )
        yield ConfigIssue(
            ("algorithm", "critic_warmup_steps"), wrong, fix="make it smaller, or raise run.max_steps"
        )
    if (
        spec.critic.init_from == "reward"
        and config.reward.path is None
        and config.reward.init_from != "policy"
    ):
        fix = "write algorithm.critic_init_from: policy, or reward.init_from: policy"
        wrong = "starts from the reward model, whose body is not the policy's and may read other tokens"
        yield ConfigIssue(("algorithm", "critic_init_from"), wrong, fix=fix)
