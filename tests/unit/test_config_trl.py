"""Configurations of TRL as recipes: what is mapped, refused, without effect, and told at the door."""

import json
from pathlib import Path

import pytest
import yaml

from paretune.algorithms import ALGORITHMS
from paretune.algorithms.trl import LOSS_OPTIONS, trl_grpo
from paretune.config.build import algorithm_issues
from paretune.config.load import load_config
from paretune.config.trl.convert import convert_trl_config
from paretune.config.trl.fields import DPO, GRPO, REWARD, known_fields
from paretune.config.trl.grpo import _objective
from paretune.core.errors import ConfigError, WiringError

SCRIPT = """
from datasets import load_dataset
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import accuracy_reward

MODEL = "models/small"
raise SystemExit("this source is never run")

def shorter(completions, **kwargs):
    return [-len(c) for c in completions]

args = GRPOConfig(
    learning_rate=2e-6,
    num_generations=4,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=2,
    steps_per_generation=4,
    num_iterations=2,
    max_steps=80,
    warmup_steps=8,
    loss_type="dr_grpo",
    beta=0.04,
    bf16=False,
    reward_weights=[1.0, 0.5],
    top_p=0.9,
    report_to="wandb",
    save_steps=int("5"),
    num_generation=3,
    output_dir="out",
)
trainer = GRPOTrainer(
    model=MODEL,
    reward_funcs=[accuracy_reward, shorter],
    args=args,
    train_dataset=load_dataset("json", data_files="prompts.jsonl", split="train"),
    peft_config=LoraConfig(r=32, lora_alpha=64, target_modules=["q_proj"]),
)
"""


SET = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "max_steps": 5,
    "num_train_epochs": 1,
    "steps_per_generation": 1,
    "num_generations": 8,
    "num_iterations": 1,
    "max_completion_length": 9,
    "temperature": 0.5,
    "num_generations_eval": 2,
    "chat_template_kwargs": {"enable_thinking": False},
    "loss_type": "sapo",
    "multi_objective_aggregation": "normalize_then_sum",
    "scale_rewards": True,
    "beta": 0.0,
    "importance_sampling_level": "sequence",
    "top_entropy_quantile": 0.5,
    "entropy_coef": 0.1,
    "learning_rate": 1e-5,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "weight_decay": 0.1,
    "max_grad_norm": 0,
    "optim": "adafactor",
    "seed": 1,
    "save_steps": 0.5,
    "save_total_limit": 3,
    "sapo_temperature_pos": 1.0,
    "sapo_temperature_neg": 2.0,
    "eval_strategy": "steps",
    "dataset_name": "owner/name",
    "dataset_config": "main",
    "dataset_train_split": "train",
    "dataset_test_split": "test",
    "model_name_or_path": "owner/model",
    "model_revision": "v2",
    "use_peft": True,
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.1,
    "lora_target_modules": ["all-linear"],
    "output_dir": "out",
    "run_name": "a",
    "gradient_checkpointing": False,
    "use_cpu": True,
    "mask_truncated_completions": True,
    "reward_funcs": ["accuracy_reward", "mine.rewards.short"],
    "reward_model_name_or_path": "owner/reward",
    "reward_weights": [1, 2, 3],
    "vespo_k_pos": 1,
    "bf16": False,
    "fp16": False,
    "dtype": "float32",
    "warmup_ratio": None,
}
"""A value of each field that is not null by default, or that the recipe has a key for."""


def convert(folder: Path, name: str, text: str, config=None):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    conversion = convert_trl_config(path, config)
    return conversion, yaml.safe_load(conversion.recipe_yaml)


def from_yaml(folder: Path, config=None, **values):
    return convert(folder, "config.yaml", yaml.safe_dump(values), config)


def fields(lines):
    return {line.split()[0].rstrip(":") for line in lines}


