"""Chance as an argument: every random act draws from a generator made of (seed, step, purpose)."""

import hashlib

import numpy as np
import torch


def seed_of(seed: int, step: int, purpose: str, *more: int | str) -> int:
    """A 63-bit number that depends on every argument, the same on every machine and in every process."""
    text = "/".join(str(part) for part in (seed, step, purpose, *more))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, step: int, purpose: str, *more: int | str) -> torch.Generator:
    """A torch generator on the CPU for one purpose at one step of one run."""
    return torch.Generator().manual_seed(seed_of(seed, step, purpose, *more))


def numpy_generator(seed: int, step: int, purpose: str, *more: int | str) -> np.random.Generator:
    """The numpy generator for one purpose at one step of one run."""
    return np.random.Generator(np.random.Philox(seed_of(seed, step, purpose, *more)))
