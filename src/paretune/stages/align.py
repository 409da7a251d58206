"""Stage 4: the policy learns from the reward model, by the algorithm of the recipe."""

from collections.abc import Sequence
from dataclasses import replace

from paretune.batch import Batch
from paretune.config.algorithm import recipe_of
from paretune.credit.step import Metrics
from paretune.data.records import Sample
from paretune.data.stream import PromptStream
from paretune.learn.descend import OnStep, World, descend
from paretune.learn.optim import AdamW
from paretune.models.adapt import AdapterOff
from paretune.models.load import Language, load_policy, save_model
from paretune.models.measure import Models
from paretune.objectives.reward_model import RewardModelScorer
from paretune.rollout.sample import LocalSampler
from paretune.rundir import read_jsonl
from paretune.stages.reward import reward_of
from paretune.stages.work import Work, lora

APART = 0.02
"""A difference between the probabilities of sampler and trainer that is told."""


def align(work: Work) -> str:
    """Run the loop from its last checkpoint to its end, and save the policy in `final/`."""
    e = work.experiment
    if not work.folder("final", "config.json").exists():
        language = load_policy(replace(work.start, lora=lora(e.policy.lora)), seed=e.run.seed)
        descend(
            recipe_of(e),
            _world(work, language),
            steps=e.run.steps,
            seed=e.run.seed,
            run=work.run,
            checkpoint_every=e.run.checkpoint_every,
            keep=e.run.keep,
            on_step=_shown(work),
        )
        save_model(language.model, language.tokenizer, work.folder("final"))
    return f"{e.algorithm.name}, {e.run.steps} steps" + _rises(work)


def sampler(work: Work, language: Language) -> LocalSampler:
    """Samples from this policy, as many rows at once as a step has."""
    e = work.experiment
    rows = e.learn.prompts * int(e.algorithm.arguments.get("n", 1))
    return LocalSampler(language=language, objectives=tuple(e.objectives), rows=rows)


def _world(work: Work, language: Language) -> World:
    e = work.experiment
    if e.policy.lora is None:
        reference = load_policy(work.start, seed=e.run.seed).model.requires_grad_(False)
    else:
        reference = AdapterOff(language.model)
    pools = work.material.pools
    shares = tuple(
        e.data.prompts[name].share if name in e.data.prompts else float(len(pools[name])) for name in pools
    )
    stream = PromptStream(tuple(pools.values()), shares, e.learn.prompts, e.run.seed)
    learn = e.learn
    return World(
        models=Models(policy=language.model, frozen={"reference": reference}),
        sampler=sampler(work, language),
        scorers=(RewardModelScorer(reward_of(work, "reward")),),
        objectives=tuple(e.objectives),
        prompts=stream,
        optim=AdamW(
            lr=learn.lr,
            warmup=learn.warmup,
            schedule=learn.schedule,
            weight_decay=learn.weight_decay,
            clip=learn.clip,
        ),
        micro_tokens=learn.micro_tokens,
    )


def _shown(work: Work) -> OnStep:
    steps = work.experiment.run.steps

    def hear(step: int, metrics: Metrics, batch: Batch, samples: Sequence[Sample]) -> None:
        means = " ".join(
            f"{name[:8]} {metrics.get(f'score/{name}/mean', float('nan')):.2f}" for name in batch.objectives
        )
        work.console.progress(step + 1, steps, f"{means}  KL {metrics.get('kl/k3', float('nan')):.3f}")
        _warn(work, step, metrics.get("sampler/apart/max", 0.0))

    return hear


def _warn(work: Work, step: int, apart: float) -> None:
    """Tell, once a run, that the sampler is not the policy that learns."""
    if apart <= APART or any(e["kind"] == "sampler_apart" for e in read_jsonl(work.folder("events.jsonl"))):
        return
    text = f"step {step}: sampler and trainer differ by {apart:.3f} in the probability of a token"
    work.run.event("sampler_apart", f"{text}; more than {APART} biases what is learnt")
    work.console.say(f"warning: {text}")


def _rises(work: Work) -> str:
    """What the training reward of each objective did, first fifth against last fifth."""
    lines = [line for line in read_jsonl(work.folder("metrics.jsonl")) if line["stage"] == "align"]
    fifth = max(len(lines) // 5, 1)
    parts = []
    for name in work.experiment.objectives:
        values = [line[f"score/{name}/mean"] for line in lines if line.get(f"score/{name}/mean") is not None]
        if values:
            rise = sum(values[-fifth:]) / len(values[-fifth:]) - sum(values[:fifth]) / len(values[:fifth])
            parts.append(f"{name} {rise:+.2f}")
    return "; training reward: " + " ".join(parts) if parts else ""
