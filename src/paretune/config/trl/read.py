"""Reads a configuration of TRL from YAML, JSON or Python source. Python is parsed and never run."""

import ast
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from paretune.config.trl.changes import Change, changes_of
from paretune.config.trl.fields import TRAINERS, known_fields
from paretune.config.yaml import MAX_BYTES, parse_yaml, read_text
from paretune.core.errors import ConfigError, format_issue

LOADERS = ("load_dataset",)
"""Functions whose literal arguments name a data set."""


@dataclass(frozen=True)
class NotLiteral:
    """A value that the source computes."""

    code: str


@dataclass
class TrlSource:
    """What a configuration file of TRL sets."""

    file: Path
    config: str
    """GRPOConfig, DPOConfig or RewardConfig."""
    values: dict[str, Any]
    """Field -> value; `NotLiteral` if it is computed."""
    lines: dict[str, int] = field(default_factory=dict)
    reward_functions: list[str] = field(default_factory=list)
    """References to functions, as file.py:name or package.module:name, and paths of reward models."""
    dataset: Mapping[str, Any] | None = None
    """Arguments of `load_dataset`."""
    runs_on_import: bool = False
    """The Python source trains as soon as it is imported."""


def read_trl(path: Path, config: str | None = None) -> TrlSource:
    """The values of a configuration file.

    Args:
        path: A .py file, or YAML or JSON as for `TrlParser`.
        config: GRPOConfig, DPOConfig or RewardConfig; None: by its fields.

    Raises:
        ConfigError: The file cannot be read, or holds none or several configurations.
    """
    text, issue = read_text(path, str(path))
    if issue:
        raise ConfigError(issue)
    if path.suffix == ".py":
        return _read_python(path, text, config)
    # TRL reads its files with PyYAML, for which yes, no, on and off are booleans.
    tree = parse_yaml(_json_as_yaml(path, text), str(path), "name a configuration of TRL", yes_is_true=True)
    if tree.issues:
        raise ConfigError("\n".join(tree.issues))
    values = tree.values
    lines = {key: location.line for (key, *rest), location in _top(tree.locations) if not rest}
    found = config or _config_of(path, values)
    functions = values.get("reward_funcs") or []
    return TrlSource(path, found, values, lines, [_named_function(str(name)) for name in _as_list(functions)])


def _top(locations: Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
    return ((path, location) for path, location in locations.items() if path)


def _json_as_yaml(path: Path, text: str) -> str:
    """JSON as the YAML parser reads it, with the same lines: YAML forbids tabs."""
    if path.suffix != ".json":
        return text
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        problem = f"is not JSON: {error.msg}"
        raise ConfigError(format_issue(path, error.lineno, error.colno, "", problem)) from None
    return text.replace("\t", " ")


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _config_of(path: Path, values: Mapping[str, Any]) -> str:
    """The configuration that knows most of the fields, and is alone in that."""
    counts = {config: sum(name in known_fields(config) for name in values) for config in TRAINERS}
    best = [config for config, count in counts.items() if count == max(counts.values())]
    if len(best) == 1 and counts[best[0]]:
        return best[0]
    names = " or ".join(best)
    raise ConfigError(
        format_issue(
            path, 1, None, "", f"may be a {names}: no field tells which", fix="name it with --trainer"
        )
    )


_TRL_FUNCTIONS = ("accuracy_reward", "reasoning_accuracy_reward", "think_format_reward")
"""Names that `trl grpo` knows as reward functions of TRL."""


def _named_function(name: str) -> str:
    """A reward function as the command `trl grpo` names it, as module:name."""
    if name in _TRL_FUNCTIONS:
        return f"trl.rewards:{name}"
    module, _, function = name.rpartition(".")
    return f"{module}:{function}" if module and "/" not in name else name


def _read_python(path: Path, text: str, config: str | None) -> TrlSource:
    try:
        tree = ast.parse(text[:MAX_BYTES], filename=str(path))
    except (SyntaxError, ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None) or 1
        raise ConfigError(format_issue(path, line, None, "", "is not Python source")) from None
    _undo_aliases(tree)
    calls = [call for call in _calls(tree) if _name(call) in TRAINERS]
    calls = [call for call in calls if config in (None, _name(call))]
    if len(calls) != 1:
        where = ", ".join(f"{_name(call)} in line {call.lineno}" for call in calls)
        problem = f"calls {where}" if calls else f"calls none of {', '.join(TRAINERS)}"
        fix = "leave one of them, or name it with --trainer" if calls else "name the file that does"
        raise ConfigError(format_issue(path, calls[0].lineno if calls else 1, None, "", problem, fix=fix))
    return _PythonReader(path, tree).read(calls[0])


_KNOWN_NAMES = {*TRAINERS, *TRAINERS.values(), *LOADERS, "LoraConfig"}


def _undo_aliases(tree: ast.Module) -> None:
    """Call what is imported or assigned under another name, as in `GRPOConfig as G`, by its own name."""
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            aliases |= {a.asname: a.name for a in node.names if a.asname and a.name in _KNOWN_NAMES}
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Name | ast.Attribute):
            name = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
            if name in _KNOWN_NAMES:
                aliases |= {target.id: name for target in node.targets if isinstance(target, ast.Name)}
    for call in _calls(tree):
        if isinstance(call.func, ast.Name):
            call.func.id = aliases.get(call.func.id, call.func.id)


def _calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def _name(call: ast.Call) -> str:
    """The last part of the name that is called."""
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


