"""Estimates of minutes and memory before a run: operations of its stages, divided by a measured rate."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch

from paretune.config.data_schema import RewardSection, SupervisedTrainingSection
from paretune.config.schema import Config
from paretune.config.validate import WORLD
from paretune.data.records import LazySequence, Prompt
from paretune.experiment.dataset import Dataset
from paretune.experiment.planning import step_workload
from paretune.experiment.resolved import ResolvedRun
from paretune.experiment.scoring_models import (
    Lengths,
    ScoringModel,
    mean_shape,
    model_size,
    scoring_models,
)
from paretune.experiment.settings import resolve_max_tokens_per_pass
from paretune.models.load import resolve_device
from paretune.models.model_size import ModelSize
from paretune.models.throughput import layer_throughput
from paretune.plan.devices import DEVICES, cpu_device
from paretune.plan.memory import MemoryEstimate, estimate_memory, evaluation_memory
from paretune.rl.algorithm_spec import AlgorithmSpec, PretrainPhase
from paretune.rl.evolution.spec import EvolutionSpec

START_SECONDS = 8.0
"""Imports, and reading of the records."""
STAGE_SECONDS = 4.0
"""What a stage does besides its steps: models are built, probed, tested on held-out rows, and saved."""
LOADING_BYTES_PER_SECOND = 5e8
"""Rate at which weights are read and written."""
LENGTH_SAMPLE_SIZE = 100
"""Records whose lengths are measured."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds by stage, and the peak memory."""

    seconds: Mapping[str, float]
    memory: MemoryEstimate
    device: str

    @property
    def total_seconds(self) -> float:
        """Of the whole run."""
        return sum(self.seconds.values())


def estimate_run(run: ResolvedRun, dataset: Dataset) -> Estimate | None:
    """Minutes and memory of a run on this machine; None if its models or its device are not known.

    The rate is that of a layer of the policy's width, measured here for a fraction of a second.
    """
    config = run.config
    if config.run.device == "cuda" and not torch.cuda.is_available():
        return None
    device = resolve_device(config.run.device)
    size = model_size(config, None)
    if size is None:
        return None
    policy = size.with_lora(None if config.policy.lora is None else config.policy.lora.r)
    scorers = list(scoring_models(config, device))
    step_rows = rows_per_step(config, run.algorithm)
    tokens_per_pass = resolve_max_tokens_per_pass(config.training.max_tokens_per_pass, config.run.device)
    update_rate = layer_throughput(policy.width, policy.ffn_width, tokens_per_pass, device)
    decode_rate = layer_throughput(policy.width, policy.ffn_width, step_rows, device)
    rates = _Rates(update=update_rate, decode=decode_rate)
    stages = {
        name: seconds
        for name, seconds in (
            ("fine-tuning", _sft_seconds(config, dataset, policy, rates)),
            *((name, _fit_seconds(config, dataset, name, rates)) for name in ("reward", "judge")),
            ("training", _alignment_seconds(run, dataset, policy, scorers, rates)),
            ("evaluations during it", _step_evaluation_seconds(run, dataset, policy, scorers, rates)),
            ("evaluation", _evaluation_seconds(run, dataset, policy, scorers, rates)),
        )
        if seconds
    }
    return Estimate(
        seconds={"start and loading": _loading_seconds(config, policy, scorers, len(stages)), **stages},
        memory=_memory(run, policy, scorers, sampled_lengths(run, dataset), tokens_per_pass, device),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
    )


@dataclass(frozen=True)
class _Rates:
    """Floating-point operations per second."""

    update: float
    """Of passes over many tokens."""
    decode: float
    """Of sampling, one token of every response at a time."""


def _loading_seconds(
    config: Config, policy: ModelSize, scorers: Sequence[ScoringModel], num_stages: int
) -> float:
    """Start of the process, and what every stage does with its models; most of a short run."""
    if config.policy.path == WORLD:  # its models are drawn or made in a moment
        return START_SECONDS
    weight_bytes = 2 if config.policy.dtype == "bfloat16" else 4
    num_bytes = policy.num_params * weight_bytes + sum(each.num_bytes for each in scorers if each.in_training)
    return START_SECONDS + num_stages * (STAGE_SECONDS + num_bytes / LOADING_BYTES_PER_SECOND)


def _sft_seconds(config: Config, dataset: Dataset, policy: ModelSize, rates: _Rates) -> float:
    sft = config.policy.sft
    if sft is None or not dataset.sft_demonstrations:
        return 0.0
    lengths = _row_lengths(config, _response_rows(dataset))
    full = replace(policy, flops=policy.with_lora(None).flops)
    return _supervised_seconds(sft, len(dataset.sft_demonstrations), lengths, full, rates)


def _fit_seconds(config: Config, dataset: Dataset, name: str, rates: _Rates) -> float:
    section, data = getattr(config, name), getattr(dataset, name)
    if not isinstance(section, RewardSection) or data is None or not data.train:
        return 0.0
    size = model_size(config, section)
    if size is None:
        return math.nan
    size = size.with_lora(None if section.lora is None else section.lora.r)
    lengths = _row_lengths(config, data.train)
    return _supervised_seconds(section.training, len(data.train), lengths, size.as_classifier(), rates)


