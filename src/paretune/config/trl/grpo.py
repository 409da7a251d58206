"""GRPOConfig: the algorithm trl_grpo, its rewards as scorers, and the size of a step."""

from typing import Any

from paretune.algorithms.trl import AGGREGATION_MODES, LOSS_OPTIONS
from paretune.config.trl.common import (
    convert_model,
    convert_optimizer,
    convert_prompts,
    convert_run,
    dataset_file,
)
from paretune.config.trl.conversion import Conversion, name_of

LOSS_TYPES = ("dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo")
CISPO_MAX_RATIO = 5.0
OVERLONG = "get_soft_overlong_punishment"
OVERLONG_ARGUMENTS = {"max_completion_len": 1280, "soft_punish_cache": 256}
"""The arguments that the command `trl grpo` has for it."""


def convert_grpo(c: Conversion) -> None:
    """Fill in the recipe of a GRPOConfig."""
    convert_prompts(c, dataset_file(c))
    convert_model(c)
    if kwargs := c.mapping("chat_template_kwargs"):
        c.map("chat_template_kwargs", "policy.chat_template_kwargs", kwargs)
    _convert_rewards(c)
    c.set("algorithm.name", "trl_grpo")
    _convert_loss(c)
    _convert_credit(c)
    updates = _convert_step_size(c)
    _convert_length(c, updates)
    convert_run(c, updates)
    if c.value("num_generations_eval") is not None:
        c.map("num_generations_eval", "evaluate.num_generations", c.integer("num_generations_eval"))
    if c.value("temperature") != 1:
        note = "the evaluation samples as the training does"
        c.map("temperature", "evaluate.temperature", c.number("temperature"), note)


def _convert_loss(c: Conversion) -> None:
    loss_type = c.choice("loss_type", LOSS_TYPES)
    averages = c.integer("gradient_accumulation_steps") > 1 and loss_type == "bnpo"
    note = "the average is that of the optimizer step; TRL's is that of each micro-batch" if averages else ""
    c.map("loss_type", "algorithm.loss_type", loss_type, note)
    for name, (_, readers) in LOSS_OPTIONS.items():
        value = c.value(name)
        if loss_type not in readers:
            if c.is_set(name):
                c.ignore(name, value, f"not read by loss_type {loss_type}")
        elif loss_type == "cispo" and (value is None or c.number(name, 0) < 1):
            instead = f"TRL would cut every ratio down to that or to epsilon; {CISPO_MAX_RATIO:g} is written"
            c.refuse(name, value, instead)
            c.set("algorithm.epsilon_high", CISPO_MAX_RATIO)
        elif name == "delta" and value is not None and c.number(name, 0) < 1 + _epsilon_high(c):
            c.refuse(name, value, f"1 + epsilon_high = {1 + _epsilon_high(c):g} or more")
        elif value is not None:
            c.map(name, f"algorithm.{name}", c.number(name, 0))
        elif c.is_set(name):
            c.ignore(name, value, "as here")
    levels = ("token", "sequence")
    c.map(
        "importance_sampling_level",
        "algorithm.importance_sampling_level",
        c.choice("importance_sampling_level", levels),
    )
    c.map("beta", "algorithm.beta", c.number("beta", 0))
    if c.value("beta"):
        value = c.flag("use_bias_correction_kl")
        c.map("use_bias_correction_kl", "algorithm.use_bias_correction_kl", value)
    elif c.is_set("use_bias_correction_kl"):
        c.ignore("use_bias_correction_kl", c.value("use_bias_correction_kl"), "there is no KL with beta 0")


def _epsilon_high(c: Conversion) -> float:
    high = c.value("epsilon_high")
    return float(c.number("epsilon", 0) if high is None else c.number("epsilon_high", 0))


