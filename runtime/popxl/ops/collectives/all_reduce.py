"""Reductions of tensors that the IPUs of one replica hold: here they are all in one place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

from popxl.ops import elementwise
from popxl.ops.collectives.collectives import to_collective_op
from popxl.ops.shape import identity
from popxl.tensor import Tensor

_PAIRS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": elementwise.add,
    "mean": elementwise.add,
    "square_add": elementwise.add,
    "mul": elementwise.mul,
    "max": elementwise.maximum,
    "min": lambda a, b: elementwise.negate(
        elementwise.maximum(elementwise.negate(a), elementwise.negate(b))
    ),
    "and": elementwise.logical_and,
    "or": elementwise.logical_or,
}


def all_reduce(ts: Sequence[Tensor], ipus: Sequence[int] | None = None, op: str = "add"):
    """The reduction of these tensors, once for each of them.

    Args:
        ipus: where each is; without effect here.
        op: "add", "mean", "mul", "min", "max", "and", "or", "square_add" or "local".

    Raises:
        ValueError: for another op, no tensors, or another number of IPUs.
    """
    _check(ts, ipus, op)
    if op == "local":
        return [identity(t) for t in ts]
    terms = [elementwise.mul(t, t) for t in ts] if op == "square_add" else ts
    total = reduce(_PAIRS[op], terms)
    total = elementwise.div(total, len(ts)) if op == "mean" else total
    return [identity(total) for _ in ts]


def all_reduce_identical_inputs(
    ts: Sequence[Tensor], ipus: Sequence[int] | None = None, op: str = "add"
) -> list[Tensor]:
    """The tensors as they are: only the gradient of this is a reduction."""
    _check(ts, ipus, op)
    return [identity(t) for t in ts]


all_reduce_identical_grad_inputs = all_reduce
"""Used where what follows is the same for all of them."""


def _check(ts: Sequence[Tensor], ipus: Sequence[int] | None, op: str) -> None:
    to_collective_op(op)
    if not ts or (ipus is not None and len(ipus) != len(ts)):
        raise ValueError(f"all_reduce: {len(ts)} tensors were given and these IPUs: {ipus}")