def test_python_source_becomes_a_recipe(tmp_path):
    conversion, recipe = convert(tmp_path, "train.py", SCRIPT)
    assert recipe["data"]["prompts"] == {"train": {"file": "prompts.jsonl"}}
    assert recipe["policy"] == {
        "path": "models/small",
        "dtype": "float32",
        "lora": {"r": 32, "alpha": 64, "target_modules": ["q_proj"]},
    }
    assert recipe["scorers"]["accuracy_reward"]["function"] == "trl.rewards:accuracy_reward"
    assert recipe["scorers"]["shorter"]["function"] == f"{tmp_path}/train.py:shorter"
    assert {name: o["weight"] for name, o in recipe["objectives"].items()} == {
        "accuracy_reward": 1.0,
        "shorter": 0.5,
    }
    # A generation is 16 completions, an update 8 of them: two updates, twice.
    assert recipe["algorithm"] == {
        "name": "trl_grpo",
        "loss_type": "dr_grpo",
        "epsilon": 0.2,
        "importance_sampling_level": "token",
        "beta": 0.04,
        "use_bias_correction_kl": True,
        "multi_objective_aggregation": "sum_then_normalize",
        "scale_rewards": "group",
        "num_generations": 4,
        "max_new_tokens": 512,
        "temperature": 1.0,
        "num_iterations": 2,
        "minibatch_size": 8,
    }
    training = recipe["training"]
    assert (training["prompts_per_step"], training["learning_rate"]) == (4, 2e-6)
    assert (training["lr_scheduler_type"], training["warmup_ratio"]) == ("linear", 0.1)
    assert recipe["run"] == {"max_steps": 20, "output_dir": "out", "seed": 42, "save_steps": 125}
    assert fields(conversion.refused) == {"top_p", "save_steps", "num_generation"}
    assert fields(conversion.without_effect) == {"report_to"}
    assert 'did you mean "num_generations"?' in conversion.text
    assert "which would start the training" in conversion.text


def test_every_field_is_listed_once_or_more(tmp_path):
    names = known_fields(GRPO) - {"generation_batch_size", "datasets", "model_init_kwargs"}
    values = dict.fromkeys(names) | SET
    conversion, recipe = from_yaml(tmp_path, GRPO, **values)
    listed = fields([*conversion.mapped, *conversion.refused, *conversion.without_effect])
    missing = {name for name in values if name not in listed}
    assert missing <= {"warmup_ratio", "reward_funcs", "reward_model_name_or_path"}
    assert recipe["scorers"]["short"]["function"] == "mine.rewards:short"
    assert recipe["scorers"]["reward"] == {"type": "reward_model", "path": "owner/reward"}
    assert recipe["data"]["test_prompts"] == {"test": {"file": "hf:owner/name/main:test"}}
    assert recipe["policy"]["lora"]["target_modules"] == "all-linear"
    assert {"optim", "entropy_coef", "save_steps", "lora_dropout"} <= fields(conversion.refused)


