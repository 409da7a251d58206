"""The rate at which this machine computes decoder layers of a given width, measured in a moment."""

import time

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_MEASURED_WIDTH = 768
"""Wider layers are measured at this width: their rate is hardly higher, and a single one takes seconds."""
MAX_MEASURED_TOKENS = 1024
MIN_LAYERS, TIME_LIMIT_SECONDS = 3, 0.04
"""Seconds after which no further layer is computed."""
LAYER_OVERHEAD = 2.0
"""Time of a layer in a run relative to this one: masks, positions, dropped padding, optimizer, decoding."""


def layer_throughput(width: int, ffn_width: int, num_tokens: int, device: torch.device) -> float:
    """Floating-point operations per second of a gated decoder layer as it runs, overhead included.

    The backward pass is taken to have the rate of the forward pass: its first call alone would take longer.

    Args:
        width: Width of the model.
        ffn_width: Width of its feed-forward layer.
        num_tokens: Tokens at a time: of a forward pass, or one per response while sampling.
        device: Where it runs.
    """
    scale = min(1.0, MAX_MEASURED_WIDTH / width)
    width, ffn_width = max(8, round(scale * width)), max(8, round(scale * ffn_width))
    tokens = max(1, min(num_tokens, MAX_MEASURED_TOKENS))
    # Constants, not draws: the random numbers of a run do not change.
    x = torch.full((tokens, width), 0.01, device=device)
    square = [torch.full((width, width), 0.01, device=device) for _ in range(4)]
    up = [torch.full((ffn_width, width), 0.01, device=device) for _ in range(2)]
    down = torch.full((width, ffn_width), 0.01, device=device)
    flops = 2 * tokens * (4 * width**2 + 3 * width * ffn_width)
    best, count, begin = float("inf"), 0, time.perf_counter()
    # The first layer starts threads and allocates; the best of several does not depend on it.
    while count < MIN_LAYERS or time.perf_counter() - begin < TIME_LIMIT_SECONDS:
        start = time.perf_counter()
        _decoder_layer(x, square, up, down)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best, count = min(best, time.perf_counter() - start), count + 1
    return flops / best / LAYER_OVERHEAD


@torch.inference_mode()
def _decoder_layer(x: Tensor, square: list[Tensor], up: list[Tensor], down: Tensor) -> Tensor:
    q, k, v = (F.linear(_normalize(x), weight) for weight in square[:3])
    x = x + F.linear(torch.softmax(q * k, -1) * v, square[3])
    normalized = _normalize(x)
    return x + F.linear(F.silu(F.linear(normalized, up[0])) * F.linear(normalized, up[1]), down)


def _normalize(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
