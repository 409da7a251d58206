"""Checks of models before their weights are loaded: sizes that must fit together, families, quantization.

Uses config.json, the tokenizer, the headers of the safetensors files, and networks on the meta device.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from paretune.config.validate import reward_sections
from paretune.config.yaml import KeyPath
from paretune.core.errors import DataError, MissingDependencyError, ResourceError, WiringError
from paretune.core.types import PreTrainedTokenizerBase
from paretune.experiment.resolved import ResolvedRun
from paretune.models.critic import require_score_head
from paretune.models.families import model_support
from paretune.models.load import load_tokenizer, resolve_device
from paretune.models.loading_report import (
    SAME_CHECKPOINT_FIX,
    LoadingReport,
    incompleteness,
    loading_report,
)
from paretune.models.lora import TaskType, shared_network
from paretune.models.model_limits import max_sequence_length, original_length
from paretune.models.model_store import model_key, read_once
from paretune.models.quantized_checkpoint import quantization_method, require_quantization_backend
from paretune.models.stop_tokens import stop_tokens
from paretune.models.weight_files import require_full_precision, stored_shapes, weight_files
from paretune.rl.algorithm_spec import WeightAverage
from paretune.run.io import read_json

MAX_EXAMPLE_TOKENS = 3
"""Tokens without an embedding that are named; a tokenizer may have thousands."""


@dataclass(frozen=True)
class ModelFiles:
    """One pretrained model of a recipe, as far as it is known without its weights."""

    key: KeyPath
    path: str
    revision: str | None
    config: Any
    """The model configuration."""

    @property
    def role(self) -> str:
        """Section of the recipe: policy, reward or judge."""
        return str(self.key[0])

    @property
    def task(self) -> TaskType:
        """A fitted reward model or judge is a classifier; everything else is loaded as a language model."""
        return "SEQ_CLS" if self.role != "policy" and self.key[1] == "path" else "CAUSAL_LM"

    @property
    def method(self) -> str:
        """Quantization method of the weights; "" if they are not quantized."""
        return quantization_method(self.config)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded on first use."""
        return load_tokenizer(self.path, revision=self.revision)

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the stored tensors; empty for a hub name."""
        return stored_shapes(self.path)

    @cached_property
    def network(self) -> Any:
        """The network without weights.

        Raises:
            ValueError: transformers has none of this family for the task.
        """
        return shared_network(self.config, self.task)

    @cached_property
    def report(self) -> LoadingReport | None:
        """How the stored tensors fit the network.

        None for a hub name, an adapter and packed weights, and if transformers has no such network.

        Raises:
            DataError: A file of weights is damaged.
        """
        shapes = self.shapes
        if self.method or not (Path(self.path).is_dir() and weight_files(self.path)):
            return None
        try:
            network = self.network
        except ValueError:
            return None
        key = ("report", self.task, model_key(self.path, self.revision))
        return read_once(key, lambda: loading_report(network, shapes))

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding according to the configuration."""
        return int(self.config.get_text_config().vocab_size)


def located_error(
    run: ResolvedRun, key: KeyPath, error: ResourceError | MissingDependencyError
) -> ResourceError | MissingDependencyError:
    """The same error with the location of the model's key in front."""
    return type(error)(run.issue(key, str(error)))


def tokens_without_embedding(tokenizer: PreTrainedTokenizerBase, num_embeddings: int) -> list[str]:
    """The tokens of a tokenizer beyond the rows of the embedding, in the order of their ids."""
    ids = sorted(i for i in tokenizer.get_vocab().values() if i >= num_embeddings)
    return [str(token) for token in tokenizer.convert_ids_to_tokens(ids)]


def model_issues(run: ResolvedRun, models: list[ModelFiles]) -> Iterator[str]:
    """One line per model that does not fit together, that is not supported, or that needs what is not here.

    Raises:
        MissingDependencyError: A package that a model needs is missing.
        ResourceError: Quantized weights cannot be loaded on the device of the run.
    """
    for model in models:
        support = model_support(model.config)
        if not support.is_supported:
            problem, _, fix = support.reason.partition("; fix: ")
            yield run.issue(model.key, f"{model.path}: {problem}", fix)
            continue
        issues = list(_special_id_issues(run, model))
        yield from issues
        if issues:  # a network with such ids cannot be built
            continue
        try:
            max_sequence_length(model.config)
            if not model.method:
                require_full_precision(model.path)
            yield from _weight_issues(run, model)
            yield from _head_issues(run, model)
        except DataError as error:
            yield run.issue(model.key, str(error))
            continue
        except ValueError:
            continue  # no such network: reported by the check of the adapter, or on loading
        yield from _quantization_issues(run, model)


