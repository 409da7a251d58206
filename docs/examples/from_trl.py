"""A training script for TRL as a recipe.

python docs/examples/from_trl.py
"""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from small import block

from paretune.config.trl.convert import TrlConversion, convert_trl_config

SCRIPT = """
from datasets import load_dataset
from trl import GRPOConfig, GRPOTrainer
from rewards import correct, short

args = GRPOConfig(
    learning_rate=2e-6,
    num_generations=4,
    per_device_train_batch_size=8,
    gradient_accumulation_steps=4,
    max_completion_length=128,
    max_steps=300,
    warmup_steps=30,
    beta=0.01,
    scale_rewards="batch",
    reward_weights=[1.0, 0.2],
    bf16=False,
    top_p=0.95,
    use_vllm=True,
    report_to="wandb",
    save_step=50,
)
trainer = GRPOTrainer(
    model="models/small",
    reward_funcs=[correct, short],
    args=args,
    train_dataset=load_dataset("json", data_files="questions.jsonl", split="train"),
)
trainer.train()
"""


def convert() -> TrlConversion:
    """The recipe of the script."""
    before = Path.cwd()
    with TemporaryDirectory() as folder:
        os.chdir(folder)  # so that messages name the file without a folder
        try:
            Path("train.py").write_text(SCRIPT.lstrip(), encoding="utf-8")
            return convert_trl_config(Path("train.py"))
        finally:
            os.chdir(before)


def main() -> None:
    """Print the script, what became of its fields, and the recipe."""
    conversion = convert()
    for name, text in (("script", SCRIPT), ("fields", conversion.text), ("recipe", conversion.recipe_yaml)):
        block(name)
        print(text.strip())


if __name__ == "__main__":
    main()
