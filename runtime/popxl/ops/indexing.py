"""Ops that pick elements or replace some."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from popxl import dtypes
from popxl.ops._build import (
    axis_of,
    check_groups,
    emit_inplace,
    emit_one,
    need_int,
    operands,
    same_dtype,
    tensor_operand,
)
from popxl.ops.elementwise import where
from popxl.ops.shape import reshape
from popxl.tensor import Constant, Tensor, TensorSpec, constant
from popxl.utils import is_torch

_slice = slice
Bounds = int | Sequence[int | None] | None


def slice(
    t: Tensor,
    start: Bounds = None,
    stop: Bounds = None,
    step: Bounds = None,
    axis: int | Sequence[int] | None = None,
) -> Tensor:
    """`t[start:stop:step]`, along one axis or, with lists, along several (from the first on).

    Raises:
        ValueError: where the lists differ in length, an axis is named twice or a step is 0.
    """
    return _sliced("slice", t, start, stop, step, axis)


def slice_(
    t: Tensor,
    start: Bounds = None,
    stop: Bounds = None,
    step: Bounds = None,
    axis: int | Sequence[int] | None = None,
) -> Tensor:
    """`slice` that shares its elements with `t`: what is written to one is seen in the other.

    Raises:
        ValueError: as `slice`.
    """
    return _sliced("slice_", t, start, stop, step, axis, alias=True)


def _sliced(
    kind: str, t: Tensor, start: Bounds, stop: Bounds, step: Bounds, axis: Any, **attributes: Any
) -> Tensor:
    tensor_operand(kind, t)
    bounds = (start, stop, step, axis)
    given: list[Any] = [[v] if isinstance(v, int | np.integer) else v for v in bounds]
    lengths = {len(v) for v in given if v is not None}
    if len(lengths) > 1:
        raise ValueError(f"{kind}: start, stop, step and axis have lengths {sorted(lengths)}")
    if not lengths or given[:3] == [None, None, None]:
        return t
    count = lengths.pop()
    starts, stops, steps = ([None] * count if v is None else v for v in given[:3])
    axes = [axis_of(kind, t, a) for a in given[3] or range(count)]
    if len(set(axes)) < count:
        raise ValueError(f"{kind}: axes {axes} of {t.name} name an axis twice")
    picks = zip(axes, starts, stops, steps, strict=True)
    return _pick(t, {a: _slice(*bounds) for a, *bounds in picks}, **attributes)


def subsample(t: Tensor, strides: int | Iterable[int]) -> Tensor:
    """Every n-th element along each axis, from the first on.

    Args:
        strides: one for each axis, from the first on; the others have 1.

    Raises:
        ValueError: where there are more strides than axes, or one is below 1.
    """
    tensor_operand("subsample", t)
    steps = (strides,) if isinstance(strides, int | np.integer) else tuple(strides)
    if len(steps) > t.rank or any(step < 1 for step in steps):
        raise ValueError(
            f"subsample: strides must be at most {t.rank} integers from 1 on for {t.name} "
            f"{t.shape}, got {steps}"
        )
    return _pick(t, {axis: _slice(None, None, step) for axis, step in enumerate(steps)})


def _pick(t: Tensor, picks: dict[int, _slice], **attributes: Any) -> Tensor:
    ranges = []
    for axis, size in enumerate(t.shape):
        pick = picks.get(axis, _slice(None))
        if pick.step == 0:
            raise ValueError(f"slice: the step along axis {axis} of {t.name} is 0")
        ranges.append(range(*pick.indices(size)))
    spec = TensorSpec((len(r) for r in ranges), t.dtype)
    bounds = tuple((r.start, r.step, len(r)) for r in ranges)
    return emit_one("slice", [t], spec, bounds=bounds, **attributes)


def getitem(t: Tensor, key: Any) -> Tensor:
    """What `t[key]` means; see `Tensor.__getitem__`."""
    if isinstance(key, Tensor | np.ndarray | list) or is_torch(key):
        picked = key if isinstance(key, Tensor) else constant(key)
        if picked.dtype == dtypes.bool:
            return where(picked, t, 0)
        if not picked.dtype.is_int:
            raise TypeError(f"{t.name}[{key!r}]: an index must hold integers or bools")
        return gather(t, picked, axis=0)
    keys = _without_ellipsis(t, key if isinstance(key, tuple) else (key,))
    if len(keys) > t.rank:
        raise IndexError(f"{t.name} of shape {t.shape} takes {t.rank} indices, got {len(keys)}")
    picks, dropped = {}, []
    for axis, item in enumerate(keys):
        if isinstance(item, int | np.integer) and not isinstance(item, bool):
            if not -t.shape[axis] <= item < t.shape[axis]:
                raise IndexError(f"index {item} is outside axis {axis} of {t.name} {t.shape}")
            at = int(item) % t.shape[axis]
            picks[axis] = _slice(at, at + 1)
            dropped.append(axis)
        elif isinstance(item, _slice):
            picks[axis] = item
        else:
            raise TypeError(f"{t.name}[{item!r}]: an index must be an integer, a slice or a tensor")
    picked = _pick(t, picks)
    if not dropped:
        return picked
    return reshape(picked, [s for a, s in enumerate(picked.shape) if a not in dropped])


def _without_ellipsis(t: Tensor, keys: tuple) -> tuple:
    """The keys with the first `...` replaced by the axes it stands for."""
    at = next((i for i, item in enumerate(keys) if item is Ellipsis), None)
    if at is None:
        return keys
    missing = t.rank - (len(keys) - 1)
    return (*keys[:at], *[_slice(None)] * missing, *keys[at + 1 :])


def gather(
    t: Tensor,
    indices: Tensor,
    axis: int = 0,
    available_memory_proportion: float | None = None,
    zero_OOR: bool = False,  # noqa: N803
) -> Tensor:
    """The slices of `t` at `indices` along `axis`.

    Args:
        indices: integers of any shape, which takes the place of the axis.
        zero_OOR: give zeros for indices out of range (otherwise an error when it runs).
    """
    return gather_in_groups("gather", t, indices, axis, zero_OOR)


def gather_in_groups(
    kind: str, t: Tensor, indices: Tensor, axis: int, zero_out_of_range: bool, groups: int = 1
) -> Tensor:
    """`gather` in groups that are the first axis of both, where there are several."""
    axis = axis_of(kind, tensor_operand(kind, t), axis)
    indices = indices if isinstance(indices, Tensor) else constant(indices)
    need_int(kind, indices, "indices")
    check_groups(kind, groups, axis, t, indices)
    if not t.shape[axis] and indices.nelms:
        raise ValueError(f"{kind}: axis {axis} of {t.name} {t.shape} has no elements")
    shape = (*t.shape[:axis], *indices.shape[groups > 1 :], *t.shape[axis + 1 :])
    given = {"axis": axis, "zero_out_of_range": zero_out_of_range, "grouped": groups > 1}
    return emit_one("gather", [t, indices], TensorSpec(shape, t.dtype), **given)


def scatter(
    t: Tensor,
    indices: Tensor,
    values: Tensor,
    axis: int = 0,
    available_memory_proportion: float | None = None,
) -> Tensor:
    """`t` with `values[i...]` put at `indices[i...]` along `axis` (ONNX ScatterElements).

    Raises:
        ValueError: where indices and values differ in shape or from `t` in rank, or are longer
            than `t` along another axis.
    """
    axis = axis_of("scatter", tensor_operand("scatter", t), axis)
    need_int("scatter", tensor_operand("scatter", indices), "indices")
    t, values = operands("scatter", t, values)
    if indices.shape != values.shape or indices.rank != t.rank:
        raise ValueError(
            f"scatter: indices {indices.shape} and values {values.shape} must be of one shape, "
            f"and of rank {t.rank} as {t.name} {t.shape}"
        )
    for other, (size, limit) in enumerate(zip(indices.shape, t.shape, strict=True)):
        if other != axis and size > limit:
            raise ValueError(
                f"scatter: indices {indices.shape} are longer than {t.name} {t.shape} along axis "
                f"{other}"
            )
    return emit_one("scatter", [t, indices, values], t.spec, axis=axis)


def dynamic_slice(
    t: Tensor, index: Tensor, axes: Iterable[int], sizes: Iterable[int], no_overlap: bool
) -> Tensor:
    """The part of `t` of the given sizes along the axes, from `index` on.

    Args:
        index: integers of shape `(len(axes),)`; a part that would stick out is moved inside.
        no_overlap: of the gradient; without effect.

    Raises:
        ValueError: where axes, sizes and index do not fit `t`.
    """
    axes, sizes = _region("dynamic_slice", t, index, axes, sizes)
    spec = TensorSpec(_shape_of_part(t, axes, sizes), t.dtype)
    return emit_one("dynamic_slice", [t, index], spec, axes=axes, sizes=sizes)


def dynamic_update(
    t: Tensor,
    index: Tensor,
    t_update: Tensor,
    axes: Iterable[int],
    sizes: Iterable[int],
    no_overlap: bool,
) -> Tensor:
    """`t` with `t_update` in the place that `dynamic_slice` would take.

    Raises:
        ValueError: where `t_update` is not of that shape.
    """
    axes, sizes = _update_region("dynamic_update", t, index, t_update, axes, sizes)
    return emit_one("dynamic_update", [t, index, t_update], t.spec, axes=axes, sizes=sizes)


def dynamic_update_(
    t: Tensor,
    index: Tensor,
    t_update: Tensor,
    axes: Iterable[int],
    sizes: Iterable[int],
    no_overlap: bool,
) -> Tensor:
    """`dynamic_update` that writes to `t`."""
    axes, sizes = _update_region("dynamic_update_", t, index, t_update, axes, sizes)
    return emit_inplace("dynamic_update", [t, index, t_update], axes=axes, sizes=sizes)


def onehot(t: Tensor, num_classes: int | Tensor, values: Tensor, axis: int) -> Tensor:
    """`values[1]` where the new axis' index is the element of `t`, else `values[0]`.

    Args:
        t: integers of any shape; those outside 0 to `num_classes` - 1 match nowhere.
        num_classes: a number or a constant: the shape of the result depends on it.
        values: of shape `(2,)`: the value elsewhere and the value at the index.
        axis: where the new axis, of size `num_classes`, goes.

    Raises:
        TypeError: where `num_classes` is not known while the program is built.
        ValueError: where there are not two values or no class.
    """
    need_int("onehot", tensor_operand("onehot", t), "t")
    axis = axis_of("onehot", t, axis, extra=1)
    if tensor_operand("onehot", values).shape != (2,):
        raise ValueError(f"onehot: values must be of shape (2,), got {values.shape}")
    count = _known_integer("onehot", "num_classes", num_classes)
    if count < 1:
        raise ValueError(f"onehot: num_classes must be at least 1, got {count}")
    spec = TensorSpec((*t.shape[:axis], count, *t.shape[axis:]), values.dtype)
    return emit_one("onehot", [t, values], spec, num_classes=count, axis=axis)


def _known_integer(kind: str, what: str, value: Any) -> int:
    if isinstance(value, Constant) and value.nelms == 1:
        value = value._data.item()
    if not isinstance(value, int | np.integer):
        raise TypeError(f"{kind}: {what} must be an integer or a constant of one, got {value!r}")
    return int(value)


def _region(
    kind: str, t: Tensor, index: Tensor, axes: Iterable[int], sizes: Iterable[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    tensor_operand(kind, t)
    need_int(kind, tensor_operand(kind, index), "index")
    found, lengths = tuple(axis_of(kind, t, a) for a in axes), tuple(int(s) for s in sizes)
    if not 0 < len(set(found)) == len(found) == len(lengths) == index.nelms:
        raise ValueError(
            f"{kind}: axes {found}, sizes {lengths} and index {index.name} {index.shape} must be "
            "of one length from 1 on, each axis named once"
        )
    for axis, size in zip(found, lengths, strict=True):
        if not 0 < size <= t.shape[axis]:
            raise ValueError(f"{kind}: size {size} is outside 1 to {t.shape[axis]}, axis {axis}")
    return found, lengths


def _update_region(
    kind: str,
    t: Tensor,
    index: Tensor,
    t_update: Tensor,
    axes: Iterable[int],
    sizes: Iterable[int],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    found, lengths = _region(kind, t, index, axes, sizes)
    same_dtype(kind, t, tensor_operand(kind, t_update))
    shape = _shape_of_part(t, found, lengths)
    if t_update.shape != shape:
        raise ValueError(
            f"{kind}: t_update must be of shape {shape}, {t_update.name} is {t_update.shape}"
        )
    return found, lengths


def _shape_of_part(t: Tensor, axes: Iterable[int], sizes: Iterable[int]) -> tuple[int, ...]:
    along = dict(zip(axes, sizes, strict=True))
    return tuple(along.get(axis, size) for axis, size in enumerate(t.shape))
