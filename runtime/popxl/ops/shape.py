"""Ops that arrange elements anew and change none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from popxl.ops._build import (
    axes_of,
    axis_of,
    emit,
    emit_one,
    same_dtype,
    tensor_operand,
)
from popxl.tensor import Tensor, TensorSpec


def reshape(t: Tensor, shape: Iterable[int]) -> Tensor:
    """`t` in another shape; one size may be -1, to be worked out.

    Raises:
        ValueError: where the number of elements differs.
    """
    new = _resolved_shape("reshape", tensor_operand("reshape", t), shape)
    return emit_one("reshape", [t], TensorSpec(new, t.dtype), shape=new)


def reshape_(t: Tensor, shape: Iterable[int]) -> Tensor:
    """`reshape` that shares its elements with `t`: what is written to one is seen in the other."""
    new = _resolved_shape("reshape_", tensor_operand("reshape_", t), shape)
    return emit_one("reshape", [t], TensorSpec(new, t.dtype), shape=new, alias=True)


def flatten(t: Tensor) -> Tensor:
    """`t` in one dimension."""
    return reshape(t, (-1,))


def flatten_(t: Tensor) -> Tensor:
    """`flatten` that shares its elements with `t`."""
    return reshape_(t, (-1,))


def transpose(t: Tensor, permutation: Iterable[int] | None = None) -> Tensor:
    """Axes in another order; reversed where no permutation is given."""
    order = _permutation(tensor_operand("transpose", t), permutation)
    spec = TensorSpec((t.shape[i] for i in order), t.dtype)
    return emit_one("transpose", [t], spec, permutation=order)


def transpose_(t: Tensor, permutation: Iterable[int] | None = None) -> Tensor:
    """`transpose` that shares its elements with `t`."""
    order = _permutation(tensor_operand("transpose_", t), permutation)
    spec = TensorSpec((t.shape[i] for i in order), t.dtype)
    return emit_one("transpose", [t], spec, permutation=order, alias=True)


def squeeze(t: Tensor, axes: Iterable[int] | None = None) -> Tensor:
    """`t` without the axes, which must be of size 1; all such axes for None.

    Raises:
        ValueError: where an axis has another size.
    """
    tensor_operand("squeeze", t)
    gone = (
        tuple(i for i, size in enumerate(t.shape) if size == 1)
        if axes is None
        else axes_of("squeeze", t, axes)
    )
    for axis in gone:
        if t.shape[axis] != 1:
            raise ValueError(f"squeeze: axis {axis} of {t.name} {t.shape} is not of size 1")
    return reshape(t, tuple(size for i, size in enumerate(t.shape) if i not in gone))


def split(t: Tensor, splits: int | Sequence[int], axis: int = 0) -> list[Tensor]:
    """Parts along `axis`: `splits` equal ones, or of the sizes given.

    Raises:
        ValueError: where the axis cannot be split so.
    """
    axis = axis_of("split", tensor_operand("split", t), axis)
    size = t.shape[axis]
    if isinstance(splits, int | np.integer):
        if splits < 1 or size % splits:
            raise ValueError(f"split: axis {axis} of size {size} cannot be split in {splits}")
        sizes = [size // int(splits)] * int(splits)
    else:
        sizes = [int(s) for s in splits]
        if sum(sizes) != size or any(s < 0 for s in sizes):
            raise ValueError(f"split: sizes {sizes} do not add up to {size}, axis {axis}")
    specs = [TensorSpec((*t.shape[:axis], s, *t.shape[axis + 1 :]), t.dtype) for s in sizes]
    return list(emit("split", [t], specs, sizes=tuple(sizes), axis=axis))


def concat(ts: Iterable[Tensor], axis: int = 0) -> Tensor:
    """The tensors one after another along `axis`.

    Raises:
        ValueError: where their other sizes differ, or there is none.
    """
    return _concat("concat", ts, axis)


def concat_(ts: Iterable[Tensor], axis: int = 0) -> Tensor:
    """`concat` that shares its elements with the tensors: writes to it are seen in them.

    Joining is a copy here, made whenever the result is read. Tensors that share elements may be
    joined and read; writing to the result is then refused, as an element had two values.

    Raises:
        ValueError: as `concat`.
    """
    return _concat("concat_", ts, axis, alias=True)


def _concat(kind: str, ts: Iterable[Tensor], axis: int, **attributes: Any) -> Tensor:
    tensors = [tensor_operand(kind, t) for t in ts]
    if not tensors:
        raise ValueError(f"{kind}: at least one tensor is needed")
    same_dtype(kind, *tensors)
    first = tensors[0]
    axis = axis_of(kind, first, axis)
    others = {(*t.shape[:axis], *t.shape[axis + 1 :]) for t in tensors}
    if len(others) > 1 or len({t.rank for t in tensors}) > 1:
        shapes = ", ".join(str(t.shape) for t in tensors)
        raise ValueError(f"{kind}: sizes other than axis {axis} must agree, got {shapes}")
    size = sum(t.shape[axis] for t in tensors)
    spec = TensorSpec((*first.shape[:axis], size, *first.shape[axis + 1 :]), first.dtype)
    return emit_one("concat", tensors, spec, axis=axis, **attributes)


def identity(t: Tensor, output_name: str | None = None) -> Tensor:
    """The same value in a new tensor."""
    return emit_one("identity", [t], tensor_operand("identity", t).spec, name=output_name)


def detach(t: Tensor) -> Tensor:
    """The same value, without gradient."""
    return emit_one("identity", [t], tensor_operand("detach", t).spec, name="detach")


def detach_(t: Tensor) -> Tensor:
    """`t`: there are no gradients to detach it from."""
    return tensor_operand("detach_", t)


def io_tile_copy(t: Tensor) -> Tensor:
    """The same value on the other kind of tiles of an IPU."""
    return emit_one("identity", [t], tensor_operand("io_tile_copy", t).spec, name="io_tile_copy")


def _resolved_shape(kind: str, t: Tensor, shape: Iterable[int]) -> tuple[int, ...]:
    given = tuple(int(s) for s in ([shape] if isinstance(shape, int) else shape))
    known = math.prod(s for s in given if s != -1)
    if given.count(-1) == 1 and known and t.nelms % known == 0:
        given = tuple(t.nelms // known if s == -1 else s for s in given)
    if any(s < 0 for s in given) or math.prod(given) != t.nelms:
        raise ValueError(
            f"{kind}: {t.name} {t.shape} has {t.nelms} elements and cannot be of shape {given}"
        )
    return given


def _permutation(t: Tensor, permutation: Iterable[int] | None) -> tuple[int, ...]:
    if permutation is None:
        return tuple(reversed(range(t.rank)))
    order = tuple(axis_of("transpose", t, a) for a in permutation)
    if sorted(order) != list(range(t.rank)):
        raise ValueError(f"transpose: {order} is no order of the axes of {t.name} {t.shape}")
    return order
