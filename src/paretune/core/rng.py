"""Chance as an argument: every random act draws from a generator made of (seed, step, purpose)."""

import hashlib

import numpy as np
import torch


def derive_seed(seed: int, step: int, purpose: str, *extra: int | str) -> int:
    """A 63-bit number that depends on every argument, the same on every machine and in every process."""
    text = "/".join(str(part) for part in (seed, step, purpose, *extra))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_generator(seed: int, step: int, purpose: str, *extra: int | str) -> torch.Generator:
    """A torch generator on the CPU for one purpose at one step of one run."""
    return torch.Generator().manual_seed(derive_seed(seed, step, purpose, *extra))


def numpy_generator(seed: int, step: int, purpose: str, *extra: int | str) -> np.random.Generator:
    """The numpy generator for one purpose at one step of one run."""
    return np.random.Generator(np.random.Philox(derive_seed(seed, step, purpose, *extra)))
