"""Description of a run before it starts, for `paretune check`: sentences of at most 80 columns."""

import inspect
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from textwrap import wrap

import psutil
import torch

from paretune.algorithms.lookup import find_algorithm
from paretune.config import Config
from paretune.config.build import SELF_NORMALIZING
from paretune.config.data_schema import RewardSection
from paretune.config.requirements import budget_warnings
from paretune.config.scorers import objective_columns, scorer_objectives, scorer_sections
from paretune.config.validate import WORLD, reward_sections
from paretune.core.goals import HIGHER
from paretune.data.raters import LabelSummary
from paretune.data.records import Prompt
from paretune.experiment.chat_templates import policy_stop_tokens
from paretune.experiment.dataset import Dataset, RewardData, prompt_stream
from paretune.experiment.estimates import Estimate, describe_estimate, format_gigabytes
from paretune.experiment.evaluation_checks import describe_step_evaluations, evaluation_notes
from paretune.experiment.label_settings import (
    fallback_warnings,
    training_label_statistics,
)
from paretune.experiment.label_summary import (
    LabelStatistics,
    describe_labels,
    label_statistics,
    label_warnings,
    spread_shares,
)
from paretune.experiment.output_folder import other_run_warnings
from paretune.experiment.preflight import hub_model_notes, model_descriptions, model_references
from paretune.experiment.provenance import dataset_warnings
from paretune.experiment.readability import PromptReading
from paretune.experiment.request_estimates import request_estimates
from paretune.experiment.resolved import ResolvedRun
from paretune.experiment.scorers import describe_scorer
from paretune.models.load import is_local_folder
from paretune.report.plan_page import component_summary
from paretune.rl.algorithm_spec import AlgorithmSpec, PretrainPhase
from paretune.rl.evolution.spec import EvolutionSpec

LINE_WIDTH = 80
LABEL_COLUMNS = 12
NO_JUDGE_NOTE = "the training reward judges itself, so no gain will be called better"
DWARFED_RATIO = 0.05
"""An objective with less of the spread than this fraction of another's has no say."""


def describe_run(
    recipe: ResolvedRun,
    run: ResolvedRun,
    dataset: Dataset,
    readings: Sequence[PromptReading],
    estimate: Estimate | None,
) -> list[str]:
    """Records, labels, objectives, workload, time and memory, then warnings and what was not checked.

    Args:
        recipe: The run as the recipe has it.
        run: The run with the settings that follow from the labels.
        dataset: All records.
        readings: The prompts as scorers with a context of their own read them.
        estimate: Minutes and memory; None if not known.
    """
    config, spec = recipe.config, run.algorithm
    labels = training_label_statistics(
        config, dataset, tuple(config.objectives), generates=spec.rollout.generates
    )
    fitted = _fitted_labels(config, dataset)
    num_stored = len(dataset.stored_responses)
    requests = request_estimates(run, dataset)
    return [
        f"{config.name}: ok",
        *_section("prompts", [f"{describe_prompts(dataset)}", *_unsampled_pools(config, dataset)]),
        *_section("stored", [f"responses to {num_stored:,} prompts"] if num_stored else []),
        *_section("policy", [_describe_policy(config, dataset), *model_descriptions(recipe)]),
        *_section("stops", policy_stop_tokens(config)),
        *(
            line
            for name, section in reward_sections(config)
            for line in _describe_reward(section, name, dataset, fitted)
        ),
        *_section("scorers", _describe_typed(config, "scorers")),
        *_section("judge", _describe_other_judge(config)),
        *_section("judges", _describe_typed(config, "judges")),
        *_section("pairwise", _describe_pairwise(config)),
        *_section("objectives", _describe_objectives(config, labels)),
        *_section("gates", _describe_gates(config, run.config)),
        *_section("method", _describe_method(config)),
        *_section("training", _describe_training(run)),
        *_section("evaluation", _describe_evaluation(config, dataset)),
        *_section("requests", [each.describe() for each in requests]),
        *_section("time", describe_estimate(estimate)),
        *_section("memory", _describe_memory(estimate)),
        *_section("notes", [*dataset.notes, *summarize_exclusions(dataset.exclusions)]),
        *_section("hub", hub_model_notes(config)),
        *_section(
            "warning",
            [
                *dataset_warnings(recipe, dataset),
                *evaluation_notes(config, dataset),
                *_warnings(config, run, labels, fitted, readings, estimate),
                *(text for each in requests for text in each.warnings()),
                *other_run_warnings(recipe),
            ],
        ),
        *_section("not checked", _describe_unchecked(config, estimate)),
    ]


