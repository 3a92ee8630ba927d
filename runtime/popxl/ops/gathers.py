"""Kinds of `gather` for groups, and for another layout on an IPU."""

from __future__ import annotations

from popxl.ops.indexing import gather, gather_in_groups
from popxl.tensor import Tensor


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
    groups = 1 if group_size is None else group_size
    return gather_in_groups("groupedgather", t, indices, axis, zero_OOR, groups)
