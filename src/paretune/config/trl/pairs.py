"""DPOConfig and RewardConfig: preference pairs as stored responses, or as data of the reward model."""

from typing import Any

from paretune.config.trl.common import (
    convert_model,
    convert_optimizer,
    convert_prompts,
    convert_run,
    dataset_file,
)
from paretune.config.trl.conversion import Conversion
from paretune.config.trl.grpo import leave_epochs

OBJECTIVE = "preference"
"""The objective that the pairs are about."""
DPO_LOSS_TYPES = (
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "discopop",
)
"""Those of TRL that the algorithm dpo has too."""


def convert_dpo(c: Conversion) -> None:
    """Fill in the recipe of a DPOConfig."""
    file = dataset_file(c)
    convert_prompts(c, file)
    pairs = _pairs(c, file)
    c.set("data.stored_responses.pairs", pairs)
    convert_model(c)
    c.set("reward", {"objectives": {OBJECTIVE: {"loss": "bradley_terry"}}, "pairs": pairs})
    c.leave(
        "judge: the evaluation is scored by a reward model fitted to the training pairs (section reward); "
        "for an independent one name other pairs in a section judge"
    )
    c.set("objectives", {OBJECTIVE: {"weight": 1.0}})
    c.set("algorithm", {"name": "dpo", "response_source": "stored"})
    loss_type = _loss_type(c)
    c.map("beta", "algorithm.beta", c.number("beta", 0))
    if c.value("label_smoothing"):
        c.map("label_smoothing", "algorithm.label_smoothing", c.number("label_smoothing", 0))
    elif c.is_set("label_smoothing"):
        c.ignore("label_smoothing", c.value("label_smoothing"), "as here")
    if loss_type == "ipo":
        c.set("algorithm.reduction", "mean")
    rows = c.integer("per_device_train_batch_size") * c.integer("gradient_accumulation_steps")
    note = "x gradient_accumulation_steps; with N processes, N times as many"
    c.map("per_device_train_batch_size", "training.prompts_per_step", rows, note)
    if c.is_set("gradient_accumulation_steps"):
        c.mapped.append("gradient_accumulation_steps -> training.prompts_per_step; memory is planned here")
    max_steps = c.number("max_steps")
    convert_optimizer(c, "training", int(max_steps) if max_steps > 0 else None)
    if max_steps > 0:
        c.map("max_steps", "run.max_steps", max_steps)
        if c.is_set("num_train_epochs"):
            c.ignore("num_train_epochs", c.value("num_train_epochs"), "max_steps overrides it")
    else:
        leave_epochs(c)
    convert_run(c)


def _loss_type(c: Conversion) -> str:
    value = c.value("loss_type")
    names = value if isinstance(value, list) else [value]
    if len(names) == 1 and names[0] in DPO_LOSS_TYPES:
        c.map("loss_type", "algorithm.loss_type", names[0])
        return str(names[0])
    c.refuse("loss_type", value, f"one of {', '.join(DPO_LOSS_TYPES)}; sigmoid is written")
    c.set("algorithm.loss_type", "sigmoid")
    return "sigmoid"


def _pairs(c: Conversion, file: str | None) -> dict[str, Any]:
    source: dict[str, Any] = {"file": file, "objective": OBJECTIVE}
    if c.value("max_length") is not None:
        source["max_length"] = c.integer("max_length")
        origin = "" if c.is_set("max_length") else " (default of TRL)"
        c.mapped.append(
            f"max_length{origin} -> max_length of the pairs: {source['max_length']}; longer ones are dropped"
        )
    return {"train": source}


def convert_reward(c: Conversion) -> None:
    """Fill in the recipe of a RewardConfig: the fit of the reward model, and an alignment with it."""
    file = dataset_file(c)
    convert_prompts(c, file)
    model = c.value("model_name_or_path")
    c.set("policy", {"path": model})
    c.leave(
        "policy.path, algorithm and run.max_steps: write the model to align with the reward model, how, and "
        "for how long; TRL only fits the reward model"
    )
    convert_model(c, "reward")
    c.set("reward.objectives", {OBJECTIVE: {"loss": "bradley_terry"}})
    c.set("reward.pairs", _pairs(c, file))
    c.set("objectives", {OBJECTIVE: {"weight": 1.0}})
    c.set("algorithm", {"name": "grpo"})
    rows = c.integer("per_device_train_batch_size") * c.integer("gradient_accumulation_steps")
    c.map("per_device_train_batch_size", "reward.training.batch_size", rows, "x gradient_accumulation_steps")
    if c.is_set("gradient_accumulation_steps"):
        c.mapped.append("gradient_accumulation_steps -> reward.training.batch_size; memory is planned here")
    epochs = max(round(c.number("num_train_epochs", 0)), 1)
    c.map("num_train_epochs", "reward.training.num_train_epochs", epochs)
    if c.number("max_steps") > 0:
        c.refuse(
            "max_steps", c.value("max_steps"), "a fit is counted in epochs: reward.training.num_train_epochs"
        )
    elif c.is_set("max_steps"):
        c.ignore("max_steps", c.value("max_steps"), "num_train_epochs counts")
    convert_optimizer(c, "reward.training", None)
    convert_run(c)