def test_recipe_of_a_local_configuration_is_valid(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    (tmp_path / "rewards.py").write_text("def shorter(completions, **kwargs):\n    return [0.0]\n")
    script = SCRIPT.replace("models/small", "owner/small").replace(
        "accuracy_reward, shorter", "shorter, longer"
    )
    script = script.replace("from trl.rewards import accuracy_reward", "from rewards import shorter, longer")
    script = script.replace("\ndef shorter(completions, **kwargs):", "\ndef unused(completions):")
    conversion, _ = convert(tmp_path, "train.py", script)
    (tmp_path / "recipe.yaml").write_text(conversion.recipe_yaml)
    config = load_config("recipe.yaml")
    assert not list(algorithm_issues(config))
    assert config.objectives["longer"].weight == 0.5


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo"])
@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_algorithm_of_every_loss_type_can_be_built(tmp_path, loss_type, aggregation):
    options = {"loss_type": loss_type, "multi_objective_aggregation": aggregation, "scale_rewards": "batch"}
    _, recipe = from_yaml(tmp_path, GRPO, **options, **{name: d for name, (d, _) in LOSS_OPTIONS.items()})
    arguments = {key: value for key, value in recipe["algorithm"].items() if key != "name"}
    assert ALGORITHMS[recipe["algorithm"]["name"]] is trl_grpo
    trl_grpo({"reward": 1.0}, **arguments)


def test_dpo_and_reward_configurations(tmp_path):
    pairs = {"dataset_name": "owner/pairs", "model_name_or_path": "owner/model"}
    conversion, recipe = from_yaml(tmp_path, loss_type=["ipo"], label_smoothing=0.0, max_steps=7, **pairs)
    assert recipe["algorithm"] == {
        "name": "dpo",
        "response_source": "stored",
        "loss_type": "ipo",
        "beta": 0.1,
        "reduction": "mean",
    }
    source = {"file": "hf:owner/pairs:train", "objective": "preference", "max_length": 1024}
    assert recipe["data"]["stored_responses"]["pairs"] == {"train": source} == recipe["reward"]["pairs"]
    assert (recipe["training"]["prompts_per_step"], recipe["training"]["learning_rate"]) == (8, 1e-6)
    assert recipe["run"]["max_steps"] == 7
    text = json.dumps({"center_rewards_coefficient": 0.01, **pairs}, indent="\t")
    conversion, recipe = convert(tmp_path, "config.json", text)
    assert fields(conversion.refused) == {"center_rewards_coefficient"}
    assert recipe["reward"]["init_from"] == "owner/model"
    assert recipe["reward"]["training"]["learning_rate"] == 1e-4
    assert recipe["reward"]["training"]["lr_scheduler_type"] == "linear"


def test_what_the_recipe_lacks_is_told(tmp_path):
    conversion, recipe = from_yaml(tmp_path, GRPO, num_train_epochs=2)
    assert recipe["run"]["max_steps"] is None
    assert recipe["policy"]["path"] is None
    assert "run.max_steps: write the number of steps, 2 x the number of prompts / 1" in conversion.text
    assert any("scorers.reward.function" in line for line in conversion.to_do)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.yaml",
            "learning_rate: 1e-5\nbeta: 0.1\n",
            "a.yaml:1: may be a GRPOConfig or DPOConfig: no field",
        ),
        (
            "a.yaml",
            "num_generations: 8\nlearning_rate: fast\n",
            "a.yaml:2: learning_rate: is 'fast', and must be",
        ),
        ("a.yaml", "num_generations: 3\n", "a.yaml:1: num_generations: is 3, and does not divide the 8"),
        (
            "a.yaml",
            "epsilon: 0.1\nloss_type: ppo\n",
            "a.yaml:2: loss_type: is 'ppo', and must be one of dapo",
        ),
        ("a.yaml", "epsilon: 0.1\nscale_rewards: all\n", "a.yaml:2: scale_rewards: is 'all', and must be"),
        ("a.yaml", "epsilon: 0.1\nbf16: maybe\n", "a.yaml:2: bf16: is 'maybe', and must be true or false"),
        ("a.yaml", "epsilon: 0.1\nmax_steps: .inf\n", "a.yaml:2: max_steps: is inf, and must be a number"),
        ("a.json", '{"epsilon": 0.1,\n', "a.json:2:1: is not JSON"),
        ("a.py", "GRPOConfig(", "a.py:1: is not Python source"),
        ("a.py", "x = 1\n", "a.py:1: calls none of GRPOConfig, DPOConfig, RewardConfig"),
        (
            "a.py",
            "GRPOConfig()\nDPOConfig()\n",
            "calls GRPOConfig in line 1, DPOConfig in line 2; fix: leave one",
        ),
    ],
)
def test_errors_name_file_and_line(tmp_path, monkeypatch, name, text, message):
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(text)
    with pytest.raises(ConfigError) as caught:
        convert_trl_config(Path(name))
    assert message in str(caught.value)
    assert str(caught.value).count("\n") == 0


