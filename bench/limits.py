"""Hardware utilization of a training step: required FLOPs per second over the rate of a matrix product.

The rate is that of a product of two 1024 x 1024 matrices in the model's dtype. FLOPs are counted from shapes:
each prompt is processed once for all of its responses, in sampling, for the reference and with gradients.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bench.wire import Worker
from bench.workloads import BUILD_DIR, WORKLOADS, model_folder

MATRIX_SIZE = 1024


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a model that determine its FLOPs."""

    body: int
    """Weights of the layers, each used once per token."""
    head: int
    """Weights of the LM head."""
    layers: int
    width: int
    """Number of heads times head dimension."""


def shape_of(folder: str) -> Shape:
    """The shape of a stored model."""
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = config.vocab_size * config.hidden_size
    body = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name)
    width = config.num_attention_heads * getattr(
        config, "head_dim", config.hidden_size // config.num_attention_heads
    )
    return Shape(body=body, head=head, layers=config.num_hidden_layers, width=width)


def forward_flops(shape: Shape, prompts: Sequence[int], responses: Sequence[Sequence[int]]) -> float:
    """FLOPs of a forward pass over each prompt once and its responses, with logits for response tokens.

    Two per weight and token; in attention, four per layer, width and query-key pair.

    Args:
        shape: Sizes of the model.
        prompts: Tokens per prompt.
        responses: Tokens of the responses to each prompt.
    """
    total = 0.0
    for prompt, lengths in zip(prompts, responses, strict=True):
        tokens = prompt + sum(lengths)
        pairs = prompt * (prompt + 1) / 2 + sum(n * prompt + n * (n + 1) / 2 for n in lengths)
        total += (
            2 * shape.body * tokens + 2 * shape.head * sum(lengths) + 4 * shape.layers * shape.width * pairs
        )
    return total


def step_flops(shape: Shape, prompts: Sequence[int], responses: Sequence[Sequence[int]]) -> dict[str, float]:
    """FLOPs of a step: a forward pass for sampling, one for the reference, three for forward and backward."""
    once = forward_flops(shape, prompts, responses)
    return {"generate": once, "train": 4 * once, "step": 5 * once}


def matrix_rate(dtype: torch.dtype, repeats: int = 30) -> float:
    """FLOPs per second of a square matrix product, median of `repeats`."""
    a, b = (torch.randn(MATRIX_SIZE, MATRIX_SIZE).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats + 5):  # the first five warm up
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * MATRIX_SIZE**3 / median(seconds[5:])


def utilization(name: str, dtype: str, runs: int) -> str:
    """One line: the matrix rate, and the fraction of it that sampling, training and the step reach."""
    workload = WORKLOADS[name]
    shape = shape_of(str(model_folder(workload.model, workload.full_length)))
    rate = matrix_rate(getattr(torch, dtype))
    job = {"kind": "grpo", "workload": asdict(workload), "dtype": dtype}
    with Worker("ours", job, BUILD_DIR / "logs" / f"limits-{name}-{dtype}.log") as worker:
        worker.ready()
        worker.step()
        measurements = [worker.step() for _ in range(runs)]
    parts = []
    for figure in ("generate", "train", "step"):
        fractions = []
        for numbers in measurements:
            rows = workload.prompts * workload.num_generations
            prompt = round(numbers["prompt_tokens"] / rows)
            response = round(numbers["response_tokens"] / rows)
            flops = step_flops(
                shape, [prompt] * workload.prompts, [[response] * workload.num_generations] * workload.prompts
            )
            seconds = numbers["step"] - numbers["generate"] if figure == "train" else numbers[figure]
            fractions.append(flops[figure] / seconds / rate)
        parts.append(f"{figure} {median(fractions):.0%}")
    return f"{name} {dtype}: {rate / 1e9:.0f} GFLOP/s matrix rate, of which {', '.join(parts)}"


def main() -> None:
    """Print a line per workload and dtype."""
    parser = argparse.ArgumentParser(prog="python -m bench.limits", description=__doc__)
    parser.add_argument(
        "--workloads", nargs="+", choices=list(WORKLOADS), default=["dialogue", "short", "long"]
    )
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    for name in args.workloads:
        for dtype in args.dtypes:
            print(utilization(name, dtype, args.runs), flush=True)


if __name__ == "__main__":
    main()
