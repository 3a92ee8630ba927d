"""Ops in which replicas take part together."""

from __future__ import annotations

import math
from typing import Any

from popxl import dtypes
from popxl.context import get_ir
from popxl.ops._build import axis_of, emit_inplace, emit_one, need_number, tensor_operand
from popxl.replica_grouping import ReplicaGrouping
from popxl.tensor import Tensor, TensorSpec

REDUCTIONS = ("add", "mean", "mul", "min", "max", "and", "or", "square_add", "local")


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
    new_axis = output_shape == "new_axis"
    axis = axis_of("replicated_all_gather", t, axis, extra=int(new_axis))
    size = group.group_size
    if new_axis:
        shape = (*t.shape[:axis], size, *t.shape[axis:])
    else:
        shape = (*t.shape[:axis], size * t.shape[axis], *t.shape[axis + 1 :])
    gathered = emit_one(
        "all_gather", [t], TensorSpec(shape, t.dtype), group=group, axis=axis, new_axis=new_axis
    )
    if output_shape != "meta_shape":
        return gathered
    from popxl.ops.indexing import slice as pick
    from popxl.ops.shape import flatten, reshape

    whole = math.prod(t.meta_shape)
    return reshape(pick(flatten(gathered), stop=whole), t.meta_shape)


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
