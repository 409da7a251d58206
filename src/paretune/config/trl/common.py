"""The fields that all trainers of TRL have: model, adapter, data, optimizer, length of the run."""

import re
from pathlib import Path
from typing import Any

from paretune.config.schema import RUN_NAME_PATTERN
from paretune.config.trl.conversion import Conversion
from paretune.data.formats import SUPPORTED_SUFFIXES

HOLDOUT = 0.05
OPTIMIZERS = {
    "adamw_torch": "adamw_torch",
    "adamw_torch_fused": "adamw_torch",
    "adamw_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw_8bit": "adamw_8bit",
}
SCHEDULES = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
}
ALL_LINEAR = "all-linear"
NO_CLIPPING = 1e9


def convert_model(c: Conversion, key: str = "policy") -> None:
    """The model, its precision and its adapter.

    Args:
        c: The conversion.
        key: The section of the model: policy or reward.
    """
    kwargs = c.mapping("model_init_kwargs")
    name, path_key = c.value("model_name_or_path"), "path" if key == "policy" else "init_from"
    if name is None:
        c.set(f"{key}.{path_key}", None)
        c.leave(f"{key}.{path_key}: write the model that TRL's trainer gets, a folder or hub name")
    else:
        c.map("model_name_or_path", f"{key}.{path_key}", str(name))
    revision = kwargs.get("revision", c.value("model_revision"))
    if revision not in (None, "main"):
        c.map("model_revision", f"{key}.revision", str(revision))
    elif c.is_set("model_revision"):
        c.ignore("model_revision", revision, "the default here too")
    _convert_precision(c, key, kwargs.get("dtype", kwargs.get("torch_dtype", c.value("dtype"))))
    if c.is_set("model_init_kwargs"):
        read = {"revision", "dtype", "torch_dtype"}
        rest = {k: v for k, v in kwargs.items() if k not in {*read, "attn_implementation", "use_kernels"}}
        if rest:
            c.refuse("model_init_kwargs", rest, "models are loaded by their folder alone; remove it")
        else:
            c.ignore("model_init_kwargs", kwargs, "revision and dtype are read; the rest is chosen here")
    _convert_adapter(c, key)


def _convert_precision(c: Conversion, key: str, dtype: Any) -> None:
    if dtype not in ("float32", "bfloat16", "auto", None):
        c.refuse("dtype", dtype, "float32 or bfloat16")
        dtype = None
    # TRL computes in bfloat16 unless it is told not to; the optimizer has float32 weights there as here.
    bf16 = c.flag("bf16") if c.value("bf16") is not None else not c.source.values.get("fp16", False)
    name, value = ("bf16", "bfloat16") if bf16 else ("dtype", str(dtype or "float32"))
    value = "float32" if value == "auto" else value
    if not bf16 and c.is_set("bf16"):
        c.mapped.append(f"bf16 -> {key}.dtype: {value}")
    note = "bfloat16 products, float32 weights in the optimizer" if value == "bfloat16" else ""
    c.map(name, f"{key}.dtype", value, note)
    if bf16 and c.is_set("dtype"):
        c.ignore("dtype", dtype, "the optimizer has float32 weights; bf16 decides on the products")


def _convert_adapter(c: Conversion, key: str) -> None:
    names = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
    if not c.flag("use_peft"):
        for name in (n for n in ("use_peft", *names) if c.is_set(n)):
            c.ignore(name, c.value(name), "no adapter without use_peft")
        return
    c.map("lora_r", f"{key}.lora.r", c.integer("lora_r"))
    c.map("lora_alpha", f"{key}.lora.alpha", c.integer("lora_alpha"))
    modules = c.value("lora_target_modules")
    if modules is None:
        c.leave(
            f"{key}.lora.target_modules: all-linear is written, every linear layer; peft would choose by the "
            "family of the model: write its modules for the same adapter"
        )
        c.set(f"{key}.lora.target_modules", ALL_LINEAR)
    else:
        one = modules[0] if isinstance(modules, list) and modules == [ALL_LINEAR] else modules
        c.map("lora_target_modules", f"{key}.lora.target_modules", one)
    if c.value("lora_dropout"):
        c.refuse("lora_dropout", c.value("lora_dropout"), "adapters have no dropout; lower the learning rate")
    if c.is_set("use_peft"):
        c.mapped.append(f"use_peft -> {key}.lora")


