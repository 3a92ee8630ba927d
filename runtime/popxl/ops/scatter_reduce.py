"""Ops that gather up what is scattered: several elements at one index are reduced."""

from __future__ import annotations

import math

from popxl.ops._build import (
    axis_of,
    check_groups,
    emit_one,
    need_int,
    need_number,
    same_dtype,
    tensor_operand,
)
from popxl.tensor import Tensor, TensorSpec

REDUCTIONS = ("sum", "min", "max", "none")


def scatter_reduce(
    data: Tensor,
    indices: Tensor,
    reduction: str,
    initial_values: Tensor | None = None,
    axis: int = 0,
    axis_size: int | None = None,
    enable_index_broadcast: bool = True,
    available_memory_proportion: float | None = None,
) -> Tensor:
    """For each index along `axis` the reduction of the elements of `data` that go there.

    Args:
        indices: integers of the shape of `data`, or one for each element along `axis` (a vector,
            with axes of size 1 where wanted). With `enable_index_broadcast=False`: of the rank of
            `data` and in no axis longer; only the elements at its own places are then taken.
        reduction: "sum", "min", "max", or "none" (one of the elements; which one is not said).
        initial_values: takes part in the reduction; without it, an index that nothing goes to
            gets 0.
        axis_size: of the result; that of `initial_values` where None.

    Returns:
        A tensor of the shape of `initial_values`; without these of that of `data` (of `indices`
        where these are not broadcast), with `axis_size` along `axis`.

    Raises:
        TypeError: where dtypes do not fit.
        ValueError: where shapes do not fit, or for another reduction.
    """
    return _emit(
        "scatter_reduce", data, indices, reduction, initial_values, axis, axis_size, 1,
        enable_index_broadcast,
    )  # fmt: skip


def grouped_scatter_reduce(
    data: Tensor,
    indices: Tensor,
    reduction: str,
    initial_values: Tensor | None = None,
    axis: int = 0,
    axis_size: int | None = None,
    group_size: int = 1,
    enable_index_broadcast: bool = True,
    available_memory_proportion: float | None = None,
) -> Tensor:
    """`scatter_reduce` in each of `group_size` groups, which are the first axis of all tensors.

    Args:
        axis: of `data`, and not the first one where there are several groups.

    Raises:
        ValueError: where a first axis is not of size `group_size`, or as `scatter_reduce`.
    """
    return _emit(
        "grouped_scatter_reduce", data, indices, reduction, initial_values, axis, axis_size,
        group_size, enable_index_broadcast,
    )  # fmt: skip


def _emit(
    kind: str,
    data: Tensor,
    indices: Tensor,
    reduction: str,
    initial: Tensor | None,
    axis: int,
    axis_size: int | None,
    groups: int,
    broadcast: bool,
) -> Tensor:
    axis = axis_of(kind, tensor_operand(kind, data), axis)
    need_number(kind, data)
    need_int(kind, tensor_operand(kind, indices), "indices")
    if reduction not in REDUCTIONS:
        raise ValueError(f"{kind}: reduction {reduction!r}: allowed are {', '.join(REDUCTIONS)}")
    check_groups(kind, groups, axis, data, indices, *([] if initial is None else [initial]))
    at = indices.shape
    if broadcast:
        at = _one_for_each(kind, data, indices, axis, groups > 1)
    else:
        _check_within(kind, indices, data)
    out = _result(kind, data if broadcast else indices, initial, axis, axis_size)
    spec = TensorSpec(out, data.dtype)
    inputs = [data, indices]
    if initial is not None:
        same_dtype(kind, data, initial)
        inputs.append(initial)
    if initial is not None or broadcast:
        _check_kept(kind, data if broadcast else indices, out, axis, broadcast)
    given = {"axis": axis, "reduction": reduction, "at": at, "broadcast": bool(broadcast)}
    return emit_one("scatter_reduce", inputs, spec, **given)


def _one_for_each(
    kind: str, data: Tensor, indices: Tensor, axis: int, grouped: bool
) -> tuple[int, ...]:
    """The shape in which the indices broadcast to that of `data`."""
    if indices.shape == data.shape:
        return indices.shape
    wanted = [1] * data.rank
    wanted[axis] = data.shape[axis]
    if grouped:
        wanted[0] = data.shape[0]
    lengths = [size for size in indices.shape if size != 1]
    if lengths != [size for size in wanted if size != 1] or math.prod(wanted) != indices.nelms:
        raise ValueError(
            f"{kind}: indices {indices.shape} must be of the shape of {data.name} {data.shape}, or "
            f"one for each element along axis {axis}"
        )
    return tuple(wanted)


def _check_within(kind: str, indices: Tensor, other: Tensor) -> None:
    longer = any(n > room for n, room in zip(indices.shape, other.shape, strict=False))
    if indices.rank != other.rank or longer:
        raise ValueError(
            f"{kind}: indices {indices.shape} must be of the rank of {other.name} {other.shape}, "
            "and no longer along any axis"
        )


def _result(
    kind: str, like: Tensor, initial: Tensor | None, axis: int, axis_size: int | None
) -> tuple[int, ...]:
    if initial is not None:
        tensor_operand(kind, initial)
        if initial.rank != like.rank or axis_size not in (None, initial.shape[axis]):
            raise ValueError(
                f"{kind}: initial_values {initial.shape} must be of rank {like.rank}, and of size "
                f"{axis_size} (axis_size) along axis {axis}"
            )
        return initial.shape
    if axis_size is None:
        raise ValueError(f"{kind}: one of initial_values and axis_size is needed")
    if axis_size < 1:
        raise ValueError(f"{kind}: axis_size must be at least 1, got {axis_size}")
    return (*like.shape[:axis], int(axis_size), *like.shape[axis + 1 :])


def _check_kept(kind: str, like: Tensor, out: tuple[int, ...], axis: int, equal: bool) -> None:
    """Along the other axes the result must be as long as what is scattered, or at least as long."""
    for other, (size, room) in enumerate(zip(like.shape, out, strict=True)):
        if other != axis and (size != room if equal else size > room):
            raise ValueError(
                f"{kind}: initial_values {out} do not fit {like.name} {like.shape} along axis "
                f"{other}"
            )
