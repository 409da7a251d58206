"""Default learning rates, for the size of a model and for full training or LoRA.

Sources: InstructGPT trains 1.3 to 175 billion parameters with about 1e-5 (Ouyang et al. 2022, appendix C,
arXiv:2203.02155); TRL's defaults are 1e-6 for GRPO and DPO, 2e-5 for SFT and 1e-4 for reward models, and its
examples use 1e-5 for GRPO with half a billion parameters; the best rate falls with the width of the model,
and LoRA's is about ten times that of full training, in supervised training as in reinforcement learning
(Schulman et al. 2025, "LoRA Without Regret"). No source covers models below 100 million parameters: their
rates are a judgement, the next step of the same rows, and no sweep stands behind them. A run that hardly
moves the policy, or that collapses, says so at the top of its report.
"""

from typing import Any, Literal

from paretune.config import Config
from paretune.config.data_schema import RewardSection
from paretune.config.shipped import DEFAULT_ORIGIN
from paretune.config.validate import WORLD, reward_sections
from paretune.config.yaml import KeyPath, dotted_key
from paretune.core.errors import ParetuneError
from paretune.models.load import load_model_config
from paretune.models.lora import format_count, shared_network
from paretune.worlds import get_world

TrainingKind = Literal["alignment", "supervised"]

LORA_FACTOR = 10.0
"""Rate of LoRA as a multiple of that of full training, with alpha 32 (Schulman et al. 2025)."""
LEARNING_RATES: dict[TrainingKind, tuple[tuple[float, float], ...]] = {
    "alignment": ((1e8, 1e-4), (1e9, 1e-5), (4e9, 3e-6), (float("inf"), 1e-6)),
    "supervised": ((1e8, 3e-4), (1e9, 5e-5), (4e9, 2e-5), (float("inf"), 1e-5)),
}
"""Rows (number of parameters, rate of full training of a model with fewer)."""


def default_learning_rate(kind: TrainingKind, num_parameters: int, *, lora: bool) -> float:
    """The learning rate of a model of this size.

    Args:
        kind: Alignment on rewards, or supervised training (SFT, reward models, judges).
        num_parameters: Parameters of the whole model, frozen ones included.
        lora: An adapter is trained, and not all weights.
    """
    rate = next(rate for limit, rate in LEARNING_RATES[kind] if num_parameters < limit)
    # Rounded, so that 3e-6 becomes 3e-05 and not 2.9999999999999997e-05.
    return float(f"{rate * LORA_FACTOR:.2g}") if lora else rate


def fill_learning_rates(config: Config, *, gradient_free: bool) -> tuple[Config, tuple[str, ...]]:
    """The config with every learning rate that the recipe leaves out, and one line for each.

    A rate stays null if the model's configuration cannot be read: the check of the models reports that.

    Args:
        config: A valid config.
        gradient_free: The algorithm trains no weights but those of an adapter, on demonstrations.
    """
    origins, notes = dict(config._origins), []
    sizes: dict[tuple[str, str | None], int | None] = {}
    for path, kind, lora in _training_sections(config, gradient_free):
        if _section_at(config, path).learning_rate is not None:
            continue
        model = _trained_model(config, path)
        if model not in sizes:
            sizes[model] = _num_parameters(*model)
        size = sizes[model]
        if size is None:
            continue
        rate = default_learning_rate(kind, size, lora=lora)
        reason = f"for {'LoRA on' if lora else 'all weights of'} {format_count(size)} parameters"
        config = _with_rate(config, path, rate)
        key_path: KeyPath = (*path, "learning_rate")
        origins[key_path] = f"{DEFAULT_ORIGIN}{reason}"
        notes.append(f"{dotted_key(key_path)}: {rate:g}, the default {reason}")
    if notes:
        config._origins = origins
    return config, tuple(notes)


def unresolved_learning_rates(config: Config, *, gradient_free: bool) -> list[KeyPath]:
    """Keys of the learning rates that are used and still null."""
    return [
        (*path, "learning_rate")
        for path, _, _ in _training_sections(config, gradient_free)
        if _section_at(config, path).learning_rate is None
    ]


def _training_sections(config: Config, gradient_free: bool) -> list[tuple[KeyPath, TrainingKind, bool]]:
    """Every section with a learning rate that is used: its path, the kind of training, True with LoRA."""
    # A gradient-free algorithm uses the rate to fit its adapter to demonstrations.
    kind: TrainingKind = "supervised" if gradient_free else "alignment"
    sections: list[tuple[KeyPath, TrainingKind, bool]] = [
        (("training",), kind, gradient_free or config.policy.lora is not None)
    ]
    if config.policy.sft is not None:
        sections.append((("policy", "sft"), "supervised", False))
    for name, section in reward_sections(config):
        if section.path is None:
            sections.append(((name, "training"), "supervised", section.lora is not None))
    return sections


def _section_at(config: Config, path: KeyPath) -> Any:
    section: Any = config
    for key in path:
        section = getattr(section, str(key))
    return section


def _with_rate(config: Config, path: KeyPath, rate: float) -> Config:
    """A copy of the config with this learning rate in the section at `path`."""
    value: Any = _section_at(config, path).model_copy(update={"learning_rate": rate})
    for depth in range(len(path) - 1, -1, -1):
        value = _section_at(config, path[:depth]).model_copy(update={str(path[depth]): value})
    assert isinstance(value, Config)
    return value


def _trained_model(config: Config, path: KeyPath) -> tuple[str, str | None]:
    """Folder or hub name, and revision, of the model that a section trains."""
    section = getattr(config, str(path[0]))
    if isinstance(section, RewardSection) and section.init_from != "policy":
        return section.init_from, section.revision
    return config.policy.path, config.policy.revision


def _num_parameters(path: str, revision: str | None) -> int | None:
    """Parameters of a model, from its configuration alone; tied weights count once. None: it has none."""
    try:
        if path == WORLD:
            world = get_world()
            model_config = world.policy_config(len(world.tokenizer()))
        else:
            model_config = load_model_config(path, revision=revision)
        return sum(p.numel() for p in shared_network(model_config, "CAUSAL_LM").parameters())
    except (ParetuneError, ValueError, AssertionError):
        return None