def describe_prompts(dataset: Dataset) -> str:
    """Number of prompts by pool, and of test prompts; of different ones too, where some are repeated."""
    pools = ", ".join(_count_prompts(name, pool) for name, pool in dataset.train_prompts.items())
    return f"{pools or 'none'}; {_count_prompts('test', dataset.test_prompts)}"


def _count_prompts(name: str, pool: Sequence[Prompt]) -> str:
    num_different = len({prompt.messages for prompt in pool})
    if num_different == len(pool):
        return f"{len(pool):,} {name}"
    return f"{len(pool):,} {name} ({num_different:,} different)"


def summarize_exclusions(lines: Sequence[str]) -> Iterator[str]:
    """One line per kind of exclusion, with the number of rows and the largest as the example."""
    kinds: dict[str, list[tuple[int, str]]] = {}
    for line in lines:
        number, rest = line.split(" ", 1)
        _, _, reason = line.partition(": ")
        kind = re.sub(r"[\d,]+", "", reason)
        kinds.setdefault(kind, []).append((int(number.replace(",", "")), rest))
    for items in kinds.values():
        count, rest = max(items, key=lambda item: item[0])
        if len(items) == 1:
            yield f"{count:,} {rest}"
        else:
            total = sum(each for each, _ in items)
            yield f"{total:,} rows of {len(items)} sources excluded, such as {count:,} {rest}"


def _unsampled_pools(config: Config, dataset: Dataset) -> Iterator[str]:
    """Pools of which a short run samples no prompt."""
    max_steps, prompts_per_step = config.run.max_steps, config.training.prompts_per_step
    counts = prompt_stream(config, dataset.train_prompts).count_drawn(max_steps)
    for name, count in zip(dataset.train_prompts, counts, strict=True):
        if not count:
            yield f"no prompt of {name} is sampled in {max_steps} steps of {prompts_per_step} prompts"


def _describe_policy(config: Config, dataset: Dataset) -> str:
    count = len(dataset.sft_demonstrations)
    name = "the model of the built-in world" if config.policy.path == WORLD else config.policy.path
    return name + (f", fine-tuned on {count:,} demonstrations" if count else ", without fine-tuning")


FittedLabels = Mapping[str, Sequence[tuple[LabelStatistics, Sequence[LabelSummary]]]]
"""Section of a reward model or judge that is fitted -> its labels, with the votes in each of its files."""


def _fitted_labels(config: Config, dataset: Dataset) -> FittedLabels:
    fitted = {}
    for name, section in reward_sections(config):
        data: RewardData | None = getattr(dataset, name)
        if data is not None:
            labels = label_statistics(data.train, tuple(section.objectives))
            fitted[name] = [(s, _vote_summaries(dataset, name, objective)) for objective, s in labels.items()]
    return fitted


def _describe_reward(
    section: RewardSection, name: str, dataset: Dataset, fitted: FittedLabels
) -> Iterator[str]:
    """A reward model or judge, and the labels that it is fitted to."""
    data: RewardData | None = getattr(dataset, name)
    if data is None:
        yield from _section(name, [f"{section.path}, already fitted"])
        return
    yield from _section(name, [f"fitted to {len(data.train):,} rows, tested on {len(data.test):,}"])
    for statistics, votes in fitted[name]:
        yield from _section(f"  {statistics.name}", describe_labels(statistics, votes))


def _vote_summaries(dataset: Dataset, name: str, objective: str) -> list[LabelSummary]:
    """Votes on an objective in the training files of a reward model or judge."""
    sources = [
        summary
        for source, summary in dataset.read_summaries.items()
        if source.startswith(f"{name} ") and not source.startswith(f"{name} test ")
    ]
    return [summary.labels[objective] for summary in sources if objective in summary.labels]