def _convert_credit(c: Conversion) -> None:
    aggregations = ("sum_then_normalize", "normalize_then_sum")
    aggregation = c.choice("multi_objective_aggregation", aggregations)
    c.map("multi_objective_aggregation", "algorithm.multi_objective_aggregation", aggregation)
    scale = c.value("scale_rewards")
    scale = ("group" if scale else "none") if isinstance(scale, bool) else scale
    if aggregation == "normalize_then_sum":
        if c.is_set("scale_rewards"):
            c.ignore("scale_rewards", scale, "TRL does not read it with normalize_then_sum")
    elif scale not in ("group", "batch", "none"):
        raise c.error("scale_rewards", f"is {scale!r}, and must be one of group, batch, none")
    else:
        c.map("scale_rewards", "algorithm.scale_rewards", scale)
    mask = c.flag("mask_truncated_completions")
    threshold = (
        None if c.value("off_policy_mask_threshold") is None else c.number("off_policy_mask_threshold", 0)
    )
    for name, value in (("mask_truncated_completions", mask), ("off_policy_mask_threshold", threshold)):
        if value:
            c.map(name, f"algorithm.{name}", value)
        elif c.is_set(name):
            c.ignore(name, c.value(name), "as here")
    _convert_entropy(c)


def _convert_entropy(c: Conversion) -> None:
    quantile, coef = c.number("top_entropy_quantile", 0), c.number("entropy_coef", 0)
    if quantile < 1:
        note = "by the entropy before the first update of a step"
        c.map("top_entropy_quantile", "algorithm.top_entropy_quantile", quantile, note)
    elif c.is_set("top_entropy_quantile"):
        c.ignore("top_entropy_quantile", quantile, "as here")
    if coef and (quantile < 1 or c.value("loss_type") in AGGREGATION_MODES):
        c.refuse(
            "entropy_coef", coef, "take loss_type dapo, bnpo, cispo or vespo without top_entropy_quantile"
        )
    elif coef:
        c.map("entropy_coef", "algorithm.entropy_coef", coef)
    elif c.is_set("entropy_coef"):
        c.ignore("entropy_coef", coef, "as here")


def _convert_step_size(c: Conversion) -> int:
    """Prompts per step and rows per update; returns the optimizer steps of a training step."""
    rows = c.integer("per_device_train_batch_size") * c.integer("gradient_accumulation_steps")
    num_generations, num_iterations = c.integer("num_generations"), c.integer("num_iterations")
    if c.value("generation_batch_size") is not None and c.value("steps_per_generation") is not None:
        raise c.error("generation_batch_size", "cannot be set beside steps_per_generation")
    generated = rows
    for field in ("generation_batch_size", "steps_per_generation"):
        if c.value(field) is not None:
            per = c.integer("per_device_train_batch_size") if field == "steps_per_generation" else 1
            generated = c.integer(field) * per
            c.mapped.append(f"{field} -> training.prompts_per_step")
    if generated % num_generations:
        problem = f"is {num_generations}, and does not divide the {generated} completions of a generation"
        raise c.error("num_generations", problem)
    updates, rest = divmod(generated, rows)
    if rest and rows % generated:
        raise c.error(
            "gradient_accumulation_steps",
            f"makes updates of {rows} of {generated} completions of a generation",
        )
    c.map("num_generations", "algorithm.num_generations", num_generations)
    c.map("max_completion_length", "algorithm.max_new_tokens", c.integer("max_completion_length"))
    c.map("temperature", "algorithm.temperature", c.number("temperature"))
    c.map("num_iterations", "algorithm.num_iterations", num_iterations)
    if updates > 1:
        c.map(
            "per_device_train_batch_size",
            "algorithm.minibatch_size",
            rows,
            "x gradient_accumulation_steps, the completions of an update",
        )
    note = "completions of a generation / num_generations; with N processes, N times as many"
    c.map(
        "gradient_accumulation_steps",
        "training.prompts_per_step",
        max(generated, rows) // num_generations,
        note,
    )
    if updates <= 1 and c.is_set("per_device_train_batch_size"):
        c.mapped.append("per_device_train_batch_size -> training.prompts_per_step; memory is planned here")
    return max(updates, 1) * num_iterations


