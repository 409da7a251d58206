"""Dry run of `paretune check`, and of every run before its first stage: all that works without weights."""

from collections.abc import Iterable, Iterator

from paretune.config import Config
from paretune.config.requirements import budget_warnings
from paretune.config.validate import reward_sections
from paretune.core.errors import ConfigError, DataError, WiringError
from paretune.experiment.data import ProgressCallback, load_data
from paretune.experiment.dataset import Dataset, RewardData, prompt_stream
from paretune.experiment.preflight import check_memory_options, hub_model_notes, model_references
from paretune.experiment.resolved import ResolvedRun, resolve
from paretune.models.load import is_local_folder
from paretune.rl.algorithm_spec import LABEL_WIDTH, AlgorithmSpec, PretrainPhase
from paretune.rl.evolution.spec import EvolutionSpec

NO_JUDGE_NOTE = "the reward model judges itself, so no gain will be called better"


def check(config: Config) -> str:
    """Check everything that needs no weights, and describe the run; writes nothing.

    Raises:
        ParetuneError: One line per error of the recipe, of the models' configurations and of the rows.
    """
    run = resolve(config)
    dataset = check_and_load_data(run)
    if config.run.device != "cuda":  # with an explicit cuda, the recipe may be meant for another machine
        check_memory_options(run)
    return "\n".join(describe_run(run, dataset))


def check_and_load_data(
    run: ResolvedRun, on_progress: ProgressCallback = lambda done, total, note: None
) -> Dataset:
    """Dry-run the algorithm on a small fake batch and read all records; errors of both are raised together.

    Raises:
        ParetuneError: As `check`.
    """
    try:
        _ = run.requirements  # the dry run
    except WiringError as wiring:
        try:
            load_data(run, on_progress)
        except (ConfigError, DataError) as error:
            raise ConfigError(f"{wiring}\n{error}") from error
        raise
    return load_data(run, on_progress)


def describe_run(run: ResolvedRun, dataset: Dataset) -> list[str]:
    """Counts of records, exclusions, the parts of the algorithm, the workload, and what was not checked."""
    config, roles = run.config, run.requirements.frozen_roles
    num_stored = len(dataset.stored_responses)
    return [
        f"{config.name}: ok",
        *_section("prompts", [describe_prompts(dataset)]),
        *_section("", _describe_unsampled_pools(config, dataset)),
        *_section("stored", [f"responses to {num_stored:,} prompts"] if num_stored else []),
        *_section("policy", [_describe_policy(config, dataset)]),
        *(
            _line(name, _describe_reward_data(section.path, name, dataset))
            for name, section in reward_sections(config)
        ),
        *_section("judge", ["none: " + NO_JUDGE_NOTE] if config.judge is None else []),
        *_section("notes", dataset.exclusions),
        *run.algorithm.describe(),
        *_section("frozen", [", ".join(roles)] if roles else []),
        *_section("size", _describe_workload(run, dataset)),
        *_section("warning", budget_warnings(config, run.algorithm)),
        *_section("hub", hub_model_notes(config)),
        *_section("not checked", [*_describe_unread_weights(config), "whether the memory suffices"]),
    ]


def describe_prompts(dataset: Dataset) -> str:
    """Number of prompts by pool, and of test prompts."""
    pools = ", ".join(f"{len(pool):,} {name}" for name, pool in dataset.train_prompts.items())
    return f"{pools or 'none'}; {len(dataset.test_prompts):,} test"


def _describe_policy(config: Config, dataset: Dataset) -> str:
    count = len(dataset.sft_demonstrations)
    return config.policy.path + (
        f", fine-tuned on {count:,} demonstrations" if count else ", without fine-tuning"
    )


def _describe_reward_data(path: str | None, name: str, dataset: Dataset) -> str:
    rows: RewardData | None = getattr(dataset, name)
    if rows is None:
        return f"{path}, already fitted"
    return f"{len(rows.train):,} training rows, {len(rows.test):,} test rows"


def _describe_unsampled_pools(config: Config, dataset: Dataset) -> Iterator[str]:
    """Pools of which a short run samples no prompt."""
    max_steps, prompts_per_step = config.run.max_steps, config.training.prompts_per_step
    counts = prompt_stream(config, dataset.train_prompts).count_drawn(max_steps)
    for name, count in zip(dataset.train_prompts, counts, strict=True):
        if not count:
            yield f"no prompt of {name} is sampled in {max_steps} steps of {prompts_per_step} prompts"


def _describe_workload(run: ResolvedRun, dataset: Dataset) -> Iterator[str]:
    """Upper bounds of the steps, responses and evaluations."""
    config, spec = run.config, run.algorithm
    for phase in spec.phases:
        if isinstance(phase, PretrainPhase):
            yield f"phase {phase.role}: {phase.max_steps:,} steps x {_describe_step(config, phase.spec)}"
    budget = config.run.budget
    if spec.gradient_free and spec.initial_sigma is None:
        yield "some candidates first, to calibrate the step size"
    end = f", or until {budget.limit:,} {budget.resource} are used" if budget else ""
    yield f"at most {config.run.max_steps:,} steps x {_describe_step(config, spec)}{end}"
    max_new_tokens = config.evaluate.max_new_tokens or int(config.algorithm.arguments["max_new_tokens"])
    responses = len(dataset.test_prompts) * config.evaluate.num_generations
    yield f"then 2 x {responses:,} responses of up to {max_new_tokens} tokens to evaluate"


def _describe_step(config: Config, spec: AlgorithmSpec | EvolutionSpec) -> str:
    """The rollouts of one step."""
    prompts = f"{config.training.prompts_per_step} prompts"
    if not spec.rollout.generates:
        return f"{prompts} with their {spec.rollout.describe()}"
    candidates = f"{spec.candidates_per_step} candidates x " if spec.gradient_free else ""
    return f"{candidates}{prompts} x {spec.rollout.describe()}"


def _describe_unread_weights(config: Config) -> Iterator[str]:
    for path in dict.fromkeys(path for _, path, _ in model_references(config)):
        yield f"the weights of {path}: {'not read' if is_local_folder(path) else 'not downloaded'}"


def _section(label: str, lines: Iterable[str]) -> Iterator[str]:
    for index, line in enumerate(lines):
        yield _line("" if index else label, line)


def _line(label: str, line: str) -> str:
    return f"{label:<{LABEL_WIDTH}} {line}"
