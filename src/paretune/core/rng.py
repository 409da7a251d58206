"""Random generators derived from (seed, step, purpose), so that a resumed run draws the same numbers.

The purpose strings are hashed: changing one changes every number drawn for it.
"""

import hashlib

import numpy as np
import torch


def derive_seed(seed: int, step: int, purpose: str, *extra: int | str) -> int:
    """A 63-bit seed from all arguments, the same on every host and in every process."""
    text = "/".join(str(part) for part in (seed, step, purpose, *extra))
    # 63 bits: torch.Generator.manual_seed takes a signed 64-bit integer.
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_generator(seed: int, step: int, purpose: str, *extra: int | str) -> torch.Generator:
    """A torch generator for one purpose at one step of a run; on the CPU, so that devices draw the same."""
    return torch.Generator().manual_seed(derive_seed(seed, step, purpose, *extra))


def numpy_generator(seed: int, step: int, purpose: str, *extra: int | str) -> np.random.Generator:
    """A numpy generator for one purpose at one step of a run."""
    return np.random.Generator(np.random.Philox(derive_seed(seed, step, purpose, *extra)))
