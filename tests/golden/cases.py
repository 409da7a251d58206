"""The numbers of published code: one pytest parameter a case, and how close is close enough.

The folder is $GOLDEN_DIR, or `golden` of the shared folder. Its README holds the tolerance of every topic.
"""

import json
import math
import os
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shared import ROOT

if "GOLDEN_DIR" in os.environ:
    FOLDER = Path(os.environ["GOLDEN_DIR"])
    assert FOLDER.is_dir(), f"GOLDEN_DIR is {FOLDER}, which is no folder"
else:
    FOLDER = Path(os.environ.get("PARETUNE_SHARED", ROOT.parent / "shared")) / "golden"
    if not FOLDER.is_dir():
        pytest.skip("needs golden of the shared folder, which is not here", allow_module_level=True)

LEAST = 1e-3
"""Outputs smaller than this are compared as if their largest magnitude were this."""


@dataclass(frozen=True)
class Case:
    """One call of published code: what went in, what came out."""

    topic: str
    name: str
    inputs: dict[str, Any]
    params: dict[str, Any]
    expected: Any
    """Named outputs; the string "error" where the published code raises."""
    grad: dict[str, Any] = field(default_factory=dict)

    @property
    def raises(self) -> bool:
        """The published code raises here; ours may."""
        return self.expected == "error" or (
            isinstance(self.expected, dict) and self.expected.get("error") is True
        )

    def input(self, key: str) -> Tensor:
        """An input as float64; null is NaN."""
        return numbers(self.inputs[key])

    def check(self, actual: Any, expected: Any) -> None:
        """The two agree within the tolerance of the topic."""
        close(actual, expected, tolerance(self.topic))


@cache
def load(topic: str) -> tuple[Case, ...]:
    """All cases of a topic."""
    file = json.loads((FOLDER / f"{topic}.json").read_text(encoding="utf-8"))
    return tuple(
        Case(
            topic,
            c["name"],
            c["inputs"],
            c["params"],
            "error" if c.get("error") is True else c["expected"],
            c.get("grad") or {},
        )
        for c in file["cases"]
    )


def cases(topic: str, *starts: str) -> list[Any]:
    """The cases of a topic as pytest parameters, or only those whose name starts with one of `starts`.

    Call it with literal strings: test_answered.py reads them from the source to know what is answered.
    """
    found = [c for c in load(topic) if not starts or c.name.startswith(starts)]
    assert found, f"{topic} has no case that starts with {' or '.join(starts)}"
    return [pytest.param(c, id=f"{topic}-{c.name}") for c in found]


@cache
def tolerances() -> dict[str, float]:
    """Tolerance of every topic, from the tables of the README; exact is 0."""
    rows = re.findall(r"^\| `(\w+)` \| \d+ \| (\S+) \|", (FOLDER / "README.md").read_text(), re.MULTILINE)
    return {topic: 0.0 if tol == "exact" else float(tol) for topic, tol in rows}


def tolerance(topic: str) -> float:
    """How close is close enough."""
    return tolerances()[topic]


def numbers(x: Any) -> Tensor:
    """Nested lists of numbers, "NaN", "Infinity" and null (NaN) as a float64 tensor."""
    return torch.tensor(_floats(x), dtype=torch.float64)


def _floats(x: Any) -> Any:
    if isinstance(x, list):
        return [_floats(y) for y in x]
    return math.nan if x is None else float(x)


def close(actual: Any, expected: Any, tol: float) -> None:
    """|a - b| <= tol * max(largest |b|, 1e-3); NaN equals NaN; infinities by sign."""
    a = actual.detach().double() if isinstance(actual, Tensor) else numbers(actual)
    b = numbers(expected)
    assert a.shape == b.shape, f"shape {tuple(a.shape)} instead of {tuple(b.shape)}"
    assert torch.equal(a.isnan(), b.isnan()), f"NaN in other places:\n{a}\ninstead of\n{b}"
    assert torch.equal(a.isinf() * a.sign().nan_to_num(), b.isinf() * b.sign().nan_to_num()), f"{a}\n{b}"
    finite = b.isfinite()
    most = max(float(b[finite].abs().max()) if finite.any() else 0.0, LEAST)
    gap = float((a[finite] - b[finite]).abs().max()) if finite.any() else 0.0
    assert gap <= tol * most, f"off by {gap:.3g}, allowed {tol * most:.3g}:\n{a}\ninstead of\n{b}"
