"""Ops in which replicas take part together."""

# ruff: noqa: F401 - some are imported to be part of the interface

from __future__ import annotations

import math
from typing import Any

from popxl import dtypes
from popxl.context import get_ir
from popxl.ops._build import axis_of, emit_inplace, emit_one, need_number, tensor_operand
from popxl.ops.collectives.all_reduce import (
    all_reduce,
    all_reduce_identical_grad_inputs,
    all_reduce_identical_inputs,
)
from popxl.ops.collectives.collectives import REDUCTIONS
from popxl.replica_grouping import ReplicaGrouping
from popxl.tensor import Tensor, TensorSpec


def replicated_all_reduce(
    t: Tensor, op: str = "add", group: ReplicaGrouping | None = None
) -> Tensor:
    """Every member of a group gets the reduction of the members' tensors.

    Args:
        op: "add", "mean", "mul", "min", "max", "and", "or", "square_add" or "local" (no exchange).
        group: who takes part; all replicas where None.
    """
    group = _checked("replicated_all_reduce", t, op, group)
    return emit_one("all_reduce", [t], t.spec, reduction=op, group=group)


def replicated_all_reduce_(
    t: Tensor, op: str = "add", group: ReplicaGrouping | None = None
) -> Tensor:
    """`replicated_all_reduce` that writes to `t`."""
    group = _checked("replicated_all_reduce_", t, op, group)
    return emit_inplace("all_reduce", [t], reduction=op, group=group)


def replicated_all_gather(
    t: Tensor,
    axis: int = 0,
    group: ReplicaGrouping | None = None,
    output_shape: Any = "auto",
) -> Tensor:
    """Every member of a group gets the members' tensors, in the order of the replicas.

    Args:
        output_shape: "concat": one after another along `axis`; "new_axis": along a new axis;
            "meta_shape": the tensor's meta shape; "auto": the meta shape where the tensor has
            one, else "concat" for tensors of rank 1 or more and "new_axis" for scalars.

    Raises:
        ValueError: for another `output_shape`, or groups of different sizes.
    """
    group = _checked("replicated_all_gather", t, "add", group)
    allowed = ("auto", "concat", "new_axis", "meta_shape")
    if output_shape not in allowed:
        raise ValueError(
            f"replicated_all_gather: output_shape {output_shape!r}: "
            f"allowed are {', '.join(allowed)}"
        )
    if output_shape == "auto":
        output_shape = "meta_shape" if t.meta_shape else "concat" if t.rank else "new_axis"
    if output_shape == "meta_shape" and not t.meta_shape:
        raise ValueError(f"replicated_all_gather: {t.name} has no meta shape")
    if output_shape == "meta_shape":
        return _whole(t, group)
    new_axis = output_shape == "new_axis"
    axis = axis_of("replicated_all_gather", t, axis, extra=int(new_axis))
    size = group.group_size
    if new_axis:
        shape = (*t.shape[:axis], size, *t.shape[axis:])
    else:
        shape = (*t.shape[:axis], size * t.shape[axis], *t.shape[axis + 1 :])
    return _gather(t, TensorSpec(shape, t.dtype), group, axis, new_axis)


def replicated_reduce_scatter(
    t: Tensor,
    op: str = "add",
    group: ReplicaGrouping | None = None,
    configure_output_for_replicated_tensor_sharding: bool = False,
) -> Tensor:
    """Member i of a group gets the i-th of equal flat parts of the reduction.

    Args:
        configure_output_for_replicated_tensor_sharding: give the part the whole's shape as its
            meta shape, so that `replicated_all_gather` restores it.

    Returns:
        One dimension of `ceil(elements / group size)`; the last part is filled up with zeros.
    """
    group = _checked("replicated_reduce_scatter", t, op, group)
    whole = t.shape if configure_output_for_replicated_tensor_sharding else ()
    spec = TensorSpec((math.ceil(t.nelms / group.group_size),), t.dtype, whole)
    return emit_one("reduce_scatter", [t], spec, reduction=op, group=group)


