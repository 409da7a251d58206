"""What an algorithm's parts need of the rest of a recipe, and what they leave without effect.

What a recipe spends of its budget before its own loop begins, as far as the recipe alone can tell.

What a recipe names outside itself: files of data and folders of models.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from paretune.config.issues import ConfigIssue, closest_match
from paretune.config.schema import Config
from paretune.config.validate import WORLD, data_sources, non_default_keys, reward_sections
from paretune.config.yaml import KeyPath, short_repr
from paretune.rl.algorithm_spec import AlgorithmSpec, PretrainPhase, WeightAverage, phase_specs
from paretune.rl.evolution.search import IsotropicES
from paretune.rl.evolution.spec import EvolutionSpec
from paretune.rollout.sampler import OnPolicy, StoredResponses


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


FIX_HINT = "raise it, or shorten what is made"


def phase_cost_bounds(config: Config, spec: AlgorithmSpec | EvolutionSpec) -> tuple[int, int]:
    """Least and most that the phases take of the budget's currency; 0 where the recipe has no budget.

    A response has at least one token. How many tokens are trained on is known to nobody before prompts are
    read and responses compared: they are taken for 0.
    """
    budget = config.run.budget
    if budget is None or budget.resource == "trained_tokens":
        return 0, 0
    least = most = 0
    for made in spec.phases:
        if isinstance(made, PretrainPhase) and isinstance(made.spec.rollout, OnPolicy):
            responses = made.max_steps * config.training.prompts_per_step * made.spec.rollout.num_generations
            least += responses
            most += responses * (
                made.spec.rollout.max_new_tokens if budget.resource == "rollout_tokens" else 1
            )
    return least, most


def budget_issues(config: Config, spec: AlgorithmSpec | EvolutionSpec) -> Iterator[ConfigIssue]:
    """A budget that is certainly spent before the loop begins."""
    budget, (least, most) = config.run.budget, phase_cost_bounds(config, spec)
    if budget is not None and least >= budget.limit:
        at_least = "" if least == most else "at least "
        wrong = f"{config.algorithm.name} takes {at_least}{least:,} of {budget.limit:,} {budget.resource} beforehand"
        yield ConfigIssue(("run", "budget", "limit"), wrong, fix=FIX_HINT)


def budget_warnings(config: Config, spec: AlgorithmSpec | EvolutionSpec) -> Iterator[str]:
    """A warning of a budget that may be spent before the loop begins: the run would then fail there."""
    budget, (_, most) = config.run.budget, phase_cost_bounds(config, spec)
    if budget is not None and most >= budget.limit:
        yield (
            f"{config.algorithm.name} takes up to {most:,} of {budget.limit:,} {budget.resource} beforehand: "
            "if nothing is left, the run fails there; fix: raise run.budget, or shorten what is made"
        )


HUB_PREFIX = "hf:"
_HUB_NAME_PATTERN = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def file_issues(config: Config) -> Iterator[ConfigIssue]:
    """Data files that are not there."""
    root = Path(config.data.root)
    if (
        any(not source.file.startswith(HUB_PREFIX) for _, _, source in data_sources(config))
        and not root.is_dir()
    ):
        fix = "name a folder, relative to the one you are in"
        yield ConfigIssue(
            ("data", "root"), f"there is no folder {short_repr(config.data.root)}", fix=fix, standalone=True
        )
        return
    for path, _, source in data_sources(config):
        file = root / source.file
        if source.file.startswith(HUB_PREFIX) or file.is_file():
            continue
        beside = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
        meant = closest_match(file.name, beside)
        meant = str(Path(source.file).with_name(meant)) if meant else ""
        fix = f"files are looked for below data.root, which is {short_repr(config.data.root)}"
        yield ConfigIssue(
            (*path, "file"),
            f"there is no file {short_repr(source.file)}",
            suggestion=meant,
            fix=fix,
            standalone=True,
        )


def model_issues(config: Config) -> Iterator[ConfigIssue]:
    """Models that are neither a folder nor a hub name, and ready-made ones that lack an objective."""
    if config.policy.path != WORLD:
        yield from _model_path_issues(("policy", "path"), config.policy.path)
    for name, section in reward_sections(config):
        if section.path is not None:
            yield from _model_path_issues((name, "path"), section.path)
            yield from _label_issues(config, name, Path(section.path))
        elif section.init_from != "policy":
            yield from _model_path_issues((name, "body"), section.init_from)


def is_hub_name(name: str) -> bool:
    """Whether the name of a model is meant for the hub: owner/name, and no such folder here."""
    path = Path(name)
    return bool(_HUB_NAME_PATTERN.fullmatch(name)) and not path.exists() and not path.parent.exists()


def _model_path_issues(path: KeyPath, name: str) -> Iterator[ConfigIssue]:
    if is_hub_name(name):
        return
    fix = "name a folder with config.json, or a hub name like owner/model"
    folder = Path(name)
    if not folder.is_dir():
        beside = [str(p) for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        yield ConfigIssue(
            path,
            f"there is no folder {short_repr(name)}",
            suggestion=closest_match(name, beside),
            fix=fix,
            standalone=True,
        )
    elif not (folder / "config.json").is_file():
        yield ConfigIssue(path, f"{short_repr(name)} holds no config.json", fix=fix, standalone=True)


def _label_issues(config: Config, name: str, folder: Path) -> Iterator[ConfigIssue]:
    """The names in a ready-made model's config.json must hold the objectives that the reward is asked for."""
    file = folder / "config.json"
    if name != "reward" or not file.is_file():
        return
    names = read_label_names(folder)
    if names is None:
        yield ConfigIssue(
            (name, "path"), f"{short_repr(str(file))} is not the configuration of a model", standalone=True
        )
        return
    if not names:
        example = json.dumps({"id2label": dict(enumerate(config.objectives))})
        wrong = f"{short_repr(str(file))} does not say which objective each output of the model is"
        yield ConfigIssue((name, "path"), wrong, fix=f"write into it, in the order of the outputs: {example}")
        return
    for objective, section in config.objectives.items():
        if (section.scores_from or objective) not in names:
            fix = f"the model in reward.path has {', '.join(names)}"
            yield ConfigIssue(
                ("objectives", objective),
                "no model provides it",
                suggestion=closest_match(objective, names),
                fix=fix,
            )


def read_label_names(folder: Path) -> list[str] | None:
    """The names in a ready-made model's config.json; None where there is none that can be read."""
    try:
        labels = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("id2label") or {}
        return [str(label) for label in labels.values()]
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
