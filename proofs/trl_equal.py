"""TRL's GRPOTrainer and `trl_grpo` on the same completions: advantages, loss and gradients.

python proofs/trl_equal.py [--record FILE]

Prints a table; the exit code is 1 if a difference exceeds 1e-5. With --record the numbers of TRL go to a file
with the schema of tests/golden/data/README.md. Needs TRL 1.16: `make proof-trl`.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from paretune.algorithms.trl import CLIPPED_LOSS_TYPES, trl_grpo
from paretune.core.batch import Batch
from paretune.data.records import Prompt
from paretune.models.model_passes import Models, response_logprobs
from paretune.rl.algorithm_spec import AlgorithmSpec
from paretune.rl.context import TrainingContext
from paretune.rl.hooks import StepHook, StepHooks
from paretune.rl.loop import accumulate_gradients

TOLERANCE = 1e-5
VOCAB_SIZE, EOS, PAD = 24, 1, 0
NUM_GENERATIONS, MAX_NEW_TOKENS = 4, 5
PROMPTS = ([3, 4, 5], [6, 7, 8, 9, 10])
COMPLETIONS = (
    [11, 12, 13, EOS],
    [14, EOS],
    [15, 16, 17, 18, 19],  # reaches the limit
    [20, 21, EOS],
    [22, 23, 3, 4, EOS],
    [5, 6, EOS],
    [7, 8, 9, 10, 11],  # reaches the limit
    [12, EOS],
)
NAN = float("nan")
REWARDS = (
    (1.0, 0.25, NAN),
    (0.0, 0.875, 0.5),
    (1.5, 0.375, -0.25),
    (0.25, 0.125, NAN),
    (3.0, 0.5, 1.0),
    (3.0, 0.75, NAN),
    (NAN, NAN, NAN),  # not scored at all
    (2.5, 0.625, 0.75),
)
WEIGHTS = (1.0, 0.5, -2.0)
NAMES = ("first", "second", "third")
LOSS_TYPES = ("dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo")

Options = dict[str, Any]


def all_options() -> Iterator[tuple[str, Options]]:
    """Name and options of every comparison: the product, then each further option with every loss type."""
    for loss_type in LOSS_TYPES:
        base: Options = {"loss_type": loss_type} | ({"epsilon_high": 5.0} if loss_type == "cispo" else {})
        for aggregation, scale in product(
            ("sum_then_normalize", "normalize_then_sum"), ("group", "batch", "none")
        ):
            yield (
                f"{loss_type}/{aggregation}/{scale}",
                base | {"multi_objective_aggregation": aggregation, "scale_rewards": scale},
            )
        yield f"{loss_type}/beta", base | {"beta": 0.1}
        yield f"{loss_type}/beta/sequence", base | {"beta": 0.1, "importance_sampling_level": "sequence"}
        yield f"{loss_type}/beta/no_correction", base | {"beta": 0.1, "use_bias_correction_kl": False}
        yield (
            f"{loss_type}/mask_truncated_completions",
            base | {"beta": 0.1, "mask_truncated_completions": True},
        )
        yield f"{loss_type}/off_policy_mask_threshold", base | {"off_policy_mask_threshold": 0.02}
        yield f"{loss_type}/on_policy", base | {"beta": 0.1}
        yield f"{loss_type}/on_policy/top_entropy_quantile", base | {"beta": 0.1, "top_entropy_quantile": 0.3}
        if loss_type in CLIPPED_LOSS_TYPES:
            yield f"{loss_type}/epsilon_high", base | {"epsilon": 0.1, "epsilon_high": 0.3}
            yield f"{loss_type}/delta", base | {"epsilon": 0.05, "delta": 1.1}
    for loss_type in ("dapo", "bnpo", "vespo"):
        yield f"{loss_type}/on_policy/entropy_coef", {"loss_type": loss_type, "entropy_coef": 0.05}
    yield "sapo/temperatures", {"loss_type": "sapo", "sapo_temperature_pos": 2.0, "sapo_temperature_neg": 3.0}
    yield "vespo/powers", {"loss_type": "vespo", "vespo_k_pos": 1.5, "vespo_lambda_neg": 1.0}


def make_model(seed: int) -> LlamaForCausalLM:
    """A random model; other seeds are small changes of the first."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        pad_token_id=PAD,
        bos_token_id=2,
        eos_token_id=EOS,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.03 if seed else 0.0)
    return model


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One word per token."""
    words = ["<pad>", "<eos>", "<bos>", *(f"w{i}" for i in range(3, VOCAB_SIZE))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<bos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    )


class FixedTrainer(GRPOTrainer):
    """TRL's trainer with given completions, which keeps the log-probabilities of the loss."""

    logps: Tensor

    def _generate(self, prompts: list[Any]) -> Any:
        prompt_ids = [list(PROMPTS[i // NUM_GENERATIONS]) for i in range(len(COMPLETIONS))]
        completions = [str(i) for i in range(len(COMPLETIONS))]
        return prompt_ids, [list(ids) for ids in COMPLETIONS], None, completions, None, {}, None, []

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        logps, entropies, aux_loss = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if logps.requires_grad:
            logps.retain_grad()
            self.logps = logps
        self.entropies = entropies
        return logps, entropies, aux_loss


def reward_function(k: int) -> Any:
    """The rewards of one objective, by the number of the completion."""

    def function(completions: list[str], **_: Any) -> list[float | None]:
        values = [REWARDS[int(text)][k] for text in completions]
        return [None if math.isnan(value) else value for value in values]

    function.__name__ = NAMES[k]
    return function


def trl_numbers(folder: Path, options: Options, on_policy: bool) -> dict[str, Any]:
    """What TRL computes: advantages, loss and gradients, and the log-probabilities that they follow from."""
    args = GRPOConfig(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=len(COMPLETIONS),
        num_generations=NUM_GENERATIONS,
        max_completion_length=MAX_NEW_TOKENS,
        reward_weights=list(WEIGHTS),
        # TRL keeps the log-probabilities of the sampling only if the responses are used more than once.
        num_iterations=1 if on_policy else 2,
        use_cpu=True,
        bf16=False,
        report_to="none",
        gradient_checkpointing=False,
        **options,
    )
    trainer = FixedTrainer(
        model=LlamaForCausalLM.from_pretrained(folder),
        reward_funcs=[reward_function(k) for k in range(len(NAMES))],
        args=args,
        train_dataset=Dataset.from_list([{"prompt": " ".join(f"w{i}" for i in ids)} for ids in PROMPTS]),
        processing_class=make_tokenizer(),
    )
    model = trainer.model
    model.train()
    if args.beta:
        trainer.ref_model.load_state_dict(make_model(2).state_dict())
    trainer.current_gradient_accumulation_steps = 1
    rows = [{"prompt": "w3"} for _ in COMPLETIONS]
    inputs = trainer._generate_and_score_completions(rows)
    if not on_policy:
        model.load_state_dict(make_model(1).state_dict())
    loss = trainer._compute_loss(model, inputs)
    loss.backward()
    return {
        "advantages": inputs["advantages"].detach(),
        "loss": loss.detach(),
        "parameters": {name: p.grad.detach() for name, p in model.named_parameters() if p.grad is not None},
        "logps": trainer.logps.detach(),
        "slope": trainer.logps.grad.detach(),
        "entropy": trainer.entropies.detach(),
        "old": inputs.get("old_per_token_logps"),
        "ref": inputs.get("ref_per_token_logps"),
    }


def our_batch() -> Batch:
    """The same completions and rewards as a batch of ours: right-padded."""
    rows = [[*PROMPTS[i // NUM_GENERATIONS], *ids] for i, ids in enumerate(COMPLETIONS)]
    width = max(map(len, rows))
    input_ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    position = torch.arange(width)
    ends = torch.tensor([len(row) for row in rows])[:, None]
    starts = torch.tensor([len(PROMPTS[i // NUM_GENERATIONS]) for i in range(len(rows))])[:, None]
    scores = torch.tensor(REWARDS)
    return Batch(
        input_ids=input_ids,
        attention_mask=position < ends,
        response_mask=(position >= starts) & (position < ends),
        group=torch.arange(len(rows)) // NUM_GENERATIONS,
        truncated=torch.tensor([ids[-1] != EOS for ids in COMPLETIONS]),
        objectives=NAMES,
        scores=scores,
        rewards=scores,
    )


class LossSum(StepHook):
    """The loss of an optimizer step: the sum over its micro-batches."""

    def __init__(self) -> None:
        self.total = 0.0

    def on_loss(self, out: Any, loss: Tensor, loss_values: Mapping[str, float], microbatch: Batch) -> None:
        """Add the loss of a micro-batch."""
        self.total += float(loss.detach())


def no_prompts(step: int) -> list[Prompt]:
    """Nothing is sampled here."""
    return []


def our_numbers(spec: AlgorithmSpec, on_policy: bool) -> dict[str, Any]:
    """What the parts of the training loop compute, in micro-batches of about two rows."""
    sampler, policy = make_model(0), make_model(0 if on_policy else 1)
    models = Models(policy=sampler, frozen={"reference": make_model(2).requires_grad_(False)})
    batch = our_batch()
    batch = batch.replace(rollout_logprobs=response_logprobs(sampler, batch))
    rng = torch.Generator().manual_seed(0)
    batch, _, _ = spec.reward_steps.apply_stateful(batch, spec.reward_steps.init_state(), rng)
    for model_pass in spec.model_passes:
        batch = model_pass(batch, models, spec.temperature, len(batch))
    batch, _, _ = spec.credit.apply_stateful(batch, spec.credit.init_state(), rng)
    context = TrainingContext(
        models=Models(policy=policy, frozen=models.frozen),
        sampler=None,  # type: ignore[arg-type]
        scorers=(),
        objectives=NAMES,
        prompts_for_step=no_prompts,
        max_tokens_per_pass=20,
    )
    loss = LossSum()
    accumulate_gradients(spec, context, batch, 0, StepHooks((loss,)))
    assert batch.advantages is not None
    first_tokens = our_batch().response_mask.int().argmax(-1)
    return {
        "advantages": batch.advantages[torch.arange(len(batch)), first_tokens, 0],
        "loss": torch.tensor(loss.total),
        "parameters": {name: p.grad for name, p in policy.named_parameters() if p.grad is not None},
    }


def difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[float, float, float]:
    """Largest difference of the advantages, of the loss, and of the gradients over the largest gradient."""
    assert ours["parameters"].keys() == theirs["parameters"].keys()
    largest = max(float(g.abs().max()) for g in theirs["parameters"].values())
    slopes = max(float((ours["parameters"][n] - g).abs().max()) for n, g in theirs["parameters"].items())
    return (
        float((ours["advantages"] - theirs["advantages"]).abs().max()),
        float((ours["loss"] - theirs["loss"]).abs()),
        slopes / largest,
    )


def our_options(options: Options) -> Options:
    """The options as a recipe has them: none that has no effect."""
    if options.get("multi_objective_aggregation") == "normalize_then_sum":
        return {key: value for key, value in options.items() if key != "scale_rewards"}
    return options


def spec_of(options: Options) -> AlgorithmSpec:
    """`trl_grpo` with these options."""
    return trl_grpo(
        dict(zip(NAMES, WEIGHTS, strict=True)),
        num_generations=NUM_GENERATIONS,
        max_new_tokens=MAX_NEW_TOKENS,
        **our_options(options),
    )


def masked_advantages(spec: AlgorithmSpec, theirs: Tensor) -> Tensor:
    """TRL's advantages, 0 where the response has no loss in both."""
    truncated = our_batch().truncated
    drops = any(getattr(step, "drop_tokens", False) for step in getattr(spec.credit, "steps", ()))
    return torch.where(truncated, 0.0, theirs) if drops else theirs


def rounded(x: Tensor | None) -> Any:
    """Nested lists of numbers with 9 digits; null is NaN."""

    def digits(value: Any) -> Any:
        if isinstance(value, list):
            return [digits(item) for item in value]
        return None if math.isnan(value) else float(f"{value:.9g}")

    return None if x is None else digits(x.tolist())


def golden_case(name: str, options: Options, theirs: Mapping[str, Any]) -> dict[str, Any]:
    """One case of the golden numbers."""
    old, ref = theirs["old"], theirs["ref"]
    return {
        "name": name,
        "inputs": {
            "rewards": [[None if math.isnan(value) else value for value in row] for row in REWARDS],
            "weights": list(WEIGHTS),
            "mask": [[int(t < len(ids)) for t in range(MAX_NEW_TOKENS)] for ids in COMPLETIONS],
            "truncated": [int(ids[-1] != EOS) for ids in COMPLETIONS],
            "logps": rounded(theirs["logps"]),
            "old": rounded(theirs["logps"] if old is None else old),
            "ref": rounded(torch.zeros_like(theirs["logps"]) if ref is None else ref),
            "entropy": rounded(theirs["entropy"]),
        },
        "params": our_options(options),
        "expected": {"advantages": rounded(theirs["advantages"]), "loss": rounded(theirs["loss"])},
        "grad": {"logps": rounded(theirs["slope"])},
    }


NOTES = (
    "float32, TRL's GRPOTrainer on a random Llama with given completions: _generate_and_score_completions, "
    "then _compute_loss and its backward pass, after the weights moved unless the name says on_policy. 2 "
    "prompts x 4 completions, max_completion_length 5; rewards (8,3), null = the function returned None; "
    "weights: reward_weights. logps, old, ref, entropy, mask (8,5): by completion token; old = logps on "
    "policy. truncated (8): no EOS. params: the arguments of trl_grpo; TRL ran with the same ones, and with "
    "every scale_rewards for normalize_then_sum, where it plays no part. expected.advantages (8) are before "
    "mask_truncated_completions, which sets the mask of truncated rows to 0. grad: of the loss w.r.t. logps; "
    "the entropy bonus is not in it."
)


def record(cases: list[dict[str, Any]], file: Path) -> None:
    """Write the golden numbers, one case per line."""
    source = {
        "repo": "huggingface/trl",
        "commit": "PyPI trl 1.16.0",
        "file": "trl/trainer/grpo_trainer.py (installed package)",
        "function": "GRPOTrainer._generate_and_score_completions, GRPOTrainer._compute_loss",
    }
    lines = ",\n".join("  " + json.dumps(case) for case in cases)
    head = f'{{"source": {json.dumps(source)},\n "notes": {json.dumps(NOTES)},\n "cases": [\n'
    file.write_text(f"{head}{lines}\n ]}}\n", encoding="utf-8")


def main() -> int:
    """Compare, print the table, and record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", type=Path, help="file for the golden numbers")
    arguments = parser.parse_args()
    worst, cases = 0.0, []
    print("| options | advantages | loss | gradients |\n| --- | --- | --- | --- |")
    with TemporaryDirectory() as folder:
        make_model(0).save_pretrained(folder)
        for name, options in all_options():
            on_policy = "/on_policy" in name
            spec = spec_of(options)
            theirs = trl_numbers(Path(folder), options, on_policy)
            ours = our_numbers(spec, on_policy)
            compared = theirs | {"advantages": masked_advantages(spec, theirs["advantages"])}
            differences = difference(ours, compared)
            worst = max(worst, *differences)
            print(f"| `{name}` | " + " | ".join(f"{value:.1e}" for value in differences) + " |", flush=True)
            if "normalize_then_sum" not in name or name.endswith("/group"):
                cases.append(golden_case(name, options, theirs))
    print(f"\n{len(list(all_options()))} comparisons, largest difference {worst:.1e}, allowed {TOLERANCE:g}")
    if arguments.record:
        record(cases, arguments.record)
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