def _convert_length(c: Conversion, updates: int) -> None:
    max_steps = c.number("max_steps")
    if max_steps > 0:
        steps = max(round(max_steps / updates), 1)
        note = f"{updates} optimizer steps each" if updates > 1 else ""
        c.map("max_steps", "run.max_steps", steps, note)
        if c.is_set("num_train_epochs"):
            c.ignore("num_train_epochs", c.value("num_train_epochs"), "max_steps overrides it")
        convert_optimizer(c, "training", int(max_steps))
        return
    if c.is_set("max_steps"):
        c.ignore("max_steps", max_steps, "num_train_epochs counts")
    convert_optimizer(c, "training", None)
    leave_epochs(c)


def leave_epochs(c: Conversion) -> None:
    """The length of the run, which depends on the number of prompts."""
    prompts = c.recipe["training"]["prompts_per_step"]
    epochs = c.number("num_train_epochs", 0)
    steps = f"{epochs:g} x the number of prompts / {prompts}"
    c.map("num_train_epochs", "run.max_steps", None, f"a run is counted in steps: {steps}")
    c.leave(f"run.max_steps: write the number of steps, {steps}")


def _convert_rewards(c: Conversion) -> None:
    references = [*c.source.reward_functions]
    if c.value("reward_model_name_or_path") is not None:
        references.insert(0, str(c.value("reward_model_name_or_path")))
    names: list[str] = []
    for reference in references:
        base = name_of(reference)
        name = base if base not in names else f"{base}-{len(names)}"
        names.append(name)
        c.set(f"scorers.{name}", _scorer(c, reference, name))
        c.mapped.append(f"reward {reference} -> scorers.{name}, the objective {name}")
    if not names:
        names = ["reward"]
        c.set("scorers.reward", {"type": "python", "function": None})
        c.leave("scorers.reward.function: write the reward function that TRL's trainer gets, as file.py:name")
    _convert_weights(c, names, bool(references))
    _leave_functions(c, references)


def _convert_weights(c: Conversion, names: list[str], are_known: bool) -> None:
    weights = c.value("reward_weights")
    if weights is not None and not are_known:
        c.refuse("reward_weights", weights, "set objectives.NAME.weight of each reward, in their order")
        weights = None
    if weights is not None and (not isinstance(weights, list) or len(weights) != len(names)):
        raise c.error(
            "reward_weights", f"is {weights!r}, and must have a number for each of {len(names)} rewards"
        )
    for index, name in enumerate(names):
        c.set(f"objectives.{name}", _objective(1.0 if weights is None else weights[index]))
    if weights is not None:
        c.mapped.append(f"reward_weights -> objectives.NAME.weight: {weights}")


def _objective(weight: float) -> dict[str, Any]:
    """The section of an objective: a negative weight becomes goal lower with a positive one."""
    return {"goal": "lower", "weight": -weight} if weight < 0 else {"weight": weight}


def _leave_functions(c: Conversion, references: list[str]) -> None:
    """What functions need that TRL's trainer does not."""
    if any(":" in reference for reference in references):
        c.leave(
            "scorers.NAME.input: if the prompts of the data are text and not messages, write text; TRL gives "
            "such prompts to reward functions as text, and here they are a user's message"
        )
    if any(reference.startswith(f"{c.source.file}:") for reference in references):
        trains = ", which would start the training" if c.source.runs_on_import else ""
        c.leave(
            f"{c.source.file}: put its reward functions into a file of their own, and name that in "
            f"scorers.NAME.function; they are used by importing their file{trains}"
        )


def _scorer(c: Conversion, reference: str, name: str) -> dict[str, Any]:
    """The scorer of a reward function or a reward model."""
    if reference.startswith("("):
        c.leave(f"scorers.{name}.function: make {reference} a function of a file, and write file.py:name")
        return {"type": "python", "function": None}
    if reference.endswith(OVERLONG):
        return {
            "type": "python",
            "function": f"trl.rewards:{OVERLONG}",
            "arguments": {**OVERLONG_ARGUMENTS},
        }
    if ":" in reference:
        return {"type": "python", "function": reference}
    return {"type": "reward_model", "path": reference}
