"""Load every scorer and judge and score one response before training.

Otherwise a judge that cannot be loaded would only be noticed in the evaluation, after the alignment.
"""

import torch

from paretune.config.data_schema import RewardSection
from paretune.config.scorer_schema import LlmJudgeScorerSection, ScorerSection
from paretune.config.scorers import scorer_sections
from paretune.config.validate import reward_sections
from paretune.config.yaml import KeyPath
from paretune.core.errors import ConfigError, WiringError
from paretune.data.records import Message, Prompt, Sample
from paretune.experiment.assemble import make_critic
from paretune.experiment.context import RunContext
from paretune.experiment.resolved import as_config_error
from paretune.experiment.reward import load_trained_reward_model, reward_model_spec
from paretune.experiment.scorers import scorer_builder
from paretune.reward.checkpoint import new_reward_model
from paretune.reward.failures import describe_reasons
from paretune.reward.model import RewardModel, RewardModelScorer
from paretune.reward.scorers import validated_scores

RESPONSE = "Yes."
"""The response that is scored: short, so that it fits into any context."""


def probe_scorers(ctx: RunContext) -> None:
    """Load every scorer and judge that the run did not make itself, and let it score one response.

    Scorers that this run fits score with their initial weights, which have the tokenizer and the architecture
    of the fitted ones. Skipped for scorers that are fitted already, and if the evaluation is complete.

    Raises:
        ConfigError: One of them cannot be loaded, or does not score as many objectives as it names, or its
            score is not finite.
        ResourceError: The device or the memory does not suffice.
        MissingDependencyError: A package is missing.
    """
    if ctx.path("eval", "final", "eval.json").exists():
        return
    for name, section in reward_sections(ctx.config):
        if section.path is not None:
            with as_config_error(ctx.resolved, (name, "path"), WiringError):
                model = load_trained_reward_model(ctx, name)
                _ask(ctx, model)
                spec, num_heads = ctx.resolved.algorithm, ctx.resolved.requirements.num_critic_heads
                if name == "reward" and num_heads and spec.critic_init_from == "reward":
                    make_critic(ctx, spec, num_heads, model)
        elif section.init_from != "policy" and not ctx.path(name, "model").exists():
            with as_config_error(ctx.resolved, (name, "init_from"), WiringError):
                _ask(ctx, _untrained_model(ctx, section))
    for path, name, typed in scorer_sections(ctx.config):
        with as_config_error(ctx.resolved, path, WiringError):
            _ask_typed(ctx, path, name, typed)


def _ask_typed(ctx: RunContext, path: KeyPath, name: str, section: ScorerSection) -> None:
    """Load a scorer of a type, and let it score one response; an LLM judge answers its canaries.

    Raises:
        ConfigError: It cannot be asked.
        WiringError: The scores have another shape.
        ScoringError: A judge answers too many canaries wrongly.
    """
    scorer = scorer_builder(ctx).build(path, name, section).scorer
    if isinstance(section, LlmJudgeScorerSection):
        for problem in (scorer.check_endpoint(), scorer.check_replies()):
            if problem is not None:
                issue = ctx.resolved.issue((*path, problem.key), problem.problem, problem.fix)
                raise ConfigError(issue)
        scorer.check_canaries()
        return
    sample = Sample(prompt=_short_prompt(ctx), response=RESPONSE)
    validated_scores(scorer, [sample])
    counts = scorer.failures.take()
    if counts.reasons:
        # Not an error: a function may expect more of a response.
        text = f"{'.'.join(map(str, path))} did not score a response on trial"
        ctx.console.log(f"warning: {text}: {describe_reasons(counts)}")


def _untrained_model(ctx: RunContext, section: RewardSection) -> RewardModel:
    num_heads = len(section.objectives)
    spec = reward_model_spec(ctx, section)
    return new_reward_model(spec, [1.0] * num_heads, [0.0] * num_heads, seed=ctx.config.run.seed)


def _ask(ctx: RunContext, model: RewardModel) -> None:
    """Score one response.

    Raises:
        WiringError: The scores have another shape, or are not finite.
    """
    scorer = RewardModelScorer(model)
    scores = validated_scores(scorer, [Sample(prompt=_short_prompt(ctx), response=RESPONSE)])
    if not torch.isfinite(scores).all():
        listed = ", ".join(f"{n} {float(x)}" for n, x in zip(scorer.names, scores[0], strict=True))
        raise WiringError(f"its scores of a short response are not finite ({listed}); fix: use another model")


def _short_prompt(ctx: RunContext) -> Prompt:
    """The shortest of the first test prompts: a long one may exceed the context of a scorer."""
    prompts = list(ctx.dataset.test_prompts[:100])
    fallback = Prompt(messages=(Message(role="user", content="Hello"),))
    return min(prompts, key=lambda p: sum(len(m.content) for m in p.messages), default=fallback)