def _special_id_issues(run: ResolvedRun, model: ModelFiles) -> Iterator[str]:
    """Padding and stop tokens outside the embedding.

    A padding token that only the tokenizer has is fine: positions of padding are never read.
    """
    rows, text_config = model.vocab_size, model.config.get_text_config()
    pad_id = getattr(text_config, "pad_token_id", None)  # RWKV has no such field
    if pad_id is not None and not -rows <= pad_id < rows:
        where = f"outside the {rows:,} rows of the embedding"
        problem = f"{model.path}: config.json: pad_token_id {pad_id} is {where}"
        yield run.issue(model.key, problem, "write the id of the EOS token there, or resize the embedding")
    # A classifier generates nothing; it is read at a token that its tokenizer puts behind a response.
    generation = {} if model.task == "SEQ_CLS" else _generation_config(model.path)
    sources = {
        "generation_config.json: eos_token_id": generation.get("eos_token_id"),
        "config.json: eos_token_id": text_config.eos_token_id,
        "tokenizer: the id of eos_token": model.tokenizer.eos_token_id,
    }
    if not _ends_responses(model, sources.values()):
        fix = "set eos_token in tokenizer_config.json, or eos_token_id in generation_config.json"
        yield run.issue(model.key, f"{model.path}: no EOS token is defined: responses would have no end", fix)
    for name, value in sources.items():
        for token in value if isinstance(value, list | tuple) else [value]:
            if token is not None and not isinstance(token, int):
                problem = f"{model.path}: {name} is {token!r}, not an integer"
                yield run.issue(model.key, problem, "write the id of the EOS token there")
            elif token is not None and not 0 <= token < rows:
                problem = f"{model.path}: {name} {token} is outside the {rows:,} rows of the embedding"
                yield run.issue(model.key, problem, "correct it, or resize the embedding and save the model")


def _ends_responses(model: ModelFiles, configured: Iterable[object]) -> bool:
    """The model has a token that ends a response, as it is determined when it is loaded."""
    if model.task == "SEQ_CLS":  # one that was fitted here stores its token
        stored = getattr(model.config, "paretune", None) or {}
        return model.tokenizer.eos_token_id is not None or "eos_token_id" in stored
    return any(value is not None for value in configured) or bool(stop_tokens(model.tokenizer, None))


def _generation_config(path: str) -> Mapping[str, Any]:
    return read_json(Path(path) / "generation_config.json") or {}


def _weight_issues(run: ResolvedRun, model: ModelFiles) -> Iterator[str]:
    """Stored weights that do not fit the configuration: of another size, left over, or missing."""
    report = model.report
    if report is None:
        return
    if report.mismatched:
        name, stored, expected = report.mismatched[0]
        count = len(report.mismatched) - 1
        others = f", and {count} more weights differ" if count else ""
        sizes = f"{'x'.join(map(str, stored))} in the file and {'x'.join(map(str, expected))} in config.json"
        fix = (
            f"write vocab_size: {stored[0]} in config.json"
            if stored[0] != expected[0] == model.vocab_size
            else SAME_CHECKPOINT_FIX
        )
        yield run.issue(model.key, f"{model.path}: {name} is {sizes}{others}", fix)
        return
    problem, fix = incompleteness(report, model.config)
    if problem:
        yield run.issue(model.key, f"{model.path}: {problem}", fix)


def _head_issues(run: ResolvedRun, model: ModelFiles) -> Iterator[str]:
    """Families that cannot be a reward model or critic, where the model has to be one."""
    if model.task == "SEQ_CLS":
        network = model.network
    elif _needs_reward_head(run, model.key):
        try:
            network = shared_network(model.config, "SEQ_CLS")
        except ValueError:
            problem = f"transformers has no sequence classifier for {model.config.model_type} models"
            yield run.issue(model.key, problem, "initialize reward models and critics from another family")
            return
    else:
        return
    try:
        require_score_head(network)
    except WiringError as error:
        problem, _, fix = str(error).partition("; fix: ")
        yield run.issue(model.key, problem, fix)


