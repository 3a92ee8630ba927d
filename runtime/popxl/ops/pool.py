"""Pools: the average or the maximum over windows of `(batch, channels, *spatial)`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from popxl.ops._build import emit_one, need_float, tensor_operand
from popxl.ops.windows import PadType, integers, pad_type_of, spatial_rank, windows
from popxl.tensor import Tensor, TensorSpec


def average_pool(
    t: Tensor,
    kernel_size: Iterable[int],
    stride: Iterable[int] | None = None,
    padding: Iterable[int] | None = None,
    out_pads: Iterable[int] | None = None,
    dilation: Iterable[int] | None = None,
    in_dilations: Iterable[int] | None = None,
    auto_pad: PadType | None = "not_set",
    ceil_mode: bool = False,
) -> Tensor:
    """Average of the elements of each window, padding not counted; in float32 for half types.

    Args:
        t: `(batch, channels, *spatial)`.
        kernel_size, dilation: for each spatial axis.
        stride: for each spatial axis; 1 where None.
        padding: elements at the beginning of every spatial axis, then at the end of every one.
        out_pads, in_dilations: 0 and 1 everywhere; PopXL declares them and computes no others.
        auto_pad: where not "not_set", says what the padding is instead.
        ceil_mode: the last window may reach beyond the padding.

    Returns:
        `(batch, channels, *windows)`.

    Raises:
        ValueError: where settings do not fit `t`, or a window holds padding only.
    """
    padded = out_pads, dilation, in_dilations, auto_pad, ceil_mode
    return _pool("average_pool", t, kernel_size, stride, padding, *padded)


def max_pool(
    t: Tensor,
    kernel_size: Iterable[int],
    stride: Iterable[int] | None = None,
    padding: Iterable[int] | None = None,
    out_pads: Iterable[int] | None = None,
    dilation: Iterable[int] | None = None,
    in_dilations: Iterable[int] | None = None,
    auto_pad: PadType | None = "not_set",
    ceil_mode: bool = False,
    storage_order: Literal["row", "column"] = "row",
) -> Tensor:
    """Largest element of each window; arguments as those of `average_pool`.

    Args:
        storage_order: "row"; PopXL refuses "column" when it compiles.
    """
    if storage_order != "row":
        raise ValueError(f"max_pool: storage_order must be 'row', got {storage_order!r}")
    padded = out_pads, dilation, in_dilations, auto_pad, ceil_mode
    return _pool("max_pool", t, kernel_size, stride, padding, *padded)


def _pool(
    kind: str,
    t: Tensor,
    kernel_size: Iterable[int],
    stride: Iterable[int] | None,
    padding: Iterable[int] | None,
    out_pads: Iterable[int] | None,
    dilation: Iterable[int] | None,
    in_dilations: Iterable[int] | None,
    auto_pad: str | None,
    ceil_mode: bool,
) -> Tensor:
    need_float(kind, tensor_operand(kind, t))
    axes = spatial_rank(kind, t)
    kernel = integers(kind, "kernel_size", kernel_size, axes, 1)
    if set(integers(kind, "out_pads", out_pads, 2 * axes, 0, 0)) - {0}:
        raise ValueError(f"{kind}: out_pads must be 0 everywhere, got {out_pads}")
    if set(integers(kind, "in_dilations", in_dilations, axes, 1, 1)) - {1}:
        raise ValueError(f"{kind}: in_dilations must be 1 everywhere, got {in_dilations}")
    made = windows(
        kind,
        t,
        kernel,
        integers(kind, "stride", stride, axes, 1, 1),
        integers(kind, "padding", padding, 2 * axes, 0, 0),
        integers(kind, "dilation", dilation, axes, 1, 1),
        pad_type_of(kind, "auto_pad", auto_pad or "not_set"),
        bool(ceil_mode),
    )
    empty = [i for i, w in enumerate(made, start=2) if not min(w.elements())]
    if empty:
        raise ValueError(
            f"{kind}: a window along axis {empty[0]} of {t.name} {t.shape} holds padding only; "
            f"use less padding, a smaller stride or no ceil_mode"
        )
    shape = (*t.shape[:2], *(w.count for w in made))
    return emit_one(kind, [t], TensorSpec(shape, t.dtype), windows=made)
