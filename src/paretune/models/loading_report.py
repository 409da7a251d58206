"""What transformers would do with the weights of a file: which are missing, left over, or of another size.

transformers only warns, and would train on a model without some of its layers, or with random weights.
"""

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from paretune.core.errors import DataError
from paretune.core.types import PreTrainedModel
from paretune.models.save import silence_transformers

SAME_CHECKPOINT_FIX = "take config.json and the weights from the same checkpoint"
_OLD_BUFFERS = {"inv_freq", "masked_bias"}
"""Constants that older versions of transformers saved with the weights and that are computed today."""
_LAYER_PATTERN = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class LoadingReport:
    """Differences between the tensors of a checkpoint and the weights of a network."""

    missing: tuple[str, ...]
    """Weights that no file has."""
    unexpected: tuple[str, ...]
    """Tensors that the body of the network has no place for."""
    unused_heads: tuple[str, ...]
    """Tensors of a head for another task, such as the scores of a classifier whose body is the policy."""
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    """Weight, shape in the file, and shape in the network."""

    @classmethod
    def of(cls, network: PreTrainedModel, loaded: Mapping[str, Any]) -> "LoadingReport":
        """From what `from_pretrained(..., output_loading_info=True)` returns."""
        order = {name: i for i, (name, _) in enumerate(network.named_parameters())}
        names = [name for name in loaded["unexpected_keys"] if name.rpartition(".")[2] not in _OLD_BUFFERS]
        mismatched = ((name, tuple(old), tuple(new)) for name, old, new in loaded["mismatched_keys"])
        return cls(
            missing=tuple(sorted(loaded["missing_keys"])),
            unexpected=tuple(sorted(name for name in names if _is_in_body(network, name))),
            unused_heads=tuple(sorted(name for name in names if not _is_in_body(network, name))),
            mismatched=tuple(sorted(mismatched, key=lambda entry: (order.get(entry[0], len(order)), entry))),
        )


def loading_report(network: PreTrainedModel, shapes: Mapping[str, tuple[int, ...]]) -> LoadingReport:
    """What transformers would report for tensors of these names and shapes, without reading any of them.

    Args:
        network: The network on the meta device; it is not changed.
        shapes: Shapes of the stored tensors.
    """
    with silence_transformers(), torch.random.fork_rng(devices=[]):
        _, loaded = type(network).from_pretrained(
            None,
            config=copy.deepcopy(network.config),
            state_dict={name: torch.empty(shape, device="meta") for name, shape in shapes.items()},
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    return LoadingReport.of(network, loaded)


def incompleteness(report: LoadingReport, config: Any) -> tuple[str, str]:
    """What is wrong with weights that are missing or left over, and its fix; ("", "") if nothing is."""
    if report.unexpected:
        count, first = len(report.unexpected), report.unexpected[0]
        problem = f"the file has {count:,} weights that config.json has no place for, the first is {first}"
        layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
        stored = _num_layers(report.unexpected)
        if 0 < layers < stored:
            problem += f": it has {stored} layers, and config.json {layers}"
        return problem, SAME_CHECKPOINT_FIX
    if report.missing:
        count, first = len(report.missing), report.missing[0]
        return f"the file has no values for {count:,} weights, the first is {first}", "use a complete model"
    return "", ""


def require_complete(
    path: str, model: PreTrainedModel, loaded: Mapping[str, Any], allowed_missing_prefixes: Sequence[str] = ()
) -> None:
    """Check what transformers reported when it loaded a model.

    Args:
        path: Folder or hub name, for the message.
        model: The loaded model. Of quantized weights, statistics beside the weights may be left over.
        loaded: Its loading information.
        allowed_missing_prefixes: Name prefixes of weights that may be missing.

    Raises:
        DataError: Weights are missing, or the model has no place for some.
    """
    report = LoadingReport.of(model, loaded)
    missing = tuple(x for x in report.missing if not x.startswith(tuple(allowed_missing_prefixes)))
    unexpected = report.unexpected
    if getattr(model.config, "quantization_config", None):
        modules = {name for name, _ in model.named_modules()}
        unexpected = tuple(name for name in unexpected if name.rpartition(".")[0] not in modules)
    kept = LoadingReport(missing=missing, unexpected=unexpected, unused_heads=(), mismatched=())
    problem, fix = incompleteness(kept, model.config)
    if problem:
        raise DataError(f"{path}: {problem}; fix: {fix}")


def _is_in_body(network: PreTrainedModel, name: str) -> bool:
    """True for a tensor of the body, whose name has a prefix that depends on what it was saved from."""
    body = network.base_model
    first = name.partition(".")[0]
    return body is network or first == network.base_model_prefix or first in dict(body.named_children())


def _num_layers(names: Iterable[str]) -> int:
    numbers = [int(match[1]) for name in names if (match := _LAYER_PATTERN.search(name))]
    return max(numbers, default=-1) + 1
