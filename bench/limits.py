"""How near a step comes to what the machine can do: the work that must be done, over the rate it has.

The rate is that of a product of two matrices of 1024 x 1024 in the precision of the model. The work is
counted from the shapes: each prompt is read once for all its responses, in sampling, for the reference and
with gradients.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bench.wire import Worker
from bench.workloads import MADE, WORKLOADS, model_folder

SIZE = 1024


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Of a model, what its work follows from."""

    body: int
    """Weights of the layers, each of which multiplies every token once."""
    head: int
    """Weights that turn a hidden state into logits."""
    layers: int
    width: int
    """Heads times their size."""


def shape_of(folder: str) -> Shape:
    """The shape of a stored model."""
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    table = config.vocab_size * config.hidden_size
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name)
    width = config.num_attention_heads * getattr(
        config, "head_dim", config.hidden_size // config.num_attention_heads
    )
    return Shape(body=matrices, head=table, layers=config.num_hidden_layers, width=width)


def forward_flops(shape: Shape, prompts: Sequence[int], responses: Sequence[Sequence[int]]) -> float:
    """Of reading each prompt once and all responses to it, with logits where a response token is told.

    Two for each weight and token; and in the attention four for each layer, width and pair of tokens.

    Args:
        shape: Of the model.
        prompts: Tokens of each.
        responses: For each prompt the tokens of its responses.
    """
    total = 0.0
    for prompt, lengths in zip(prompts, responses, strict=True):
        read = prompt + sum(lengths)
        pairs = prompt * (prompt + 1) / 2 + sum(n * prompt + n * (n + 1) / 2 for n in lengths)
        total += (
            2 * shape.body * read + 2 * shape.head * sum(lengths) + 4 * shape.layers * shape.width * pairs
        )
    return total


def step_flops(shape: Shape, prompts: Sequence[int], responses: Sequence[Sequence[int]]) -> dict[str, float]:
    """Of a step: sampling is a forward pass, training one of the reference and the three of a gradient."""
    once = forward_flops(shape, prompts, responses)
    return {"generate": once, "train": 4 * once, "step": 5 * once}


def matrix_rate(dtype: torch.dtype, repeats: int = 30) -> float:
    """FLOPs a second of a square matrix product, the median of some."""
    a, b = (torch.randn(SIZE, SIZE).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats + 5):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * SIZE**3 / median(seconds[5:])


def stand(name: str, dtype: str, runs: int) -> str:
    """One line: the rate of the machine, and the share of it that sampling, training and the step reach."""
    workload = WORKLOADS[name]
    shape = shape_of(str(model_folder(workload.model, workload.full)))
    rate = matrix_rate(getattr(torch, dtype))
    job = {"kind": "grpo", "workload": asdict(workload), "dtype": dtype}
    with Worker("ours", job, MADE / "logs" / f"limits-{name}-{dtype}.log") as worker:
        worker.ready()
        worker.step()
        found = [worker.step() for _ in range(runs)]
    parts = []
    for figure in ("generate", "train", "step"):
        shares = []
        for numbers in found:
            rows = workload.prompts * workload.n
            prompt = round(numbers["prompt_tokens"] / rows)
            response = round(numbers["response_tokens"] / rows)
            work = step_flops(
                shape, [prompt] * workload.prompts, [[response] * workload.n] * workload.prompts
            )
            seconds = numbers["step"] - numbers["generate"] if figure == "train" else numbers[figure]
            shares.append(work[figure] / seconds / rate)
        parts.append(f"{figure} {median(shares):.0%}")
    return f"{name} {dtype}: {rate / 1e9:.0f} GFLOP/s matrix rate; of it {', '.join(parts)}"


def main() -> None:
    """A line for each workload and precision."""
    parser = argparse.ArgumentParser(prog="python -m bench.limits", description=__doc__)
    parser.add_argument(
        "--workloads", nargs="+", choices=list(WORKLOADS), default=["dialogue", "short", "long"]
    )
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    for name in asked.workloads:
        for dtype in asked.dtypes:
            print(stand(name, dtype, asked.runs), flush=True)


if __name__ == "__main__":
    main()
