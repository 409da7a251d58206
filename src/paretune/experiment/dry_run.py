"""What can be tried of a recipe without weights: for `paretune check`, and for a run before anything else.

What a run would do, in lines to be read: what `paretune check` prints.
"""

from collections.abc import Iterable, Iterator

from paretune.config import Config
from paretune.config.build import build_spec
from paretune.config.requirements import budget_warnings
from paretune.config.validate import reward_sections
from paretune.core.errors import ConfigError, DataError, WiringError
from paretune.experiment.data import Dataset, ProgressCallback, load_data
from paretune.experiment.dataset import Dataset, RewardData, prompt_stream
from paretune.experiment.preflight import check_memory_options, hub_model_notes, model_references
from paretune.models.load import is_local_folder
from paretune.rl.algorithm_spec import AlgorithmSpec, PretrainPhase, describe
from paretune.rl.evolution.spec import EvolutionSpec
from paretune.rl.validate import SpecRequirements
from paretune.rl.validate import check_spec as dry_run
from paretune.rollout.sampler import StoredResponses


def check(config: Config) -> str:
    """What a run of this recipe would do, after everything was tried that needs no weights; writes nothing.

    Raises:
        ParetuneError: Every mistake of the recipe, of the models' configurations and of the rows, one a line.
    """
    found = validate_run(config)
    if config.run.device != "cuda":  # which may be meant for another machine than this one
        check_memory_options(config)
    return "\n".join(describe_run(config, *found))


def validate_run(
    config: Config, on_progress: ProgressCallback = lambda done, total, note: None
) -> tuple[AlgorithmSpec | EvolutionSpec, SpecRequirements, Dataset]:
    """The algorithm on a small fake batch, and all records; what is wrong with both is told together.

    Raises:
        ParetuneError: As `check`.
    """
    recipe = build_spec(config)
    try:
        plan = dry_run(recipe, tuple(config.objectives))
    except WiringError as wiring:
        try:
            load_data(config, on_progress)
        except (ConfigError, DataError) as error:
            raise ConfigError(f"{wiring}\n{error}") from error
        raise
    return recipe, plan, load_data(config, on_progress)


NO_JUDGE_NOTE = "the reward judges itself, no gain will be called better"


def describe_run(
    config: Config, spec: AlgorithmSpec | EvolutionSpec, plan: SpecRequirements, dataset: Dataset
) -> list[str]:
    """Counts of records, what was left out, the algorithm part by part, and what was not tried."""
    return [
        f"{config.name}: ok",
        *_section("prompts", [describe_prompts(dataset)]),
        *_section("", _describe_unsampled_pools(config, dataset)),
        *_section(
            "stored",
            [f"responses to {len(dataset.stored_responses):,} prompts"] if dataset.stored_responses else [],
        ),
        *_section("policy", [_describe_policy(config, dataset)]),
        *(
            _line(name, _describe_reward_data(section.path, name, dataset))
            for name, section in reward_sections(config)
        ),
        *_section("judge", ["none: " + NO_JUDGE_NOTE] if config.judge is None else []),
        *_section("notes", dataset.exclusions),
        *(spec.describe() if isinstance(spec, EvolutionSpec) else describe(spec)),
        *_section("frozen", [", ".join(plan.frozen_roles)] if plan.frozen_roles else []),
        *_section("size", _describe_workload(config, spec, dataset)),
        *_section("warning", budget_warnings(config, spec)),
        *_section("hub", hub_model_notes(config)),
        *_section(
            "not tried", [*_describe_unread_weights(config), "whether the memory of this machine suffices"]
        ),
    ]


def describe_prompts(dataset: Dataset) -> str:
    """Prompts by pool, and those that are evaluated on."""
    pools = ", ".join(f"{len(pool):,} {name}" for name, pool in dataset.train_prompts.items())
    return f"{pools or 'none'}; {len(dataset.test_prompts):,} unseen"


def _describe_policy(config: Config, dataset: Dataset) -> str:
    count = len(dataset.sft_demonstrations)
    return config.policy.path + (f", after {count:,} demonstrations" if count else ", as it is")


def _describe_reward_data(path: str | None, name: str, dataset: Dataset) -> str:
    rows: RewardData | None = getattr(dataset, name)
    if rows is None:
        return f"{path}, as it is"
    return f"{len(rows.train):,} rows to fit, {len(rows.test):,} to report on"


def _describe_unsampled_pools(config: Config, dataset: Dataset) -> Iterator[str]:
    """Pools that a short run does not come to."""
    drawn = prompt_stream(config, dataset.train_prompts).count_drawn(config.run.max_steps)
    for name, count in zip(dataset.train_prompts, drawn, strict=True):
        if not count:
            yield f"no prompt of {name} comes up in {config.run.max_steps} steps of {config.training.prompts_per_step}"


def _describe_workload(
    config: Config, spec: AlgorithmSpec | EvolutionSpec, dataset: Dataset
) -> Iterator[str]:
    """How much is sampled, learnt from and judged, at most."""
    for made in spec.phases:
        if isinstance(made, PretrainPhase):
            yield f"beforehand {made.role}: {made.max_steps:,} steps x {_describe_step(config, made.spec)}"
    budget = config.run.budget
    ends = f", or until {budget.limit:,} {budget.resource} are spent" if budget else ""
    if isinstance(spec, EvolutionSpec) and spec.initial_sigma is None:
        yield "some candidates beforehand, to find the first step size"
    yield f"at most {config.run.max_steps:,} steps x {_describe_step(config, spec)}{ends}"
    longest = config.evaluate.max_new_tokens or int(config.algorithm.arguments["max_new"])
    yield f"then 2 x {len(dataset.test_prompts) * config.evaluate.num_generations:,} answers of up to {longest} tokens to be judged"


def _describe_step(config: Config, spec: AlgorithmSpec | EvolutionSpec) -> str:
    """What a step gets."""
    prompts, source = f"{config.training.prompts_per_step} prompts", spec.rollout
    if isinstance(source, StoredResponses):
        return f"{prompts} with their stored responses"
    each = f"{prompts} x {source.num_generations} responses of up to {source.max_new_tokens} tokens"
    tried = f"{spec.strategy.population_size + 1} candidates x " if isinstance(spec, EvolutionSpec) else ""
    return tried + each


def _describe_unread_weights(config: Config) -> Iterator[str]:
    for path in dict.fromkeys(path for _, path, _ in model_references(config)):
        yield f"the weights of {path}: {'not read' if is_local_folder(path) else 'not fetched'}"


def _section(name: str, lines: Iterable[str]) -> Iterator[str]:
    for at, line in enumerate(lines):
        yield _line("" if at else name, line)


def _line(name: str, line: str) -> str:
    return f"{name:<10} {line}"
