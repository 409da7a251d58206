"""Recipes from configurations of TRL: every field is mapped to keys, refused, or has no effect here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from paretune.config.other_names import other_name_key
from paretune.config.trl.conversion import Conversion
from paretune.config.trl.fields import DPO, GRPO, REWARD, reasons_without_effect, refused_values
from paretune.config.trl.grpo import convert_grpo
from paretune.config.trl.pairs import convert_dpo, convert_reward
from paretune.config.trl.read import NotLiteral, TrlSource, read_trl, suggestion

CONVERTERS: Mapping[str, Callable[[Conversion], None]] = {
    GRPO: convert_grpo,
    DPO: convert_dpo,
    REWARD: convert_reward,
}
COMPUTED = "is computed by the source, which is not run; write its value into the recipe"


@dataclass(frozen=True)
class TrlConversion:
    """A recipe, and what became of each field; every line is `field value: what`."""

    recipe_yaml: str
    mapped: tuple[str, ...]
    """The keys and values that stand for a field; "default of TRL" for those that the file does not set."""
    refused: tuple[str, ...]
    """What to do instead."""
    without_effect: tuple[str, ...]
    """Why."""
    to_do: tuple[str, ...]
    """What the recipe still lacks."""

    @property
    def text(self) -> str:
        """All of it, for a terminal."""
        parts = (
            ("mapped", self.mapped),
            ("refused", self.refused),
            ("without effect here", self.without_effect),
            ("left to you", self.to_do),
        )
        return "\n".join(
            f"{title} ({len(lines)})\n" + "\n".join(f"  {line}" for line in lines) + "\n"
            for title, lines in parts
            if lines
        )


def convert_trl_config(path: Path, config: str | None = None) -> TrlConversion:
    """The recipe of a configuration file of TRL 1.16.

    Args:
        path: YAML or JSON as for `TrlParser`, or Python source with a call of the configuration, which is
            parsed and never run.
        config: GRPOConfig, DPOConfig or RewardConfig; None: by its fields.

    Raises:
        ConfigError: The file cannot be read, holds no configuration, or a value has the wrong type.
    """
    source = read_trl(path, config)
    conversion = Conversion(source)
    _sort_out(conversion)
    CONVERTERS[source.config](conversion)
    return TrlConversion(
        _recipe_text(conversion),
        tuple(conversion.mapped),
        tuple(conversion.refused),
        tuple(conversion.without_effect),
        tuple(conversion.to_do),
    )


def _sort_out(conversion: Conversion) -> None:
    """Fields without a key: refused, without effect, or unknown."""
    source = conversion.source
    reasons, refusals = reasons_without_effect(source.config), refused_values(source.config)
    for name, value in source.values.items():
        if name == "env":
            conversion.ignore(name, value, "set environment variables in the shell")
        elif name in reasons:
            conversion.ignore(name, value, reasons[name])
        elif name in refusals:
            harmless, instead = refusals[name]
            if isinstance(value, NotLiteral):
                conversion.refuse(name, value, COMPUTED)
            elif value in harmless:
                conversion.ignore(name, value, "as here")
            else:
                conversion.refuse(name, value, instead)
        elif name not in conversion.defaults:
            conversion.refuse(name, value, _unknown(source, name))
        elif isinstance(value, NotLiteral):
            conversion.refuse(name, value, COMPUTED)
    conversion.forget_computed()


def _unknown(source: TrlSource, name: str) -> str:
    near, (_, key) = suggestion(name, source.config), other_name_key((name,), {})
    if name == "**":
        return COMPUTED
    hint = f"; here: {key}" if key else f'; did you mean "{near}"?' if near else ""
    return f"no field of {source.config} in TRL 1.16{hint}"


class _Dumper(yaml.SafeDumper):
    """Writes a value that stands twice in full."""

    def ignore_aliases(self, data: object) -> bool:
        """No anchors."""
        return True


def _recipe_text(conversion: Conversion) -> str:
    source = conversion.source
    head = [f"# From {source.file.name}, a {source.config} of TRL 1.16, by `paretune from-trl`."]
    head += [f"# Refused: {line}" for line in conversion.refused]
    head += [f"# To do: {line}" for line in conversion.to_do]
    body = yaml.dump(conversion.recipe, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return "\n".join([*head, body])
