"""The scorer of a Python function: a reward function of TRL, verl or OpenRLHF, unchanged."""

import copy
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from paretune.data.records import Prompt, Sample
from paretune.reward.failures import CountedScorer
from paretune.reward.function_calls import Attempt, CallThread, describe_error, is_async
from paretune.reward.function_results import RowScores, failed_rows, read_batch, read_number, read_row
from paretune.reward.function_signatures import (
    LABEL_COLUMNS,
    PROMPT_FIELDS,
    STANDARD_ARGUMENTS,
    RewardFunction,
)


@dataclass
class TrainerState:
    """The progress of the training, for functions that read `trainer_state`, as TRL names it."""

    global_step: int = 0
    """Steps that are complete."""
    max_steps: int = 0


@dataclass
class CallLog:
    """What a function logs about one batch."""

    num_rows: int
    columns: dict[str, list[Any]] = field(default_factory=dict)
    """Column -> one value per response."""
    values: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Metric -> its values."""

    def log_extra(self, column: str, values: Any) -> None:
        """Add a column of one value per response."""
        if len(values) != self.num_rows:
            raise ValueError(f'log_extra("{column}"): {len(values)} values for {self.num_rows} responses')
        self.columns[str(column)] = list(values)

    def log_metric(self, name: str, value: Any) -> None:
        """Add a number; numbers of one name are averaged."""
        number, _ = read_number(value)
        if math.isnan(number):
            raise ValueError(f'log_metric("{name}"): expected a finite number, not {_shorten(value)}')
        self.values[str(name)].append(number)

    @property
    def metrics(self) -> dict[str, float]:
        """The mean of each metric."""
        return {name: sum(values) / len(values) for name, values in self.values.items()}


def join_messages(prompt: Prompt) -> str:
    """The contents of the messages, one per line: the text of a prompt for a model without chat template."""
    return "\n".join(message.content for message in prompt.messages)


@dataclass
class PythonScorer(CountedScorer):
    """Scores responses by a Python function.

    A call that raises, or returns something else than it should, leaves all its responses unscored: one call
    of `trl` and `openrlhf` scores a batch, and may compare its responses, so it is not repeated for single
    responses. One call of `verl` scores one response.

    The function gets copies: it may change its arguments. It runs in a thread of its own (see
    `function_calls.CallThread`). It can be pickled: another process loads the function again.
    """

    function: RewardFunction
    names: tuple[str, ...]
    """The objectives that one call scores."""
    input: Literal["messages", "text"] = "messages"
    """Prompts and completions of `trl` as lists of messages, or as text."""
    timeout: float | None = 60.0
    """Seconds per call; None: no limit, and the call is made in the calling thread."""
    prompt_text: Callable[[Prompt], str] = join_messages
    """The text of a prompt."""
    tokenize: Callable[[str], Sequence[int]] | None = None
    """Token ids of a response that was not sampled here; None: it has no `completion_ids`."""
    trainer_state: TrainerState = field(default_factory=TrainerState)
    _thread: CallThread = field(default_factory=CallThread, repr=False)
    _log: CallLog = field(default_factory=lambda: CallLog(0), repr=False)

    @property
    def metrics(self) -> Mapping[str, float]:
        """What the function logged by `log_metric`, or in OpenRLHF's `extra_logs`, in the last batch."""
        return self._log.metrics

    @property
    def extra_columns(self) -> Mapping[str, Sequence[Any]]:
        """What the function logged by `log_extra` in the last batch: column -> one value per response."""
        return self._log.columns

    @property
    def identity(self) -> str:
        """Of the code alone, all its files included: the same for every spelling and for any arguments."""
        return f"{self.function.name} sha256:{self.function.hash}"

    def set_progress(self, step: int, max_steps: int) -> None:
        """Called before each step: what functions read as `trainer_state`."""
        self.trainer_state = TrainerState(step, max_steps)

    def provenance_files(self) -> Sequence[Path]:
        """The files that it rests on, as far as they are known."""
        return self.function.files

    def __call__(self, samples: Sequence[Sample]) -> Float[Tensor, "B k"]:
        """One row per sample, one column per objective; NaN: not scored."""
        log = CallLog(len(samples))
        rows = self._rows(samples, log) if samples else []
        self.failures.num_responses += len(samples)
        self.failures.reasons.update(row.failure for row in rows if row.failure)
        self._log = log
        return torch.tensor([row.scores for row in rows]).reshape(len(samples), len(self.names))

    def _rows(self, samples: Sequence[Sample], log: CallLog) -> list[RowScores]:
        function = self.function
        if function.signature == "verl":
            calls = [self._verl_call(sample) for sample in samples]
        elif function.signature == "openrlhf":
            calls = [self._openrlhf_call(samples)]
        else:
            calls = [self._trl_call(samples, log)]
        attempts = self._thread.attempt_all(calls, self.timeout, concurrent=is_async(function.function))
        if function.signature == "verl":
            return [row for attempt in attempts for row in self._read(self._read_row, attempt, log, 1)]
        return self._read(self._read_batch, attempts[0], log, len(samples))

    def _read(
        self,
        read: Callable[[Attempt, CallLog], list[RowScores]],
        attempt: Attempt,
        log: CallLog,
        num_rows: int,
    ) -> list[RowScores]:
        """What was returned, which may be an object of a class that fails when it is read."""
        with Attempt() as reading:
            reading.value = read(attempt, log)
        if reading.error is None:
            rows: list[RowScores] = reading.value
            return rows
        reason = f"returned what cannot be read: {describe_error(reading.error, self.function.source)}"
        return failed_rows(reason, num_rows, len(self.names))

    def _read_batch(self, attempt: Attempt, log: CallLog) -> list[RowScores]:
        num_rows, num_objectives = log.num_rows, len(self.names)
        if attempt.error is not None:
            reason = describe_error(attempt.error, self.function.source)
            takes_messages = self.function.signature == "trl" and self.input == "messages"
            if takes_messages and _reads_message_as_text(attempt.error):
                reason = f"{reason}; {_MESSAGES_HINT}"
            return failed_rows(reason, num_rows, num_objectives)
        value = attempt.value
        if self.function.signature == "openrlhf" and isinstance(value, Mapping):
            extra_logs = value.get("extra_logs")
            for name, values in (extra_logs if isinstance(extra_logs, Mapping) else {}).items():
                _log_mean(log, name, values)
        return read_batch(value, self.names, num_rows)

    def _read_row(self, attempt: Attempt, log: CallLog) -> list[RowScores]:
        if attempt.error is not None:
            return failed_rows(describe_error(attempt.error, self.function.source), 1, len(self.names))
        if isinstance(attempt.value, Mapping):
            for name, value in attempt.value.items():
                if name not in (*self.names, "score"):
                    _log_mean(log, name, value)
        return [read_row(attempt.value, self.names)]

    def _trl_call(self, samples: Sequence[Sample], log: CallLog) -> Callable[[], Any]:
        as_messages = self.input == "messages"
        arguments = {
            **columns_of(samples, self.function.accepts),
            **copy.deepcopy(dict(self.function.arguments)),
            "prompts": [_messages(s.prompt) if as_messages else self.prompt_text(s.prompt) for s in samples],
            "completions": [
                [{"role": "assistant", "content": s.response}] if as_messages else s.response for s in samples
            ],
            "trainer_state": replace(self.trainer_state),
            "log_extra": log.log_extra,
            "log_metric": log.log_metric,
        }
        ids = [self._token_ids(sample) for sample in samples]
        if None not in ids:
            arguments["completion_ids"] = ids
        elif "completion_ids" in self.function.required:
            return _raise_no_ids
        accepted = self.function.accepted(arguments)
        return lambda: self.function.function(**accepted)

    def _token_ids(self, sample: Sample) -> list[int] | None:
        if sample.response_ids or not sample.full_response:
            return list(sample.response_ids)
        return None if self.tokenize is None else list(self.tokenize(sample.full_response))

    def _verl_call(self, sample: Sample) -> Callable[[], Any]:
        columns = sample.prompt.columns
        reward_model = columns.get("reward_model")
        source = reward_model if isinstance(reward_model, Mapping) else columns
        arguments: dict[str, Any] = {
            "data_source": columns.get("data_source"),
            "solution_str": sample.response,
            "ground_truth": source.get("ground_truth"),
            "extra_info": columns.get("extra_info") or {},
            **self.function.arguments,
        }
        accepted = copy.deepcopy(self.function.accepted(arguments))
        return lambda: self.function.function(**accepted)

    def _openrlhf_call(self, samples: Sequence[Sample]) -> Callable[[], Any]:
        prompts = [self.prompt_text(sample.prompt) for sample in samples]
        queries = [prompt + sample.response for prompt, sample in zip(prompts, samples, strict=True)]
        columns = columns_of(samples, LABEL_COLUMNS.__contains__)
        labels = next((columns[name] for name in LABEL_COLUMNS if name in columns), [None] * len(samples))
        further = copy.deepcopy(dict(self.function.arguments))
        standard = STANDARD_ARGUMENTS["openrlhf"]
        if all(name in self.function.parameters for name in standard):
            named = dict(zip(standard, (queries, prompts, labels), strict=True))
            return lambda: self.function.function(**named, **further)
        return lambda: self.function.function(queries, prompts, labels, **further)