def test_a_missing_file_and_other_sources(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        convert_trl_config(tmp_path / "none.yaml")
    text = "import trl\nargs = trl.DPOConfig(beta=0.2, **more)\n"
    conversion, recipe = convert(tmp_path, "a.py", text)
    assert recipe["algorithm"]["beta"] == 0.2
    assert fields(conversion.refused) == {"**"}
    assert known_fields(REWARD) != known_fields(DPO)


@pytest.mark.parametrize(
    ("text", "values", "refused"),
    [
        ('args.beta = 0.5\nsetattr(args, "temperature", 0.7)', {"beta": 0.5, "temperature": 0.7}, set()),
        ("args.beta, args.epsilon = 0.5, 0.3", {"beta": 0.5, "epsilon": 0.3}, set()),
        ("args.beta = args.epsilon = NUMBER", {"beta": 0.25, "epsilon": 0.25}, set()),
        ("other = args\nother.beta: float = 0.5", {"beta": 0.5}, set()),
        ("args = replace(args, beta=0.5)", {"beta": 0.5}, set()),
        ("args.beta = 0.5\nargs.beta = 0.75", {"beta": 0.75}, set()),
        ("args.beta = float(input())", {}, {"beta"}),
        ("args.beta *= 2", {}, {"beta"}),
        ("if NUMBER:\n    args.beta = 0.5", {}, {"beta"}),
        ("def change(args):\n    args.beta = 0.5", {}, {"beta"}),
        ("for name in LIST:\n    setattr(args, name, 1)", {"beta": 0.04}, {"**"}),
        ("vars(args)['beta'] = 1\nargs.set_training(1e-5)", {"beta": 0.04}, {"**"}),
        ("args.betta = 0.5", {"beta": 0.04}, {"betta"}),
        ("something.beta = 0.5", {"beta": 0.04}, set()),
    ],
)
def test_what_is_set_after_the_construction(tmp_path, text, values, refused):
    head = "from trl import GRPOConfig as G, GRPOTrainer as T\nfrom peft import LoraConfig as L\n"
    head += "NUMBER = 0.25\nimport mine.rewards as r\nargs = G(beta=0.04, temperature=1.0)\n"
    head += "peft = L(r=4)\npeft.r = 16\n"
    end = "\nT('models/small', reward_funcs=r.short, args=args, peft_config=peft)\n"
    conversion, recipe = convert(tmp_path, "a.py", head + text + end)
    assert fields(conversion.refused) == refused
    assert values.items() <= recipe["algorithm"].items()
    assert recipe["policy"]["lora"]["r"] == 16
    assert recipe["scorers"]["short"]["function"] == "mine.rewards:short"


def test_what_is_set_after_the_trainer_was_made_is_refused(tmp_path):
    text = "import trl\nC = trl.GRPOConfig\nargs = C(beta=0.04)\nt = trl.GRPOTrainer('m', args=args)\n"
    conversion, _ = convert(tmp_path, "a.py", text + "t.args.beta = 0.5\nargs.top_p = 0.9\n")
    assert fields(conversion.refused) == {"beta", "top_p"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"loss_type": "sapo", "epsilon": 0.3},
            "algorithm.epsilon is 0.3 and has no effect with loss_type: sapo",
        ),
        ({"loss_type": "cispo"}, "algorithm.epsilon_high is not set"),
        ({"delta": 1.1}, "algorithm.delta is 1.1, below the clip bound"),
        ({"use_bias_correction_kl": False}, "has no effect with beta: 0"),
        ({"loss_type": "grpo", "entropy_coef": 0.1}, "algorithm.entropy_coef is 0.1"),
        (
            {"multi_objective_aggregation": "normalize_then_sum", "scale_rewards": "none"},
            "algorithm.scale_rewards is none and has no effect",
        ),
    ],
)
def test_options_without_effect_are_refused(options, message):
    with pytest.raises(WiringError) as caught:
        trl_grpo({"reward": 1.0}, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("weight", "section"),
    [(0.5, {"weight": 0.5}), (-2.0, {"goal": "lower", "weight": 2.0}), (0, {"weight": 0})],
)
def test_weight_below_0_becomes_a_goal(weight, section):
    assert _objective(weight) == section
