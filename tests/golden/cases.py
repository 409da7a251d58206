"""The numbers of published code in data/: one pytest parameter per case, with a tolerance per topic."""

import json
import math
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

DATA = Path(__file__).parent / "data"
"""One JSON file per topic, and a README with the schema, the conventions and the tolerance of each topic."""
MIN_SCALE = 1e-3
"""Outputs smaller than this are compared as if their largest absolute value were this."""


@dataclass(frozen=True)
class Case:
    """One call of published code: its inputs and outputs."""

    topic: str
    name: str
    inputs: dict[str, Any]
    params: dict[str, Any]
    expected: Any
    """Named outputs; the string "error" if the published code raises."""
    grad: dict[str, Any] = field(default_factory=dict)

    @property
    def raises(self) -> bool:
        """The published code raises here; ours may too."""
        return self.expected == "error" or (
            isinstance(self.expected, dict) and self.expected.get("error") is True
        )

    def input(self, key: str) -> Tensor:
        """An input as float64; null is NaN."""
        return numbers(self.inputs[key])

    def check(self, actual: Any, expected: Any) -> None:
        """Assert that both agree within the tolerance of the topic."""
        close(actual, expected, tolerance(self.topic))


@cache
def load(topic: str) -> tuple[Case, ...]:
    """All cases of a topic."""
    file = json.loads((DATA / f"{topic}.json").read_text(encoding="utf-8"))
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

    Call it with literal strings: test_answered.py reads them from the source.
    """
    matches = [c for c in load(topic) if not starts or c.name.startswith(starts)]
    assert matches, f"{topic} has no case that starts with {' or '.join(starts)}"
    return [pytest.param(c, id=f"{topic}-{c.name}") for c in matches]


@cache
def tolerances() -> dict[str, float]:
    """Tolerance of every topic, from the tables of the README; "exact" is 0."""
    rows = re.findall(r"^\| `(\w+)` \| \d+ \| (\S+) \|", (DATA / "README.md").read_text(), re.MULTILINE)
    return {topic: 0.0 if tol == "exact" else float(tol) for topic, tol in rows}


def tolerance(topic: str) -> float:
    """Tolerance of one topic."""
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
    scale = max(float(b[finite].abs().max()) if finite.any() else 0.0, MIN_SCALE)
    error = float((a[finite] - b[finite]).abs().max()) if finite.any() else 0.0
    assert error <= tol * scale, f"off by {error:.3g}, allowed {tol * scale:.3g}:\n{a}\ninstead of\n{b}"