def dataset_file(c: Conversion) -> str | None:
    """The training data as a `file`; None if the configuration does not name it."""
    loaded = c.source.dataset
    if loaded is not None:
        return _loaded_file(c, dict(loaded))
    mixture = c.value("datasets")
    if mixture:
        parts = mixture if isinstance(mixture, list) else [mixture]
        if len(parts) > 1 or not isinstance(parts[0], dict) or not parts[0].get("path"):
            c.refuse("datasets", mixture, "name each one as a file of its own, with max_rows for its share")
            return None
        return _loaded_file(c, {"split": "train", **parts[0]}, "datasets")
    name = c.value("dataset_name")
    if name is None:
        return None
    values = {"path": name, "name": c.value("dataset_config"), "split": c.value("dataset_train_split")}
    for field in ("dataset_config", "dataset_train_split"):
        if c.is_set(field) and _local_file(c, name) is not None:
            c.ignore(field, c.value(field), f"{name} is a file, which is read whole")
        elif c.is_set(field):
            c.mapped.append(f"{field} -> the file of dataset_name")
    return _loaded_file(c, values, "dataset_name")


def _loaded_file(c: Conversion, values: dict[str, Any], field: str = "load_dataset") -> str | None:
    """The file of the arguments of `load_dataset`."""
    path, files = values.get("path"), values.get("data_files")
    if path in ("json", "csv", "parquet", "text") and isinstance(files, str):
        c.mapped.append(f"{field} -> file: {files}")
        return files
    if not isinstance(path, str) or files is not None or values.get("data_dir") is not None:
        c.refuse(field, values, "name the files in the recipe")
        return None
    file = _local_file(c, path)
    if file is not None:
        c.mapped.append(f"{field} -> file: {file}")
        return file
    if path.startswith((".", "/", "~")):
        c.refuse(field, path, "a folder is no file; name its files in the recipe")
        return None
    file = _hub_file(path, values.get("name"), values.get("split"))
    c.mapped.append(f"{field} -> file: {file}")
    return file


def _local_file(c: Conversion, path: Any) -> str | None:
    """A data file by its suffix, or because it is there or beside the configuration; None if it is none."""
    if not isinstance(path, str):
        return None
    beside = c.source.file.parent / path
    is_here, is_beside = Path(path).expanduser().is_file(), beside.is_file()
    if not (is_here or is_beside or Path(path).suffix.lower() in SUPPORTED_SUFFIXES):
        return None
    return str(beside) if is_beside and not is_here else path


def _hub_file(path: str, config: Any, split: Any) -> str:
    return f"hf:{path}" + (f"/{config}" if config else "") + (f":{split}" if split else "")


def convert_prompts(c: Conversion, file: str | None) -> None:
    """The prompts of training and evaluation."""
    c.set("data.prompts", {"train": {"file": file}})
    if file is None:
        c.leave("data.prompts.train.file: write the file of the prompts, JSON Lines or hf:owner/name:split")
    strategy = c.value("eval_strategy")
    is_on_hub = c.value("dataset_name") is not None and _local_file(c, c.value("dataset_name")) is None
    if strategy not in ("no", False, None) and is_on_hub:
        values = (c.value("dataset_name"), c.value("dataset_config"), c.value("dataset_test_split"))
        c.map("dataset_test_split", "data.test_prompts", {"test": {"file": _hub_file(*values)}})
    else:
        c.set("data.holdout_fraction", HOLDOUT)
        c.leave(
            f"data.holdout_fraction: {HOLDOUT:g} of the prompts are kept for the evaluation, which every run "
            "has; if there are test prompts, name them in data.test_prompts instead"
        )
        if c.is_set("dataset_test_split"):
            is_file = c.value("dataset_name") is not None and not is_on_hub
            reason = "a file has no splits" if is_file else "TRL evaluates on nothing here"
            c.ignore("dataset_test_split", c.value("dataset_test_split"), reason)
    if c.is_set("eval_strategy"):
        c.ignore("eval_strategy", strategy, "the evaluation comes before and after the training")


