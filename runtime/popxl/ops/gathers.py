"""Kinds of `gather` for groups, and for another layout on an IPU."""

from __future__ import annotations

from popxl.ops._build import axis_of, emit_one, need_int, tensor_operand
from popxl.ops.indexing import gather
from popxl.tensor import Tensor, TensorSpec, constant


def tied_gather(
    t: Tensor,
    indices: Tensor,
    axis: int = 0,
    available_memory_proportion: float | None = None,
    zero_OOR: bool = False,  # noqa: N803
) -> Tensor:
    """`gather`; how an IPU lays out the indices is no matter here."""
    return gather(t, indices, axis, available_memory_proportion, zero_OOR)


def groupedgather(
    t: Tensor,
    indices: Tensor,
    axis: int = 0,
    group_size: int | None = 1,
    available_memory_proportion: float | None = None,
    zero_OOR: bool = False,  # noqa: N803
) -> Tensor:
    """`gather` in each of `group_size` groups with indices of its own.

    Args:
        t: `(group_size, ...)`; one group has no such axis.
        indices: `(group_size, ...)`, integers; the axes after the first take the place of `axis`.
        axis: of `t`, and not the first one where there are several groups.

    Raises:
        ValueError: where a first axis is not of size `group_size`, or `axis` is it.
    """
    if group_size in (None, 1):
        return gather(t, indices, axis, available_memory_proportion, zero_OOR)
    axis = axis_of("groupedgather", tensor_operand("groupedgather", t), axis)
    indices = indices if isinstance(indices, Tensor) else constant(indices)
    need_int("groupedgather", indices, "indices")
    for each in (t, indices):
        if each.shape[:1] != (group_size,):
            raise ValueError(
                f"groupedgather: {each.name} {each.shape} must have {group_size} groups along its "
                "first axis"
            )
    if axis == 0:
        raise ValueError(f"groupedgather: axis 0 of {t.name} {t.shape} is that of the groups")
    if not t.shape[axis] and indices.nelms:
        raise ValueError(f"groupedgather: axis {axis} of {t.name} {t.shape} has no elements")
    shape = (*t.shape[:axis], *indices.shape[1:], *t.shape[axis + 1 :])
    spec = TensorSpec(shape, t.dtype)
    given = {"axis": axis, "zero_out_of_range": zero_OOR, "grouped": True}
    return emit_one("gather", [t, indices], spec, **given)
