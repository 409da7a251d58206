"""What an algorithm's parts need of the rest of a recipe, and what they leave without effect."""

from collections.abc import Iterator

from paretune.config.beforehand import beyond
from paretune.config.faults import Fault
from paretune.config.rules import given
from paretune.config.schema import Experiment
from paretune.learn.evolution import Evolution
from paretune.learn.recipe import Recipe, Soup, phase_recipes
from paretune.learn.search import Isotropic
from paretune.rollout.sample import Offline


def needed_faults(e: Experiment, recipe: Recipe | Evolution) -> Iterator[Fault]:
    """Stored responses, demonstrations and second models that are missing, or that nobody reads."""
    if e.learn.activations == "offload" and e.run.device == "cpu":
        fix = "leave it out, or write recompute"
        yield Fault(("learn", "activations"), "offload has no effect with run.device: cpu", fix=fix)
    yield from beyond(e, recipe)
    if isinstance(recipe, Evolution):
        yield from _searched(e, recipe)
    else:
        yield from _learnt(e, recipe)


def _searched(e: Experiment, evolution: Evolution) -> Iterator[Fault]:
    """Of a method without gradients, and of the fit of its adapter."""
    name, said = e.algorithm.name, e.algorithm.arguments
    reads = isinstance(evolution.fitted.recipe.source, Offline)
    yield from _stored(e, reads, "warm", "write algorithm.warm: start", "write algorithm.warm: stored")
    if e.data.demonstrations:
        yield Fault(("data", "demonstrations"), f"has no effect: {name} remembers none", fix="leave it out")
    if said.get("r") is not None and e.policy.lora is not None:
        fix = "leave it out, or leave out policy.lora"
        yield Fault(("algorithm", "r"), "has no effect beside policy.lora, which has its own rank", fix=fix)
    if said.get("rate") is not None and not isinstance(evolution.search, Isotropic):
        fix = "leave it out, or write algorithm.search: isotropic"
        yield Fault(("algorithm", "rate"), f"has no effect with search {said.get('search', 'cma')}", fix=fix)
    if e.run.budget is not None and e.run.budget.currency == "trained_tokens":
        wrong = f"is never spent: {name} has no gradient once its adapter is fitted"
        yield Fault(("run", "budget", "currency"), wrong, fix="take rollout_tokens or reward_calls")


def _learnt(e: Experiment, recipe: Recipe) -> Iterator[Fault]:
    """Of a method that learns by gradients."""
    if e.run.workers > 1:
        wrong = f"has no effect: {e.algorithm.name} tries no candidates"
        yield Fault(("run", "workers"), wrong, fix="leave it out")
    name = e.algorithm.name
    reads = any(isinstance(each.source, Offline) for each in (recipe, *phase_recipes(recipe.before)))
    offline = "take an offline method with algorithm.responses: stored"
    yield from _stored(e, reads, "responses", "take another algorithm.responses", offline)
    if recipe.aside is not None and e.policy.sft is None and not e.data.demonstrations:
        fix = "name data.demonstrations, or leave algorithm.lm out"
        yield Fault(("algorithm", "lm"), "needs demonstrations, and there are none", fix=fix)
    if recipe.aside is None and e.data.demonstrations:
        fix = "leave it out, or give a method that takes it algorithm.lm"
        yield Fault(("data", "demonstrations"), f"has no effect: {name} remembers none here", fix=fix)
    for made in recipe.before:
        if isinstance(made, Soup) and not made.other and e.policy.sft is None:
            fix = "name the folder of a second model made from the same start, or fit one by policy.sft"
            yield Fault(("algorithm", "second"), "is missing: policy.sft makes no second model", fix=fix)
    if isinstance(recipe.source, Offline):
        yield from _never_sampled(e)
    if "values" in recipe.wants():
        yield from _critic(e, recipe)


def _stored(e: Experiment, reads: bool, key: str, unread: str, read: str) -> Iterator[Fault]:
    """Stored responses that are missing, or that nobody reads.

    Args:
        e: The experiment.
        reads: The method reads some.
        key: The argument of the algorithm that decides it.
        unread: What makes the method read none.
        read: What makes it read them.
    """
    stored = given(e.data.stored)
    if reads and not stored:
        fix = f"name data.stored.ratings or data.stored.pairs, or {unread}"
        yield Fault(("algorithm", key), "reads stored responses, and there are none", fix=fix)
    if stored and not reads:
        wrong = f"has no effect: {e.algorithm.name} samples its own responses"
        yield Fault(("data", "stored"), wrong, fix=f"leave it out, or {read}")


def _never_sampled(e: Experiment) -> Iterator[Fault]:
    """What has no meaning where responses are read and not sampled."""
    if e.aggregate.name == "preference":
        fix = "take another aggregate, or an algorithm that samples"
        yield Fault(
            ("aggregate", "name"), "preference needs prompts that ask; stored responses bring none", fix=fix
        )


def _critic(e: Experiment, recipe: Recipe) -> Iterator[Fault]:
    """What a critic starts from, and how long it learns alone."""
    if recipe.critic.alone >= e.run.steps:
        wrong = f"is {recipe.critic.alone} of {e.run.steps} steps: the policy would learn nothing"
        yield Fault(("algorithm", "critic_alone"), wrong, fix="make it smaller, or raise run.steps")
    if recipe.critic.of == "reward" and e.reward.path is None and e.reward.body != "policy":
        fix = "write algorithm.critic: policy, or reward.body: policy"
        wrong = "starts from the reward model, whose body is not the policy's and may read other tokens"
        yield Fault(("algorithm", "critic"), wrong, fix=fix)