def replica_sharded_slice(t: Tensor, group: ReplicaGrouping | None = None) -> Tensor:
    """Member i of a group gets the i-th of equal flat parts of its own `t`.

    Returns:
        One dimension of `ceil(elements / group size)`, the last part filled up with zeros; its
        meta shape is the shape of `t`, so that `replicated_all_gather` restores it.
    """
    return replicated_reduce_scatter(t, "local", group, True)


def replicated_slice(t: Tensor, axis: int = 0, group: ReplicaGrouping | None = None) -> Tensor:
    """Member i of a group gets the i-th of equal slices of its own `t` along `axis`.

    Returns:
        A slice of the same rank. Where slices have length 1 the axis is left out, and then, as in
        PopXL, the first axis that stays comes to be where the one that is left out was.

    Raises:
        ValueError: where the group size does not divide the axis.
    """
    group = _checked("replicated_slice", t, "local", group)
    axis = axis_of("replicated_slice", t, axis)
    size, members = t.shape[axis], group.group_size
    if size % members:
        raise ValueError(
            f"replicated_slice: axis {axis} of {t.name} {t.shape} cannot be split evenly over "
            f"the {members} replicas of a group"
        )
    from popxl.ops.shape import reshape, transpose

    rest = (*t.shape[:axis], *t.shape[axis + 1 :])
    first = transpose(t, (axis, *(i for i in range(t.rank) if i != axis))) if axis else t
    part = replicated_reduce_scatter(first, "local", group)
    shape = rest if size == members else (size // members, *rest)
    part = reshape(part, shape)
    if not axis or not shape:
        return part
    order = list(range(1, len(shape)))
    order.insert(axis, 0)
    return transpose(part, order)


def _whole(t: Tensor, group: ReplicaGrouping) -> Tensor:
    """The tensor of the meta shape of `t` whose flat parts the members hold."""
    from popxl.ops.indexing import slice as pick
    from popxl.ops.shape import flatten, reshape

    elements = math.prod(t.meta_shape)
    if group.group_size * t.nelms < elements:
        raise ValueError(
            f"replicated_all_gather: {t.name} is a part, {t.shape}, of a tensor of shape "
            f"{t.meta_shape}, which {group.group_size} replicas do not hold between them"
        )
    flat = flatten(t) if t.rank != 1 else t
    spec = TensorSpec((group.group_size * t.nelms,), t.dtype)
    gathered = _gather(flat, spec, group, 0, False)
    filled = spec.shape[0] > elements
    return reshape(pick(gathered, stop=elements) if filled else gathered, t.meta_shape)


def _gather(
    t: Tensor, spec: TensorSpec, group: ReplicaGrouping, axis: int, new_axis: bool
) -> Tensor:
    return emit_one("all_gather", [t], spec, group=group, axis=axis, new_axis=new_axis)


def _checked(kind: str, t: Tensor, op: str, group: ReplicaGrouping | None) -> ReplicaGrouping:
    tensor_operand(kind, t)
    if op not in REDUCTIONS:
        raise ValueError(f"{kind}: op {op!r}: allowed are {', '.join(REDUCTIONS)}")
    if op in ("and", "or") and t.dtype != dtypes.bool:
        raise TypeError(f"{kind}: op {op!r} needs a bool tensor, {t.name} is {t.dtype}")
    if op not in ("and", "or", "local"):
        need_number(kind, t)
    ir = get_ir()
    group = ir.replica_grouping() if group is None else group
    if not isinstance(group, ReplicaGrouping):
        raise TypeError(f"{kind}: the group must be a ReplicaGrouping, got {group!r}")
    if len(group.assignment) != ir.replication_factor:
        raise ValueError(
            f"{kind}: the group is of {len(group.assignment)} replicas, the Ir has "
            f"{ir.replication_factor}"
        )
    return group
