"""The reductions of collectives, by PopXL's names."""

from __future__ import annotations

from typing import Literal

CollectiveOps = Literal["add", "mean", "mul", "min", "max", "and", "or", "square_add"]

REDUCTIONS = ("add", "mean", "mul", "min", "max", "and", "or", "square_add", "local")


def to_collective_op(op: str) -> str:
    """`op`, which has to be the name of a reduction.

    Raises:
        ValueError: where it is not.
    """
    if op not in REDUCTIONS:
        raise ValueError(f"op {op!r}: allowed are {', '.join(REDUCTIONS)}")
    return op
