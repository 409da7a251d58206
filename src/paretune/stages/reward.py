"""Stage 3: the reward model, and the judge that is fitted on other data than it."""

from collections.abc import Mapping
from shutil import rmtree
from typing import Any

from paretune.config.sources import Head, RewardSection
from paretune.learn.reward_baseline import baselines
from paretune.learn.reward_fit import fit_reward, label_scale
from paretune.learn.reward_report import reward_report
from paretune.objectives.calibrated import calibrated
from paretune.objectives.lineage import lineage
from paretune.objectives.reward_loss import BradleyTerry, HeadLoss, Regression
from paretune.objectives.reward_model import RewardModel
from paretune.objectives.reward_store import (
    RewardSpec,
    load_reward_model,
    new_reward_model,
    save_reward_model,
)
from paretune.report.heads import doubtful
from paretune.rundir import read_json, to_json, write_atomic
from paretune.stages.gather import Judgements
from paretune.stages.work import Work, fitting, lora


def fit_model(work: Work, name: str) -> str:
    """Fit the reward model or the judge, report on it, save it; `name` is its section and its folder."""
    section = getattr(work.experiment, name)
    found: Judgements | None = getattr(work.material, name)
    if found is None:
        return f"{section.path}, as it is"
    if not work.folder(name, "report.json").exists():
        _fit(work, name, section, found)
        model = reward_of(work, name)
        start = new_reward_model(_spec(work, section), model.scale, model.offset, seed=_seed(work))
        beside = baselines(start, found.train, found.test, seed=_seed(work))
        report = reward_report(model, found.test, train=found.train, baselines=beside)
        write_atomic(work.folder(name, "report.json"), to_json(report))
    rmtree(work.folder("checkpoints", name), ignore_errors=True)
    return summary(read_json(work.folder(name, "report.json")) or {})


def reward_of(work: Work, name: str) -> RewardModel:
    """The reward model or the judge, from where it lies: what is reported on is what scores."""
    section = getattr(work.experiment, name)
    path = section.path or str(work.folder(name, "model"))
    revision = section.revision if section.path else None
    return load_reward_model(path, dtype=section.dtype, revision=revision, device=work.device)


def summary(report: Mapping[str, Any]) -> str:
    """How well the heads do on records they were not fitted on, in one line, and which of them do not."""
    heads = report["objectives"]
    parts = []
    for objective, head in heads.items():
        rho, pairs = head.get("spearman"), head.get("pair_accuracy")
        if rho is not None:
            parts.append(f"{objective} ρ {rho:.2f}")
        elif pairs is not None:
            parts.append(f"{objective} {100 * pairs:.0f} % of pairs")
    doubts = doubtful(report)
    said = ", ".join(parts) or "nothing is known of them"
    return f"{len(heads)} heads on unseen prompts: {said}" + (f"; ⚠ {'; '.join(doubts)}" if doubts else "")


def _fit(work: Work, name: str, section: RewardSection, found: Judgements) -> None:
    folder = work.folder(name, "model")
    if folder.exists():
        return
    scale, offset = label_scale(found.train, tuple(section.objectives))
    model = new_reward_model(_spec(work, section), scale, offset, seed=_seed(work))
    heads = section.objectives
    confident = {objective: head.right for objective, head in heads.items() if head.loss == "calibrated"}
    fit_reward(
        model,
        calibrated(found.train, confident, _seed(work)) if confident else found.train,
        fitting(section.fit, work.device),
        losses={name: _loss(head) for name, head in heads.items() if name not in confident},
        seed=_seed(work),
        keeping=work.keeping(name),
        on_step=work.told(),
    )
    sources = [*section.ratings.values(), *section.pairs.values()]
    files = [work.material.files[s.file] for s in sources if s.file in work.material.files]
    model.data = lineage(found.train, files)
    save_reward_model(model, folder)


def _spec(work: Work, section: RewardSection) -> RewardSpec:
    own = section.body == "policy"
    body = work.start.path if own else section.body
    revision = work.start.revision if own else section.revision
    return RewardSpec(
        path=body,
        objectives=tuple(section.objectives),
        dtype=section.dtype,
        lora=lora(section.lora),
        revision=revision,
        device=work.device,
    )


def _loss(head: Head) -> HeadLoss:
    assert head.loss != "calibrated"
    if head.loss == "bradley_terry":
        return BradleyTerry()
    return Regression(kind=head.loss, delta=head.delta)


def _seed(work: Work) -> int:
    return work.experiment.run.seed
