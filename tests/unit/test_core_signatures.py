"""The checks of signatures that run in every other test."""

from dataclasses import dataclass

import pytest
import torch
from beartype import beartype
from jaxtyping import Float, TypeCheckError, config
from torch import Tensor

from support.signatures import check_signature

check = check_signature(typechecker=beartype)


@check
def scale(rows: Float[Tensor, "B T"], weights: Float[Tensor, " B"], times: int = 1) -> Float[Tensor, "B T"]:
    return (rows.sum(1) if times == 0 else rows) * (weights if times == 0 else weights[:, None])


@check
def scale_columns(rows: Float[Tensor, "B T"], weights: Float[Tensor, " T"]) -> Float[Tensor, "B T"]:
    """Calls a function whose axes of the same names have other sizes."""
    return scale(rows.T, weights).T


@check
def make_point(x: "int | Point") -> "Point":
    return Point(x)


@check
@dataclass(frozen=True)
class Point:
    x: int


@dataclass(frozen=True)
class Labelled(Point):
    label: str = ""

    def __post_init__(self):
        assert type(self.x) is int


def test_calls_that_fit_pass():
    assert scale_columns(torch.ones(2, 3), torch.arange(3.0)).tolist() == [[0, 1, 2]] * 2
    assert make_point(3) == Point(x=3)
    assert check(Labelled)(1, "a").label == "a"


@pytest.mark.parametrize(
    "call",
    [
        lambda: scale(torch.ones(2, 3), torch.ones(3)),
        lambda: scale(torch.ones(2, 3, dtype=torch.long), torch.ones(2)),
        lambda: scale(torch.ones(2, 3), torch.ones(2), times=1.0),
        lambda: scale(torch.ones(2, 3), torch.ones(2), times=0),
        lambda: scale_columns(torch.ones(2, 3), torch.ones(2)),
        lambda: Point("x"),
        lambda: make_point("x"),
        lambda: make_point(Point(1)),
    ],
    ids=[
        "sizes",
        "dtype",
        "type",
        "result",
        "sizes of a nested call",
        "field",
        "quoted",
        "field of a result",
    ],
)
def test_calls_that_do_not_fit_are_refused(call):
    with pytest.raises(TypeCheckError):
        call()


def test_checks_can_be_disabled():
    config.update("jaxtyping_disable", True)
    try:
        assert Point("x").x == "x"
    finally:
        config.update("jaxtyping_disable", False)
    with pytest.raises(TypeCheckError):
        Point("x")