def _describe_typed(config: Config, group: str) -> Iterator[str]:
    """Scorers or judges that have a type, and the objectives that they score."""
    columns = objective_columns(config) if group == "scorers" else {}
    for path, name, section in scorer_sections(config):
        if path[0] == group:
            used = [objective for objective, (scorer, _) in columns.items() if scorer == name]
            scored = used or list(scorer_objectives(name, section) or ())
            yield f"{describe_scorer(name, section)}; scores {', '.join(scored)}"


def _describe_pairwise(config: Config) -> Iterator[str]:
    """Judges that compare the responses before and after, and by what."""
    for name, section in config.evaluate.pairwise.items():
        compared = ", ".join(scorer_objectives(name, section) or ())
        yield f"{describe_scorer(name, section)}; before against after in both orders, by {compared}"


def _describe_other_judge(config: Config) -> Iterator[str]:
    if config.judge is None and not config.judges:
        yield "none: " + NO_JUDGE_NOTE
    elif config.judge == "ground_truth":
        yield "the true scores of the built-in world"


def _describe_objectives(config: Config, labels: Mapping[str, LabelStatistics]) -> Iterator[str]:
    """Weights, and the share of each objective in the spread of the reward."""
    aggregate = config.aggregate.name
    if aggregate != "weighted_sum":
        yield f"{', '.join(config.objectives)}: combined by {aggregate}"
        return
    shares = spread_shares(_spreads(config, labels))
    if config.algorithm.name in SELF_NORMALIZING:
        yield f"weight x score; {config.algorithm.name} first divides each score by its own spread"
    elif shares:
        among = "" if len(shares) == len(config.objectives) else ", among those with labels"
        yield f"weight x score; share of the spread (weight x std of the labels){among}:"
    else:
        yield "weight x score; no labels, so the spread of each is not known"
    width = max(map(len, config.objectives))
    for name, weight in config.final_weights.items():
        share = f"   {100 * shares[name]:3.0f} %" if name in shares else ""
        std = ", normalized by std" * (config.objectives[name].normalize == "std")
        goal = config.goals[name]
        words = "" if goal == HIGHER else f", {goal.words}"
        yield f"{name:<{width}}  weight {weight:g}{std}{words}{share}"


def _spreads(config: Config, labels: Mapping[str, LabelStatistics]) -> dict[str, float]:
    """Objective -> |weight| times the standard deviation of its labels, where there are labels."""
    if config.aggregate.name != "weighted_sum" or config.algorithm.name in SELF_NORMALIZING:
        return {}
    return {
        name: abs(weight) * (1.0 if config.objectives[name].normalize == "std" else labels[name].std)
        for name, weight in config.final_weights.items()
        if name in labels and labels[name].num_labels
    }


def _describe_gates(recipe: Config, config: Config) -> Iterator[str]:
    for name, gated_by, threshold, fallback, *comparison in config.gates:
        stated = recipe.objectives[name].gate_fallback is not None
        source = "as stated" if stated else "its worst label"
        sign = comparison[0] if comparison else ">="
        yield f"{name} counts where {gated_by} {sign} {threshold:g}; elsewhere it is {fallback:g}, {source}"


def _describe_method(config: Config) -> Iterator[str]:
    """The first paragraph of the algorithm's documentation."""
    name = config.algorithm.name
    text = inspect.getdoc(find_algorithm(name)) or ""
    summary = re.sub(r"\s+", " ", text.split("\n\n")[0]).rstrip(".")
    title, _, rest = summary.partition(": ")
    text = rest if rest and _letters(title) == _letters(name) else summary
    yield f"{name}: {text}" if text else name


def _letters(text: str) -> str:
    return re.sub(r"[^a-z]", "", text.lower())


def _describe_training(run: ResolvedRun) -> Iterator[str]:
    """Upper bounds of the steps and responses."""
    config, spec = run.config, run.algorithm
    for phase in spec.phases:
        if isinstance(phase, PretrainPhase):
            yield f"phase {phase.role}: {phase.max_steps:,} steps x {_describe_step(config, phase.spec)}"
    budget = config.run.budget
    if spec.gradient_free and spec.initial_sigma is None:
        yield "some candidates first, to calibrate the step size"
    end = f", or until {budget.limit:,} {budget.resource} are used" if budget else ""
    yield f"at most {config.run.max_steps:,} steps x {_describe_step(config, spec)}{end}"


