"""Convolutions of `(batch, channels, *spatial)` and their transposes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from popxl.ops._build import emit_one, need_float, same_dtype, tensor_operand
from popxl.ops.windows import PadType, integers, pad_type_of, spatial_rank, windows
from popxl.tensor import Tensor, TensorSpec

__all__ = ["MultiConvOptions", "PadType", "conv", "conv_transpose", "multi_conv_options"]


@dataclass
class MultiConvOptions:
    """How an IPU plans convolutions, under PopART's names; nothing reads it here."""

    availableMemoryProportions: list[float] = field(default_factory=list)  # noqa: N815
    partialsTypes: list[str] = field(default_factory=list)  # noqa: N815
    enableConvDithering: list[int] = field(default_factory=list)  # noqa: N815


def multi_conv_options(
    sess_opts: Any,
    attr_param: Any,
    available_memory_proportions: list[float] | None,
    partials_types: list[str] | None,
    enable_conv_dithering: list[int] | None,
) -> MultiConvOptions:
    """The settings in one object. They tune an IPU and have no effect here."""
    return MultiConvOptions(
        available_memory_proportions or [], partials_types or [], enable_conv_dithering or []
    )


def conv(
    t: Tensor,
    weight: Tensor,
    stride: Iterable[int] | None = (1, 1),
    padding: Iterable[int] | None = (0, 0, 0, 0),
    dilation: Iterable[int] | None = (1, 1),
    groups: int = 1,
    pad_type: PadType = "not_set",
    available_memory_proportions: list[float] | None = None,
    partials_types: list[str] | None = None,
    enable_conv_dithering: list[int] | None = None,
) -> Tensor:
    """Convolution with zeros as padding, added up in float32 for half types.

    Args:
        t: `(batch, channels, *spatial)`, with one to three spatial axes.
        weight: `(out_channels, channels / groups, *kernel)`.
        stride, dilation: for each spatial axis.
        padding: elements at the beginning of every spatial axis, then at the end of every one.
        pad_type: where not "not_set", says what the padding is instead.
        available_memory_proportions, partials_types, enable_conv_dithering: tune an IPU, without
            effect here.

    Returns:
        `(batch, out_channels, *windows)`.

    Raises:
        TypeError: where `t` and `weight` do not hold floats of one dtype.
        ValueError: where shapes and settings do not fit each other.
    """
    axes = _check("conv", t, weight, groups)
    if weight.shape[0] % groups or weight.shape[1] * groups != t.shape[1]:
        raise ValueError(
            f"conv: {groups} groups of {t.name} {t.shape} need a weight of (a multiple of {groups},"
            f" {t.shape[1] / groups:g}, *kernel), {weight.name} is {weight.shape}"
        )
    made = windows(
        "conv",
        t,
        weight.shape[2:],
        integers("conv", "stride", stride, axes, 1, 1, exact=True),
        integers("conv", "padding", padding, 2 * axes, 0, 0, exact=True),
        integers("conv", "dilation", dilation, axes, 1, 1, exact=True),
        pad_type_of("conv", "pad_type", pad_type),
    )
    shape = (t.shape[0], weight.shape[0], *(w.count for w in made))
    return emit_one("conv", [t, weight], TensorSpec(shape, t.dtype), windows=made, groups=groups)