class _PythonReader:
    """The literal values of one source file."""

    def __init__(self, path: Path, tree: ast.Module) -> None:
        self.path, self.tree = path, tree
        self.assigned: dict[str, list[ast.expr]] = {}
        self.functions = {
            node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        self.imported: dict[str, str] = {}
        self.modules: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and len(node.targets) == 1:
                self._assign(node.targets[0], node.value)
            elif isinstance(node, ast.AnnAssign) and node.value is not None:
                self._assign(node.target, node.value)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                self.imported |= {a.asname or a.name: f"{node.module}:{a.name}" for a in node.names}
                self.modules |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
            elif isinstance(node, ast.Import):
                self.modules |= {a.asname or a.name: a.name for a in node.names}

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self.assigned.setdefault(target.id, []).append(value)

    def read(self, call: ast.Call) -> TrlSource:
        """The fields of the call, and the model, data and reward functions of the trainer's."""
        config = _name(call)
        source = TrlSource(self.path, config, {})
        self._read_keywords(call, source)
        trainers = [c for c in _calls(self.tree) if _name(c) == TRAINERS[config]]
        for change in changes_of(self.tree, call, trainers):
            self._read_change(change, source)
        if len(trainers) == 1:
            self._read_trainer(trainers[0], source)
        source.runs_on_import = any(
            isinstance(node, ast.Expr | ast.Assign)
            and any(_name(c) == TRAINERS[config] for c in _calls(node))
            for node in self.tree.body
        )
        return source

    def _read_keywords(self, call: ast.Call, source: TrlSource) -> None:
        for keyword in call.keywords:
            name = keyword.arg or "**"
            source.values[name] = self.value(keyword.value)
            source.lines[name] = keyword.value.lineno
        for argument in call.args:  # the first field of TrainingArguments
            source.values.setdefault("output_dir", self.value(argument))
            source.lines.setdefault("output_dir", argument.lineno)

    def _read_change(self, change: Change, source: TrlSource, name: str | None = None) -> None:
        """The field as it is after the construction; what only a run can tell is no literal."""
        name = name or change.name
        value = self.value(change.value) if change.value is not None else NotLiteral(change.code)
        earlier = source.values.get("**")
        if name == "**" and isinstance(earlier, NotLiteral):
            value = NotLiteral(f"{earlier.code}; {change.code}")
        source.values[name], source.lines[name] = value, change.line

    def _read_trainer(self, call: ast.Call, source: TrlSource) -> None:
        arguments = {k.arg: k.value for k in call.keywords if k.arg}
        arguments |= {"model": call.args[0]} if call.args else {}
        model = self.value(arguments["model"]) if "model" in arguments else None
        if model is not None:
            source.values["model_name_or_path"] = self._pretrained(arguments["model"], model)
            source.lines["model_name_or_path"] = arguments["model"].lineno
        if "reward_funcs" in arguments:
            value = self._resolve(arguments["reward_funcs"])
            items = value.elts if isinstance(value, ast.List | ast.Tuple) else [value]
            source.reward_functions = [self._function(item) for item in items]
        loaded = self._resolve(arguments["train_dataset"]) if "train_dataset" in arguments else None
        if isinstance(loaded, ast.Call) and _name(loaded) in LOADERS:
            names = ("path", "name")
            values = {name: self.value(arg) for name, arg in zip(names, loaded.args, strict=False)}
            source.dataset = values | {k.arg: self.value(k.value) for k in loaded.keywords if k.arg}
        adapter = self._resolve(arguments["peft_config"]) if "peft_config" in arguments else None
        if isinstance(adapter, ast.Call) and _name(adapter) == "LoraConfig":
            self._read_adapter(adapter, source)

    def _read_adapter(self, call: ast.Call, source: TrlSource) -> None:
        # The defaults of peft's LoraConfig, which differ from those of TRL's ModelConfig.
        source.values |= {"use_peft": True, "lora_r": 8, "lora_alpha": 8, "lora_dropout": 0.0}
        changes = [
            Change(k.arg or "**", k.value, k.value.lineno, ast.unparse(k.value)) for k in call.keywords
        ]
        own = {"r": "lora_r", "target_modules": "lora_target_modules"}
        own["modules_to_save"] = "lora_modules_to_save"
        for change in (*changes, *changes_of(self.tree, call, ())):
            if change.name not in {"task_type", "bias", "inference_mode"}:
                self._read_change(change, source, own.get(change.name, change.name))

    def _pretrained(self, node: ast.expr, value: Any) -> Any:
        """The name in `AutoModelForCausalLM.from_pretrained("name")`, or the value itself."""
        call = self._resolve(node)
        if isinstance(call, ast.Call) and _name(call) == "from_pretrained" and call.args:
            return self.value(call.args[0])
        return value

    def _function(self, node: ast.expr) -> str:
        """A reference to a reward function, or the code of what is none."""
        if isinstance(node, ast.Name) and node.id in self.functions:
            return f"{self.path}:{node.id}"
        if isinstance(node, ast.Name) and node.id in self.imported:
            return self.imported[node.id]
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in self.modules:
            return f"{self.modules[ast.unparse(node.value)]}:{node.attr}"
        value = self.value(node)
        return value if isinstance(value, str) else f"({ast.unparse(node)})"

    def _resolve(self, node: ast.expr) -> ast.expr:
        """The expression that a name was assigned, if it was assigned once."""
        assigned = self.assigned.get(node.id, []) if isinstance(node, ast.Name) else []
        return assigned[0] if len(assigned) == 1 else node

    def value(self, node: ast.expr) -> Any:
        """The literal value of an expression, or of the name that it was assigned to."""
        node = self._resolve(node)
        try:
            value = ast.literal_eval(node)
        except (ValueError, TypeError, MemoryError, RecursionError):
            return NotLiteral(ast.unparse(node))
        return list(value) if isinstance(value, tuple) else value


def suggestion(name: str, config: str) -> str:
    """The known field that is spelled most like this name; "" if none is."""
    return next(iter(get_close_matches(name, sorted(known_fields(config)), 1, 0.75)), "")