def convert_optimizer(c: Conversion, key: str, total_steps: int | None) -> None:
    """Learning rate, schedule and clipping.

    Args:
        c: The conversion.
        key: The section of the optimizer.
        total_steps: Optimizer steps of the run; None if the file does not tell.
    """
    c.map("learning_rate", f"{key}.learning_rate", c.number("learning_rate", 0))
    name = str(c.value("lr_scheduler_type"))
    if name not in SCHEDULES:
        c.refuse("lr_scheduler_type", name, "linear, cosine or constant; linear is written")
    schedule = SCHEDULES.get(name, "linear")
    c.map("lr_scheduler_type", f"{key}.lr_scheduler_type", schedule)
    _convert_warmup(c, key, name, total_steps)
    c.map("weight_decay", f"{key}.weight_decay", c.number("weight_decay", 0))
    norm = c.number("max_grad_norm", 0)
    c.map("max_grad_norm", f"{key}.max_grad_norm", norm or NO_CLIPPING, "" if norm else "no clipping")
    if key == "training":
        optimizer = str(c.value("optim"))
        if optimizer in OPTIMIZERS:
            c.map("optim", f"{key}.optim", OPTIMIZERS[optimizer])
        else:
            c.refuse("optim", optimizer, "adamw_torch or adamw_8bit; adamw_torch is the default")
        checkpointing = "recompute" if c.flag("gradient_checkpointing") else "none"
        offloads = c.source.values.get("activation_offloading")
        c.map(
            "gradient_checkpointing",
            f"{key}.gradient_checkpointing",
            "offload" if offloads else checkpointing,
        )
    for field in ("optim", "gradient_checkpointing"):
        if key != "training" and c.is_set(field):
            c.ignore(field, c.value(field), "reward models are fitted with AdamW, and their memory planned")
    if c.is_set("activation_offloading") and key == "training":
        c.mapped.append("activation_offloading -> training.gradient_checkpointing")
    elif c.is_set("activation_offloading"):
        c.ignore("activation_offloading", c.value("activation_offloading"), "the memory of fits is planned")


def _convert_warmup(c: Conversion, key: str, schedule: str, total_steps: int | None) -> None:
    field = "warmup_ratio" if c.value("warmup_ratio") else "warmup_steps"
    value = c.number(field, 0)
    if schedule == "constant" and value:
        c.ignore(field, value, "TRL's schedule constant has no warm-up; constant_with_warmup has one")
        value = 0
    if value < 1:
        c.map(field, f"{key}.warmup_ratio", float(value))
    elif total_steps is None:
        c.set(f"{key}.warmup_ratio", 0.0)
        c.refuse(field, value, f"{key}.warmup_ratio is a share of all steps; it depends on run.max_steps")
    else:
        c.map(field, f"{key}.warmup_ratio", round(min(value / total_steps, 1.0), 6))


def convert_run(c: Conversion, updates: int = 1) -> None:
    """Folder, name, seed, device and checkpoints.

    Args:
        c: The conversion.
        updates: Optimizer steps of a training step.
    """
    if c.is_set("output_dir"):
        c.map("output_dir", "run.output_dir", str(c.value("output_dir")))
    if c.is_set("run_name"):
        name = str(c.value("run_name"))
        reason = "set run.output_dir" if re.match(RUN_NAME_PATTERN, name) else "no name of a run here"
        c.ignore("run_name", name, f"the name of the recipe's file names the run; {reason}")
    c.map("seed", "run.seed", c.number("seed", 0), "the draws differ from those of TRL")
    steps = c.value("save_steps")
    if isinstance(steps, int) and not isinstance(steps, bool) and steps >= 1:
        note = f"{updates} optimizer steps each" if updates > 1 else ""
        c.map("save_steps", "run.save_steps", max(round(steps / updates), 1), note)
    else:
        c.refuse("save_steps", steps, "a number of steps: run.save_steps")
    if c.value("save_total_limit") is not None:
        c.map("save_total_limit", "run.save_total_limit", c.integer("save_total_limit"))
    if c.flag("use_cpu"):
        c.map("use_cpu", "run.device", "cpu")
    elif c.is_set("use_cpu"):
        c.ignore("use_cpu", False, "the first GPU is taken if there is one")