def columns_of(samples: Sequence[Sample], is_needed: Callable[[str], bool]) -> dict[str, list[Any]]:
    """Copies of further columns of the prompts: name -> one value per sample, None where it has none."""
    columns = {name: [getattr(sample.prompt, name) for sample in samples] for name in PROMPT_FIELDS}
    for name in dict.fromkeys(name for sample in samples for name in sample.prompt.columns):
        columns[name] = [sample.prompt.columns.get(name) for sample in samples]
    # One copy per row: rows of a group share their prompt, and must not share what a function may change.
    return {
        name: [copy.deepcopy(value) for value in values]
        for name, values in columns.items()
        if is_needed(name)
    }


def _messages(prompt: Prompt) -> list[dict[str, Any]]:
    return [
        {
            "role": message.role,
            "content": message.content,
            **{key: json.loads(text) for key, text in message.extra},
        }
        for message in prompt.messages
    ]


_MESSAGES_HINT = "completions are lists of messages here: completion[0]['content'], or input: text"
_LIST_OR_DICT = re.compile(r"\b(list|dict)\b")


def _reads_message_as_text(error: BaseException) -> bool:
    """Whether an error is one of code that takes a list of messages, or a message, for a text."""
    if isinstance(error, AttributeError):
        return isinstance(error.obj, list | dict)
    return isinstance(error, TypeError) and bool(_LIST_OR_DICT.search(str(error)))


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _raise_no_ids() -> Any:
    raise ValueError("the responses have no token ids, since they were not sampled here")


def _log_mean(log: CallLog, name: str, values: Any) -> None:
    """Log the mean of a number, list, tensor or array; anything else is no metric."""
    values = values.tolist() if hasattr(values, "tolist") else values
    entries = values if isinstance(values, list | tuple) else [values]
    numbers = [read_number(entry)[0] for entry in entries]
    finite = [number for number in numbers if not math.isnan(number)]
    if finite:
        log.log_metric(name, sum(finite) / len(finite))