def _needs_reward_head(run: ResolvedRun, key: KeyPath) -> bool:
    """True if a reward model, a judge or a critic is initialized from this language model."""
    if key[0] != "policy":
        return True
    if any(s.path is None and s.init_from == "policy" for _, s in reward_sections(run.config)):
        return True
    return any(spec.critic_init_from == "policy" for spec in run.specs)


def _quantization_issues(run: ResolvedRun, model: ModelFiles) -> Iterator[str]:
    """Quantized weights that would have to be trained, or that no gradient passes through."""
    if not model.method:
        return
    device = resolve_device(run.config.run.device)
    try:
        is_trainable = require_quantization_backend(model.path, model.config, device)
    except (ResourceError, MissingDependencyError) as error:
        raise located_error(run, model.key, error) from error
    owners = list(_full_training_keys(run, model.key))
    for key in owners:
        problem = f"the weights of {model.path} are quantized ({model.method}) and cannot be trained"
        fix = "train an adapter with `lora: {}`, or name the checkpoint in full precision"
        yield run.issue(key, problem, fix)
    if not is_trainable and model.task == "CAUSAL_LM" and not owners:
        problem = f"{model.path}: no gradients pass through weights of the kind {model.method}"
        fix = "name a checkpoint in full precision, or one in bitsandbytes 4 bit"
        yield run.issue(model.key, problem, fix)


def _full_training_keys(run: ResolvedRun, key: KeyPath) -> Iterator[KeyPath]:
    """The keys under which all weights of a language model would be trained or averaged."""
    config = run.config
    for name, section in reward_sections(config):
        from_policy = section.init_from == "policy" and key[0] == "policy"
        if section.path is None and section.lora is None and (from_policy or key == (name, "init_from")):
            yield (name,)
    if key[0] != "policy":
        return
    if config.policy.lora is None and not run.algorithm.gradient_free:
        yield ("policy",)
    if config.policy.sft is not None:
        yield ("policy", "sft")
    if any(isinstance(phase, WeightAverage) for phase in run.algorithm.phases):
        yield ("algorithm", "name")


def model_notes(run: ResolvedRun, models: list[ModelFiles]) -> Iterator[str]:
    """One line per peculiarity of a model that is allowed and that a user should know of."""
    for model in models:
        name, rows = model.role, model.vocab_size
        support = model_support(model.config)
        if support.decoding != "continuous" and name == "policy":
            yield f"{name}: sampled by the slower path ({support.decoding}): {support.reason}"
        if not support.packing:
            yield f"{name}: forward passes are padded and do not share prompts: {support.reason}"
        if len(model.tokenizer) > rows:
            tokens = tokens_without_embedding(model.tokenizer, rows)
            more = ", ..." if len(tokens) > MAX_EXAMPLE_TOKENS else ""
            shown = ", ".join(tokens[:MAX_EXAMPLE_TOKENS]) + more
            yield (
                f"{name}: the tokenizer has {len(model.tokenizer):,} tokens and the embedding {rows:,} rows; "
                f"rows that use {shown} are refused"
            )
        if model.method:
            kept = "frozen, with adapters on top" if model.task == "CAUSAL_LM" else "frozen"
            yield f"{name}: the weights are quantized ({model.method}) and stay {kept}"
        if model.report is not None and model.report.unused_heads:
            yield f"{name}: the file has a head for another task, which is not used: " + ", ".join(
                model.report.unused_heads[:MAX_EXAMPLE_TOKENS]
            )
        yield from _context_notes(model)


def _context_notes(model: ModelFiles) -> Iterator[str]:
    """Contexts that are cut, and sliding windows that are shorter than the context."""
    text_config = model.config.get_text_config()
    context, longest = max_sequence_length(model.config), getattr(text_config, "max_position_embeddings", 0)
    if original_length(model.config) == context < longest:
        yield (
            f"{model.role}: reads {context:,} of the {longest:,} tokens in config.json: beyond them its "
            "positions (longrope) would change with the longest row of a batch"
        )
    window = getattr(text_config, "sliding_window", None)
    layer_types = getattr(text_config, "layer_types", None) or []
    num_layers = len(layer_types) or text_config.num_hidden_layers
    sliding = sum("sliding" in kind for kind in layer_types) if layer_types else num_layers
    if getattr(text_config, "use_sliding_window", True) is False or not window or not sliding:
        return
    if window < context:
        layers = "all layers" if sliding == num_layers else f"{sliding} of {num_layers} layers"
        yield f"{model.role}: {layers} read the last {window:,} tokens only (sliding window)"