def _describe_step(config: Config, spec: AlgorithmSpec | EvolutionSpec) -> str:
    """The rollouts of one step."""
    prompts = f"{config.training.prompts_per_step} prompts"
    if not spec.rollout.generates:
        return f"{prompts} with their {spec.rollout.describe()}"
    candidates = f"{spec.candidates_per_step} candidates x " if spec.gradient_free else ""
    return f"{candidates}{prompts} x {spec.rollout.describe()}"


def _describe_evaluation(config: Config, dataset: Dataset) -> Iterator[str]:
    max_new_tokens = config.evaluate.max_new_tokens or int(config.algorithm.arguments["max_new_tokens"])
    responses = len(dataset.test_prompts) * config.evaluate.num_generations
    yield f"2 x {responses:,} responses of up to {max_new_tokens} tokens, before and after"
    if config.num_step_evaluations:
        yield from describe_step_evaluations(config, dataset)


def _describe_memory(estimate: Estimate | None) -> Iterator[str]:
    if estimate is not None:
        parts = ", ".join(component_summary(estimate.memory.components()))
        yield f"about {format_gigabytes(estimate.memory.peak)} at its peak, in GB: {parts}"


def _available_bytes(estimate: Estimate) -> float:
    if estimate.device != "CPU":
        return float(torch.cuda.mem_get_info()[0])
    return float(psutil.virtual_memory().available)


def _warnings(
    config: Config,
    run: ResolvedRun,
    labels: Mapping[str, LabelStatistics],
    fitted: FittedLabels,
    readings: Sequence[PromptReading],
    estimate: Estimate | None,
) -> Iterator[str]:
    yield from budget_warnings(config, run.algorithm)
    yield from (text for reading in readings if (text := reading.describe()))
    yield from fallback_warnings(config, labels)
    yield from _dwarfed_warnings(config, labels)
    for name, labels_of_model in fitted.items():
        owner = "" if name == "reward" else f"{name}: "
        for statistics, votes in labels_of_model:
            yield from (owner + text for text in label_warnings(statistics, votes))
    if estimate is not None and estimate.memory.peak > (available := _available_bytes(estimate)):
        yield (
            f"the run needs about {format_gigabytes(estimate.memory.peak)} of memory, and "
            f"{format_gigabytes(available)} are free; fix: lower training.max_tokens_per_pass, or use "
            "policy.lora"
        )


def _dwarfed_warnings(config: Config, labels: Mapping[str, LabelStatistics]) -> Iterator[str]:
    """Objectives whose weight times spread is nothing beside that of another."""
    spreads = {name: spread for name, spread in _spreads(config, labels).items() if spread > 0}
    if not spreads:
        return
    largest = max(spreads, key=lambda name: spreads[name])
    for name, spread in spreads.items():
        if spread < DWARFED_RATIO * spreads[largest]:
            ratio = spreads[largest] / spread
            yield (
                f"{name} has no say: its weight x std is {spread:.2g}, and that of {largest} {ratio:.0f} "
                f"times as much; fix: write normalize: std in objectives.{name} and objectives.{largest}, "
                "or other weights"
            )


def _describe_unchecked(config: Config, estimate: Estimate | None) -> Iterator[str]:
    for path in dict.fromkeys(path for _, path, _ in model_references(config)):
        yield f"the weights of {path}: {'not read' if is_local_folder(path) else 'not downloaded'}"
    if estimate is None or not math.isfinite(estimate.memory.peak):
        yield "whether the memory suffices"


def _section(label: str, lines: Iterable[str]) -> Iterator[str]:
    """Wrapped lines, with the label in front of the first; nothing without lines."""
    indent = " " * LABEL_COLUMNS
    for index, line in enumerate(lines):
        # Spaces inside a line align columns, and wrapping would not change them in a line that fits.
        wrapped = (
            [line]
            if len(line) <= LINE_WIDTH - LABEL_COLUMNS
            else wrap(
                line,
                LINE_WIDTH - LABEL_COLUMNS,
                subsequent_indent="  ",
                break_long_words=False,
                break_on_hyphens=False,
            )
        )
        if index == 0 and len(label) >= LABEL_COLUMNS:
            yield label
        first = label if index == 0 and len(label) < LABEL_COLUMNS else ""
        for number, text in enumerate(wrapped):
            yield (
                f"{first if number == 0 else '':<{LABEL_COLUMNS}}{text}".rstrip() if first else indent + text
            )