def _supervised_seconds(
    section: SupervisedTrainingSection, num_rows: int, lengths: Lengths, model: ModelSize, rates: _Rates
) -> float:
    shape = mean_shape(1, lengths.prompt + lengths.response, 0, 0.0, lengths.response)
    return section.num_train_epochs * num_rows * model.flops.forward_backward(shape) / rates.update


def _alignment_seconds(
    run: ResolvedRun, dataset: Dataset, policy: ModelSize, scorers: Sequence[ScoringModel], rates: _Rates
) -> float:
    config, spec = run.config, run.algorithm
    lengths = sampled_lengths(run, dataset)
    seconds = config.run.max_steps * _step_seconds(config, spec, policy, scorers, lengths, rates)
    for phase in spec.phases:
        if isinstance(phase, PretrainPhase):
            seconds += phase.max_steps * _step_seconds(config, phase.spec, policy, scorers, lengths, rates)
    return seconds


def _step_seconds(
    config: Config,
    spec: AlgorithmSpec | EvolutionSpec,
    policy: ModelSize,
    scorers: Sequence[ScoringModel],
    lengths: Lengths,
    rates: _Rates,
) -> float:
    prompts, rows = config.training.prompts_per_step, rows_per_step(config, spec)
    shape = mean_shape(prompts, lengths.prompt, rows, lengths.response, rows * lengths.response)
    forward = policy.flops.forward(shape)
    seconds = 0.0
    if spec.rollout.generates:
        seconds += forward / rates.decode
        for scorer in scorers:
            if scorer.in_training:
                seconds += scorer.seconds(prompts, rows, lengths, rates.update)
    if isinstance(spec, EvolutionSpec):
        return seconds
    num_models = 2 if spec.uses_critic else 1
    update = policy.flops.forward_backward(shape) * num_models * spec.num_iterations
    return seconds + (len(spec.model_passes) * forward + update) / rates.update


def _evaluation_seconds(
    run: ResolvedRun, dataset: Dataset, policy: ModelSize, scorers: Sequence[ScoringModel], rates: _Rates
) -> float:
    lengths, num_prompts = sampled_lengths(run, dataset, test=True), len(dataset.test_prompts)
    sampling, scoring, reading = _arm_seconds(run, num_prompts, lengths, policy, scorers, rates)
    # Both policies answer and are scored; the divergence between them takes one more pass of each.
    return 2 * (sampling + scoring + reading)


def _step_evaluation_seconds(
    run: ResolvedRun, dataset: Dataset, policy: ModelSize, scorers: Sequence[ScoringModel], rates: _Rates
) -> float:
    """The initial policy answers once, and is scored with the trained one in every evaluation."""
    num_evaluations, num_prompts = run.config.num_step_evaluations, len(dataset.validation_prompts)
    if not num_evaluations:
        return 0.0
    lengths = sampled_lengths(run, dataset, test=True)
    sampling, scoring, reading = _arm_seconds(run, num_prompts, lengths, policy, scorers, rates)
    return (num_evaluations + 1) * sampling + num_evaluations * (2 * scoring + reading)


def _arm_seconds(
    run: ResolvedRun,
    num_prompts: int,
    lengths: Lengths,
    policy: ModelSize,
    scorers: Sequence[ScoringModel],
    rates: _Rates,
) -> tuple[float, float, float]:
    """Sampling of the responses of one policy, their scores, and one pass that reads them."""
    rows = num_prompts * run.config.evaluate.num_generations
    shape = mean_shape(num_prompts, lengths.prompt, rows, lengths.response, rows * lengths.response)
    forward = policy.flops.forward(shape)
    scoring = sum((each.seconds(num_prompts, rows, lengths, rates.update) for each in scorers), 0.0)
    return forward / rates.decode, scoring, forward / rates.update


def rows_per_step(config: Config, spec: AlgorithmSpec | EvolutionSpec) -> int:
    """Responses of a step; of stored ones two per prompt are assumed."""
    generations = getattr(spec.rollout, "num_generations", None) or 2
    return config.training.prompts_per_step * generations * spec.candidates_per_step


def sampled_lengths(run: ResolvedRun, dataset: Dataset, *, test: bool = False) -> Lengths:
    """Lengths of prompts and of responses to them: as long as those in the data, up to the limit."""
    config = run.config
    limit = int(config.algorithm.arguments.get("max_new_tokens", 256))
    if test:
        limit = config.evaluate.max_new_tokens or limit
    prompts = [prompt for pool in dataset.train_prompts.values() for prompt in pool]
    chosen: Sequence[Prompt] = dataset.test_prompts if test or not prompts else prompts
    lengths = [_num_tokens(config, prompt.messages[-1].content) for prompt in _spread(chosen)]
    rows = _response_rows(dataset)
    known = _row_lengths(config, rows).response if rows else limit
    return Lengths(prompt=_mean(lengths), response=float(min(limit, known)))


