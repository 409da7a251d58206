"""Stage 3: the reward model, and the judge that is fitted on other data than it."""

from collections.abc import Mapping
from shutil import rmtree
from typing import Any

from paretune.config.data_schema import RewardHeadSection, RewardSection
from paretune.experiment.context import RunContext, lora_config, supervised_config
from paretune.experiment.data import RewardData
from paretune.report.reward_model import unreliable_heads
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
from paretune.reward.losses import BradleyTerryLoss, HeadLoss, RegressionLoss
from paretune.reward.model import RewardModel
from paretune.reward.training import fit_reward_model, label_scale_and_offset
from paretune.run.folder import read_json, to_json, write_atomic


def train_reward_model(ctx: RunContext, name: str) -> str:
    """Fit the reward model or the judge, report on it, save it; `name` is its section and its folder."""
    section = getattr(ctx.config, name)
    found: RewardData | None = getattr(ctx.dataset, name)
    if found is None:
        return f"{section.path}, as it is"
    if not ctx.path(name, "report.json").exists():
        _fit_and_save(ctx, name, section, found)
        model = load_trained_reward_model(ctx, name)
        start = new_reward_model(_reward_spec(ctx, section), model.scale, model.offset, seed=_seed(ctx))
        beside = baseline_metrics(start, found.train, found.test, seed=_seed(ctx))
        report = reward_report(model, found.test, train=found.train, baselines=beside)
        write_atomic(ctx.path(name, "report.json"), to_json(report))
    rmtree(ctx.path("checkpoints", name), ignore_errors=True)
    return report_summary(read_json(ctx.path(name, "report.json")) or {})


def load_trained_reward_model(ctx: RunContext, name: str) -> RewardModel:
    """The reward model or the judge, from where it lies: what is reported on is what scores."""
    section = getattr(ctx.config, name)
    path = section.path or str(ctx.path(name, "model"))
    revision = section.revision if section.path else None
    return load_reward_model(path, dtype=section.dtype, revision=revision, device=ctx.device)


def report_summary(report: Mapping[str, Any]) -> str:
    """How well the heads do on records they were not fitted on, in one line, and which of them do not."""
    heads = report["objectives"]
    parts = []
    for objective, head in heads.items():
        rho, pairs = head.get("spearman"), head.get("pair_accuracy")
        if rho is not None:
            parts.append(f"{objective} ρ {rho:.2f}")
        elif pairs is not None:
            parts.append(f"{objective} {100 * pairs:.0f} % of pairs")
    doubts = unreliable_heads(report)
    said = ", ".join(parts) or "nothing is known of them"
    return f"{len(heads)} heads on unseen prompts: {said}" + (f"; ⚠ {'; '.join(doubts)}" if doubts else "")


def _fit_and_save(ctx: RunContext, name: str, section: RewardSection, reward_data: RewardData) -> None:
    folder = ctx.path(name, "model")
    if folder.exists():
        return
    scale, offset = label_scale_and_offset(reward_data.train, tuple(section.objectives))
    model = new_reward_model(_reward_spec(ctx, section), scale, offset, seed=_seed(ctx))
    heads = section.objectives
    confident = {
        objective: head.correct_threshold for objective, head in heads.items() if head.loss == "calibrated"
    }
    fit_reward_model(
        model,
        add_confidence_pairs(reward_data.train, confident, _seed(ctx)) if confident else reward_data.train,
        supervised_config(section.training, ctx.device),
        losses={name: _head_loss(head) for name, head in heads.items() if name not in confident},
        seed=_seed(ctx),
        checkpoint_config=ctx.checkpoint_config(name),
        on_step=ctx.progress_callback(),
    )
    sources = [*section.ratings.values(), *section.pairs.values()]
    files = [ctx.dataset.file_hashes[s.file] for s in sources if s.file in ctx.dataset.file_hashes]
    model.provenance = data_provenance(reward_data.train, files)
    save_reward_model(model, folder)


def _reward_spec(ctx: RunContext, section: RewardSection) -> RewardModelSpec:
    own = section.init_from == "policy"
    body = ctx.initial_policy.path if own else section.init_from
    revision = ctx.initial_policy.revision if own else section.revision
    return RewardModelSpec(
        path=body,
        objectives=tuple(section.objectives),
        dtype=section.dtype,
        lora=lora_config(section.lora),
        revision=revision,
        device=ctx.device,
    )


def _head_loss(head: RewardHeadSection) -> HeadLoss:
    assert head.loss != "calibrated"
    if head.loss == "bradley_terry":
        return BradleyTerryLoss()
    return RegressionLoss(loss_type=head.loss, delta=head.huber_delta)


def _seed(ctx: RunContext) -> int:
    return ctx.config.run.seed