def conv_transpose(
    t: Tensor,
    weight: Tensor,
    stride: Iterable[int] | None = (1, 1),
    padding: Iterable[int] | None = (0, 0, 0, 0),
    dilation: Iterable[int] | None = (1, 1),
    groups: int = 1,
    pad_type: PadType = "not_set",
    output_padding: Iterable[int] | None = (),
    output_shape: Iterable[int] | None = (),
    available_memory_proportions: list[float] | None = None,
    partials_types: list[str] | None = None,
    enable_conv_dithering: list[int] | None = None,
) -> Tensor:
    """Transposed convolution: every element of `t` adds a scaled kernel to the result.

    Args:
        t: `(batch, channels, *spatial)`, with one to three spatial axes.
        weight: `(channels, out_channels / groups, *kernel)`.
        stride: from one kernel to the next in the result.
        padding: elements cut off at the beginning of every spatial axis, then at the end of
            every one.
        dilation: 1 everywhere; PopXL has no other.
        pad_type: as in PopXL, of effect with `output_shape` only: an odd element is cut off at
            the beginning for "same_upper", else at the end.
        output_padding: elements added at the end of every spatial axis.
        output_shape: of the spatial axes or of the whole result; what is cut off follows from it.
        available_memory_proportions, partials_types, enable_conv_dithering: tune an IPU, without
            effect here.

    Returns:
        `(batch, out_channels, *spatial)`; without `output_shape` a spatial axis has
        `stride * (size - 1) + kernel + output_padding - padding` elements.

    Raises:
        TypeError: where `t` and `weight` do not hold floats of one dtype.
        ValueError: where shapes and settings do not fit each other.
    """
    kind = "conv_transpose"
    axes = _check(kind, t, weight, groups)
    _check_transposed(kind, t, weight, groups)
    strides = integers(kind, "stride", stride, axes, 1, 1)
    pads = integers(kind, "padding", padding, 2 * axes, 0, 0)
    added = integers(kind, "output_padding", output_padding, axes, 0, 0)
    if set(integers(kind, "dilation", dilation, axes, 1, 1)) - {1}:
        raise ValueError(f"{kind}: dilation must be 1 everywhere, got {dilation}")
    edge = pad_type_of(kind, "pad_type", pad_type)
    full = [s * (n - 1) + k for s, n, k in zip(strides, t.shape[2:], weight.shape[2:], strict=True)]
    cuts = [(a, b - o) for a, b, o in zip(pads[:axes], pads[axes:], added, strict=True)]
    channels = (t.shape[0], weight.shape[1] * groups)
    wanted = _spatial(output_shape, channels, axes)
    if wanted:
        cuts = _cuts(full, added, wanted, edge)
    spatial = tuple(n - a - b for n, (a, b) in zip(full, cuts, strict=True))
    if min(spatial) < 1:
        raise ValueError(f"{kind}: padding {pads} leaves nothing of the sizes {tuple(full)}")
    spec = TensorSpec((*channels, *spatial), t.dtype)
    return emit_one(kind, [t, weight], spec, stride=strides, cuts=tuple(cuts), groups=groups)


def _check(kind: str, t: Tensor, weight: Tensor, groups: int) -> int:
    """The number of spatial axes, where tensors and groups fit."""
    same_dtype(kind, tensor_operand(kind, t), tensor_operand(kind, weight))
    need_float(kind, t)
    axes = spatial_rank(kind, t)
    if axes > 3 or weight.rank != t.rank or 0 in weight.shape:
        raise ValueError(
            f"{kind}: input and weight need 1 to 3 spatial axes, the same number, and no axis of "
            f"the weight may be empty: {t.name} is {t.shape}, {weight.name} {weight.shape}"
        )
    if groups < 1:
        raise ValueError(f"{kind}: groups must be at least 1, got {groups}")
    return axes


def _check_transposed(kind: str, t: Tensor, weight: Tensor, groups: int) -> None:
    if weight.shape[0] != t.shape[1] or t.shape[1] % groups:
        raise ValueError(
            f"{kind}: {t.name} {t.shape} in {groups} groups needs a weight of ({t.shape[1]}, "
            f"out_channels / groups, *kernel) with a multiple of {groups} channels, {weight.name} "
            f"is {weight.shape}"
        )


def _spatial(
    output_shape: Iterable[int] | None, channels: tuple[int, int], axes: int
) -> tuple[int, ...]:
    given = () if output_shape is None else tuple(output_shape)
    whole = len(given) == axes + 2
    if (whole and given[:2] != channels) or (given and not whole and len(given) != axes):
        raise ValueError(
            f"conv_transpose: output_shape must be {axes} sizes, or {channels} and {axes} sizes, "
            f"got {given}"
        )
    return given[2:] if whole else given


def _cuts(
    full: list[int], added: tuple[int, ...], wanted: tuple[int, ...], pad_type: str
) -> list[tuple[int, int]]:
    """What is cut off at both ends of each axis (added, where negative) for the wanted sizes."""
    if pad_type == "valid":
        raise ValueError(
            "conv_transpose: pad_type 'valid' cuts nothing off, so no output_shape can be given"
        )
    cuts = []
    for n, o, size in zip(full, added, wanted, strict=True):
        total = n + o - size
        end = math.trunc(total / 2 if pad_type == "same_upper" else (total + 1) / 2)
        cuts.append((total - end, end - o))
    return cuts
