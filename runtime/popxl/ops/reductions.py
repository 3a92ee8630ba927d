"""Ops along axes: sums and the like, norms, choices, softmax. Half types add up in float32."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Protocol

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
from popxl.ops.elementwise import Need, named
from popxl.tensor import Tensor, TensorSpec


class Reduction(Protocol):
    """An op that reduces one axis, several, or all for None."""

    def __call__(
        self, t: Tensor, axis: int | Iterable[int] | None = None, keepdims: bool = False
    ) -> Tensor: ...


def _reduction(kind: str, doc: str, need: Need = need_number) -> Reduction:
    def op(t: Tensor, axis: int | Iterable[int] | None = None, keepdims: bool = False) -> Tensor:
        need(kind, tensor_operand(kind, t))
        axes = axes_of(kind, t, axis)
        if kind in ("max", "min", "median"):
            _need_elements(kind, t, axes)
        spec = TensorSpec(_reduced(t.shape, axes, keepdims), t.dtype)
        return emit_one(kind, [t], spec, axes=axes, keepdims=bool(keepdims))

    return named(op, kind, doc)


def _reduced(shape: Iterable[int], axes: Iterable[int], keepdims: bool) -> tuple[int, ...]:
    """A shape without axes, or with these of size 1."""
    sizes = enumerate(shape)
    return tuple(1 if i in axes else size for i, size in sizes if keepdims or i not in axes)


def _need_elements(kind: str, t: Tensor, axes: Iterable[int]) -> None:
    empty = [a for a in axes if t.shape[a] == 0]
    if empty:
        raise ValueError(f"{kind}: axis {empty[0]} of {t.name} {t.shape} has no elements")


sum = _reduction("sum", "Sum over the axes (all for None).")
mean = _reduction("mean", "Arithmetic mean over the axes.")
max = _reduction("max", "Largest element over the axes.")
min = _reduction("min", "Smallest element over the axes.")
prod = _reduction("prod", "Product over the axes.")
sumsquare = _reduction("sumsquare", "Sum of the squares over the axes.")
l1 = _reduction("l1", "Sum of the magnitudes over the axes.")
l2 = _reduction("l2", "Square root of the sum of the squares over the axes.", need_float)
logsumexp = _reduction("logsumexp", "Logarithm of the sum of exponentials.", need_float)
logsum = _reduction("logsum", "Logarithm of the sum.", need_float)
median = _reduction(
    "median",
    "Median over the axes; of an even number of elements the lower of the two in the middle.",
)


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
    spec = TensorSpec(_reduced(t.shape, [axis], keepdim), dtypes.int32)
    return emit_one(kind, [t], spec, axis=axis, keepdims=bool(keepdim))


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
