"""Ops along axes: sums and the like, norms, choices, softmax. Half types add up in float32."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from popxl import dtypes
from popxl.ops._build import (
    axes_of,
    axis_of,
    emit,
    emit_one,
    need_float,
    need_number,
    tensor_operand,
)
from popxl.tensor import Tensor, TensorSpec


def _reduce(kind: str, t: Tensor, axis: int | Iterable[int] | None, keepdims: bool) -> Tensor:
    need_number(kind, tensor_operand(kind, t))
    axes = axes_of(kind, t, axis)
    if kind in ("max", "min", "median"):
        _need_elements(kind, t, axes)
    shape = tuple(
        1 if i in axes else size for i, size in enumerate(t.shape) if keepdims or i not in axes
    )
    return emit_one(kind, [t], TensorSpec(shape, t.dtype), axes=axes, keepdims=bool(keepdims))


def _need_elements(kind: str, t: Tensor, axes: Iterable[int]) -> None:
    empty = [a for a in axes if t.shape[a] == 0]
    if empty:
        raise ValueError(f"{kind}: axis {empty[0]} of {t.name} {t.shape} has no elements")


def sum(t: Tensor, axis: int | Iterable[int] | None = None, keepdims: bool = False) -> Tensor:
    """Sum over the axes (all for None)."""
    return _reduce("sum", t, axis, keepdims)


def mean(t: Tensor, axis: int | Iterable[int] | None = None, keepdims: bool = False) -> Tensor:
    """Arithmetic mean over the axes."""
    return _reduce("mean", t, axis, keepdims)


def max(t: Tensor, axis: int | Iterable[int] | None = None, keepdims: bool = False) -> Tensor:
    """Largest element over the axes."""
    return _reduce("max", t, axis, keepdims)


def min(t: Tensor, axis: int | Iterable[int] | None = None, keepdims: bool = False) -> Tensor:
    """Smallest element over the axes."""
    return _reduce("min", t, axis, keepdims)


def prod(t: Tensor, axis: int | Iterable[int] | None = None, keepdims: bool = False) -> Tensor:
    """Product over the axes."""
    return _reduce("prod", t, axis, keepdims)


def sumsquare(t: Tensor, axis: int | Iterable[int] | None = None, keepdims: bool = False) -> Tensor:
    """Sum of the squares over the axes."""
    return _reduce("sumsquare", t, axis, keepdims)


def l1(t: Tensor, axis: int | Iterable[int] | None = None, keepdims: bool = False) -> Tensor:
    """Sum of the magnitudes over the axes."""
    return _reduce("l1", t, axis, keepdims)


def l2(t: Tensor, axis: int | Iterable[int] | None = None, keepdims: bool = False) -> Tensor:
    """Square root of the sum of the squares over the axes."""
    need_float("l2", tensor_operand("l2", t))
    return _reduce("l2", t, axis, keepdims)


def logsumexp(t: Tensor, axis: int | Iterable[int] | None = None, keepdims: bool = False) -> Tensor:
    """Logarithm of the sum of the exponentials over the axes."""
    need_float("logsumexp", tensor_operand("logsumexp", t))
    return _reduce("logsumexp", t, axis, keepdims)


def logsum(t: Tensor, axis: int | Iterable[int] | None = None, keepdims: bool = False) -> Tensor:
    """Logarithm of the sum over the axes."""
    need_float("logsum", tensor_operand("logsum", t))
    return _reduce("logsum", t, axis, keepdims)


def median(t: Tensor, axis: int | Iterable[int] | None = None, keepdims: bool = False) -> Tensor:
    """Median over the axes; of an even number of elements the lower of the two in the middle."""
    return _reduce("median", t, axis, keepdims)


def histogram(t: Tensor, levels: Sequence[float], absolute_of_input: bool) -> Tensor:
    """How many elements of `t`, of any shape, lie between each two levels.

    Args:
        levels: the bounds, increasing; they are rounded to the dtype of `t`.
        absolute_of_input: count absolute values.

    Returns:
        uint32 `(len(levels) + 1,)`: the elements below the first level, those from each level on
        and below the next, and those from the last level on (NaN among them).

    Raises:
        TypeError: where `t` does not hold floats.
        ValueError: where the levels do not increase or there is none.
    """
    need_float("histogram", tensor_operand("histogram", t))
    bounds = tuple(float(level) for level in levels)
    if not bounds or any(not a < b for a, b in pairwise(bounds)):
        raise ValueError(f"histogram: levels must be at least one and increase, got {bounds}")
    spec = TensorSpec((len(bounds) + 1,), dtypes.uint32)
    return emit_one("histogram", [t], spec, levels=bounds, absolute=bool(absolute_of_input))


def argmax(t: Tensor, dim: int = 0, keepdim: bool = False) -> Tensor:
    """int32: index of the (first) largest element along `dim`."""
    return _arg("argmax", t, dim, keepdim)


def argmin(t: Tensor, dim: int = 0, keepdim: bool = False) -> Tensor:
    """int32: index of the (first) smallest element along `dim`."""
    return _arg("argmin", t, dim, keepdim)


def _arg(kind: str, t: Tensor, dim: int, keepdim: bool) -> Tensor:
    need_number(kind, tensor_operand(kind, t))
    axis = axis_of(kind, t, dim)
    _need_elements(kind, t, [axis])
    shape = tuple(
        1 if i == axis else size for i, size in enumerate(t.shape) if keepdim or i != axis
    )
    return emit_one(kind, [t], TensorSpec(shape, dtypes.int32), axis=axis, keepdims=bool(keepdim))


def topk(
    t: Tensor,
    k: int,
    axis: int,
    largest: bool,
    sorted: bool,
    available_memory_proportion: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The `k` largest (or smallest) elements along `axis` and their indices (int32).

    Raises:
        ValueError: where the axis has fewer than `k` elements.
    """
    need_number("topk", tensor_operand("topk", t))
    axis = axis_of("topk", t, axis)
    if not 1 <= k <= t.shape[axis]:
        raise ValueError(f"topk: k must be from 1 to {t.shape[axis]} (axis {axis}), got {k}")
    shape = (*t.shape[:axis], k, *t.shape[axis + 1 :])
    specs = [TensorSpec(shape, t.dtype), TensorSpec(shape, dtypes.int32)]
    values, indices = emit("topk", [t], specs, k=k, axis=axis, largest=largest, sorted=sorted)
    return values, indices


def cumsum(t: Tensor, dim: int = 0) -> Tensor:
    """Running sum along `dim`."""
    need_number("cumsum", tensor_operand("cumsum", t))
    axis = axis_of("cumsum", t, dim)
    return emit_one("cumsum", [t], t.spec, axis=axis)


def softmax(t: Tensor, axis: int) -> Tensor:
    """exp(t) over its sum along `axis`."""
    need_float("softmax", tensor_operand("softmax", t))
    axis = axis_of("softmax", t, axis)
    return emit_one("softmax", [t], t.spec, axis=axis)
