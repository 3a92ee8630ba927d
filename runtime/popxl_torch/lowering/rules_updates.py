"""How ops that reduce at indices or accumulate become torch."""

from __future__ import annotations

from typing import Any

from popxl.graph import Op
from torch.fx import Node

from popxl_torch.backends.reference import functions as kernels
from popxl_torch.backends.reference import updates
from popxl_torch.lowering.rules import Emitter, aligned, rule


@rule("scatter_reduce")
def _scatter_reduce(b: Emitter, op: Op, args: list[Node]) -> Node:
    shape, (data, indices, *initial) = op.outputs[0].shape, args
    return b.call(
        updates.scatter_reduce,
        data,
        b.call(kernels.reshape, indices, b.lead, op.at),
        *initial,
        lead=b.lead,
        axis=op.axis - len(shape),
        shape=shape,
        reduction=op.reduction,
        broadcast=op.broadcast,
    )


@rule("accumulate")
def _accumulate(b: Emitter, op: Op, args: list[Node]) -> Node:
    t, x, *factor = aligned(b, op, args, op.inputs[0].rank)
    return b.call(updates.accumulate, t, x, _factor(op, factor), op.how)


@rule("accumulator_scale")
def _accumulator_scale(b: Emitter, op: Op, args: list[Node]) -> Node:
    t, *factor = aligned(b, op, args, op.inputs[0].rank)
    return b.call(updates.scale, t, _factor(op, factor))


@rule("sparse_accumulate")
def _sparse_accumulate(b: Emitter, op: Op, args: list[Node]) -> Node:
    t, x, indices, *factor = args
    return b.call(updates.sparse_accumulate, t, x, indices, b.lead, op.axis, _factor(op, factor))


def _factor(op: Op, tensors: list[Node]) -> Any:
    """The factor: the input that is left, or the number that was given, or None."""
    return tensors[0] if tensors else op.factor