def _response_rows(dataset: Dataset) -> Sequence[object]:
    """Records with responses such as the policy's; of generated ones those that are read anyway."""
    reward = dataset.reward.train if dataset.reward is not None else ()
    demonstrations = dataset.sft_demonstrations
    return reward or demonstrations if isinstance(demonstrations, LazySequence) else demonstrations or reward


def _row_lengths(config: Config, rows: Sequence[object]) -> Lengths:
    """Mean lengths of prompts and responses; both responses of a pair count."""
    prompts, responses = [], []
    for row in islice(rows, LENGTH_SAMPLE_SIZE):
        texts = [getattr(row, key) for key in ("response", "chosen", "rejected") if hasattr(row, key)]
        responses.append(sum((_num_tokens(config, text) for text in texts), 0.0))
        messages = getattr(row, "prompt").messages  # noqa: B009 - the rows are of several types
        prompts.append(sum((_num_tokens(config, message.content) for message in messages), 0.0) * len(texts))
    return Lengths(prompt=_mean(prompts), response=_mean(responses))


def _num_tokens(config: Config, text: str) -> float:
    """Tokens of a text, roughly: words in the built-in world, else four characters each."""
    return len(text.split()) + 2.0 if config.policy.path == WORLD else len(text) / 4 + 2.0


def _spread(items: Sequence[Prompt]) -> Sequence[Prompt]:
    return items[:: max(len(items) // LENGTH_SAMPLE_SIZE, 1)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _memory(
    run: ResolvedRun,
    policy: ModelSize,
    scorers: Sequence[ScoringModel],
    lengths: Lengths,
    tokens_per_pass: int,
    device: torch.device,
) -> MemoryEstimate:
    """Peak of the alignment in one process, by the model of `paretune plan`; or of the evaluation.

    The evaluation holds both policies, and models that judge only.
    """
    config = run.config
    training = [each for each in scorers if each.in_training and run.algorithm.rollout.generates]
    if config.num_step_evaluations:  # judges, and the reward model once more, are there in the training too
        training += scorers
    workload = step_workload(
        config,
        run.algorithm,
        run.requirements,
        policy,
        tuple(each.size for each in training if each.size is not None),
        scorer_bytes=float(sum(each.num_bytes for each in training)),
        prompt_tokens=round(lengths.prompt),
        response_tokens=int(config.algorithm.arguments.get("max_new_tokens", 256)),
        max_tokens_per_pass=tokens_per_pass,
    )
    target = cpu_device(1.0, 0.0) if device.type == "cpu" else DEVICES["h200"]
    estimates = (
        estimate_memory(workload, target),
        evaluation_memory(workload, target, float(sum(each.num_bytes for each in scorers))),
    )
    # An unknown part, NaN, must not be hidden by the other estimate.
    return max(estimates, key=lambda each: math.inf if math.isnan(each.peak) else each.peak)


def describe_estimate(estimate: Estimate | None) -> Iterator[str]:
    """Minutes by stage and memory, rounded as the estimate deserves."""
    if estimate is None or any(math.isnan(seconds) for seconds in estimate.seconds.values()):
        yield "not estimated: the models or the device of this run are not known here"
        return
    parts = ", ".join(f"{name} {format_minutes(seconds)}" for name, seconds in estimate.seconds.items())
    # The sum of the parts as they are shown: a reader adds them up.
    total = sum(_rounded_seconds(seconds) for seconds in estimate.seconds.values())
    yield f"about {format_minutes(total)} on this machine's {estimate.device}: {parts}"
    if estimate.seconds.get("evaluation", 0.0) > total / 2:
        yield "more than half of it is the evaluation; a lower evaluate.max_prompts shortens it"


def _rounded_seconds(seconds: float) -> float:
    """The duration that `format_minutes` shows."""
    if seconds < 90:
        return max(_round_digit(seconds), 1.0)
    minutes = seconds / 60
    return 60 * (_round_digit(minutes) if minutes < 90 else 60 * _round_digit(minutes / 60))


def format_minutes(seconds: float) -> str:
    """A duration to one or two digits: "20 s", "3 min", "5 h"."""
    if seconds < 90:
        return f"{max(_round_digit(seconds), 1):g} s"
    minutes = seconds / 60
    return f"{_round_digit(minutes):g} min" if minutes < 90 else f"{_round_digit(minutes / 60):g} h"


def format_gigabytes(num_bytes: float) -> str:
    """An amount of memory to one or two digits."""
    return f"{_round_digit(num_bytes / 1e9):g} GB"


def _round_digit(value: float) -> float:
    """One digit, and two where the first is 1 or 2: 3.4 is 3, 17 is 17, 178 is 180."""
    if value <= 0 or not math.isfinite(value):
        return 0.0
    exponent = math.floor(math.log10(value))
    digits = 1 if value / 10**exponent < 3 else 0
    return float(round(value, digits - exponent)) if value < 10 or exponent > 0 else float(value)
