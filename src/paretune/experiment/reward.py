"""Reward stage: fits the reward model, and the judge, which is fitted to other data."""

from collections.abc import Mapping
from typing import Any

from paretune.config.data_schema import RewardSection
from paretune.core import ranks
from paretune.core.errors import ConfigError
from paretune.data.chat_template import chat_template_of
from paretune.evaluate.judge_quality import unreliable_heads, weak_heads
from paretune.experiment.context import RunContext
from paretune.experiment.data import RewardData
from paretune.experiment.heads import head_kinds
from paretune.experiment.settings import lora_spec, supervised_config
from paretune.models.lora import unwrap_model
from paretune.reward.baselines import baseline_metrics
from paretune.reward.checkpoint import (
    RewardModelSpec,
    data_provenance,
    load_reward_model,
    new_reward_model,
    save_reward_model,
)
from paretune.reward.confidence_pairs import add_confidence_pairs
from paretune.reward.evaluation import reward_report
from paretune.reward.model import RewardModel, RewardModelScorer
from paretune.reward.pretrained import PretrainedRewardScorer
from paretune.reward.scorers import Scorer
from paretune.reward.training import fit_reward_model, kinds_from_labels, label_scale_and_offset
from paretune.run.folder import read_json, to_json, write_atomic
from paretune.run.io import remove_folder


def train_reward_model(ctx: RunContext, name: str) -> str:
    """Fit, evaluate and save the reward model or the judge.

    Args:
        ctx: The run.
        name: "reward" or "judge": section of the recipe and folder below the run folder.
    """
    section = getattr(ctx.config, name)
    data: RewardData | None = getattr(ctx.dataset, name)
    if data is None:
        return f"{section.path}, already fitted"
    if not ctx.has(name, "report.json"):
        _fit_and_save(ctx, name, section, data)
        ctx.stop.raise_if_stopped(f"the fit of the {name}")
        ctx.console.progress(0, 0, "testing on unseen rows")
        # Loaded from disk, so that the report is about exactly the model that scores.
        model = load_trained_reward_model(ctx, name)
        untrained = _untrained_reward_model(ctx, section, data)
        baselines = baseline_metrics(untrained, data.train, data.test, seed=_seed(ctx))
        tested = reward_report(model, data.test, train=data.train, baselines=baselines)
        write_atomic(ctx.path(name, "report.json"), to_json(tested))
    remove_folder(ctx.path("checkpoints", name))
    report = ranks.on_first(lambda: read_json(ctx.path(name, "report.json")) or {}, "report")
    if name == "reward" and not section.allow_weak_heads:
        _require_useful_heads(ctx, report)
    return report_summary(report)


def _require_useful_heads(ctx: RunContext, report: Mapping[str, Any]) -> None:
    """Stop before the alignment on a reward that was shown to be no better than a constant.

    Raises:
        ConfigError: A head that an objective uses does not rank held-out responses.
    """
    used = {section.scores_from or name for name, section in ctx.config.objectives.items()}
    if weak := weak_heads(report, used):
        problem = f"on held-out rows no better than a constant: {', '.join(weak)}"
        fix = (
            "look at these labels, give it more of them or more epochs, or leave out these objectives; "
            "reward.allow_weak_heads=true goes on"
        )
        raise ConfigError(ctx.resolved.issue(("reward", "objectives"), problem, fix))


def load_trained_reward_model(ctx: RunContext, name: str) -> RewardModel:
    """The reward model or the judge: the pretrained one, or the one that this run saved."""
    section = getattr(ctx.config, name)
    path = section.path or str(ctx.path(name, "model"))
    revision = section.revision if section.path else None
    arguments = section.chat_template_kwargs if section.path else {}
    return load_reward_model(
        path, dtype=section.dtype, revision=revision, device=ctx.device, chat_template_kwargs=arguments
    )


def reward_scorer(ctx: RunContext, name: str, model: RewardModel) -> Scorer:
    """The scorer of the reward model or the judge.

    One that was not fitted by this package reads the whole rendering of its chat template, as its authors do.
    """
    section, config = getattr(ctx.config, name), unwrap_model(model.network).config
    has_template = chat_template_of(model.tokenizer).source is not None
    if section.path is None or not has_template or getattr(config, "paretune", None):
        return RewardModelScorer(model)
    return PretrainedRewardScorer(
        model=model,
        outputs={objective: i for i, objective in enumerate(model.objectives)},
        from_paretune=False,
        pad_id=config.get_text_config().pad_token_id,
        path=section.path,
    )


def report_summary(report: Mapping[str, Any]) -> str:
    """One line with the accuracy of every head on test rows, and the unreliable heads."""
    heads = report["objectives"]
    accuracies = []
    for objective, head in heads.items():
        rho, pair_accuracy = head.get("spearman"), head.get("pair_accuracy")
        if rho is not None:
            accuracies.append(f"{objective} ρ {rho:.2f}")
        elif pair_accuracy is not None:
            accuracies.append(f"{objective} {100 * pair_accuracy:.0f} % of pairs")
    warnings = unreliable_heads(report)
    text = ", ".join(accuracies) or "nothing is known of them"
    return f"{len(heads)} heads on unseen prompts: {text}" + (
        f"; ⚠ {'; '.join(warnings)}" if warnings else ""
    )


def _fit_and_save(ctx: RunContext, name: str, section: RewardSection, reward_data: RewardData) -> None:
    model_dir = ctx.path(name, "model")
    if ctx.has(name, "model"):
        return
    train, model = reward_data.train, _untrained_reward_model(ctx, section, reward_data)
    calibrated = {
        objective: head.correct_threshold
        for objective, head in section.objectives.items()
        if head.loss == "calibrated"
    }
    fit_reward_model(
        model,
        add_confidence_pairs(train, calibrated, _seed(ctx)) if calibrated else train,
        supervised_config(section.training, ctx.device),
        seed=_seed(ctx),
        checkpoint_config=ctx.checkpoint_config(name),
        on_step=ctx.progress_callback(),
    )
    sources, file_hashes = [*section.ratings.values(), *section.pairs.values()], ctx.dataset.file_hashes
    files = [file_hashes[source.file] for source in sources if source.file in file_hashes]
    model.provenance = data_provenance(train, files)
    save_reward_model(model, model_dir)


def _untrained_reward_model(ctx: RunContext, section: RewardSection, data: RewardData) -> RewardModel:
    """The model that predicts the constant baseline of the training labels."""
    kinds = head_kinds(section)
    scale, offset = label_scale_and_offset(data.train, tuple(section.objectives), kinds)
    fitted = kinds_from_labels(data.train, kinds)
    spec = reward_model_spec(ctx, section)
    return new_reward_model(spec, scale, offset, kinds=fitted, seed=_seed(ctx))


def reward_model_spec(ctx: RunContext, section: RewardSection) -> RewardModelSpec:
    """The settings of a reward model that this run fits."""
    from_policy = section.init_from == "policy"
    return RewardModelSpec(
        path=ctx.initial_policy.path if from_policy else section.init_from,
        objectives=tuple(section.objectives),
        dtype=section.dtype,
        lora=lora_spec(section.lora),
        revision=ctx.initial_policy.revision if from_policy else section.revision,
        device=ctx.device,
        chat_template_kwargs=section.chat_template_kwargs,
    )


def _seed(ctx: RunContext) -> int:
    return ctx.config.run.seed
