"""Tensors resampled to other sizes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np

from popxl.ops._build import emit_one, need_float, need_one_of, tensor_operand
from popxl.tensor import Tensor, TensorSpec

InterpolateType = Literal["nearest", "linear", "cubic"]
InterpolateNearestType = Literal["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
InterpolateCoordinateTransformationType = Literal[
    "half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize"
]


def interpolate(
    t: Tensor,
    scale_factor: Iterable[float] | None = (1.0, 1.0, 1.0, 1.0),
    mode: InterpolateType | None = "nearest",
    nearest_mode: InterpolateNearestType | None = "round_prefer_floor",
    coordinate_transformation_mode: InterpolateCoordinateTransformationType | None = "half_pixel",
) -> Tensor:
    """`t` with `floor(size * scale)` elements along each axis, as ONNX's Resize makes them.

    Args:
        scale_factor: one for each axis; an axis with 1 stays as it is.
        mode: the nearest element, a line between two, or a cubic (a = -0.75) through four.
        nearest_mode: which element is nearest to a place between two.
        coordinate_transformation_mode: the place `x` of element `i`, of `n` made from `size`:

            - "half_pixel": `(i + 0.5) / scale - 0.5`;
            - "pytorch_half_pixel": the same, 0 where `size * scale` is 1 or less;
            - "align_corners": `i * (size - 1) / (size * scale - 1)`;
            - "asymmetric": `i / scale`.

    Raises:
        TypeError: where it is not "nearest" and `t` does not hold floats.
        ValueError: where a mode is unknown, or is "tf_crop_and_resize", which needs a region that
            PopXL's op does not take; where there is not one scale for each axis, or it leaves
            nothing of an axis.
    """
    kind = "interpolate"
    tensor_operand(kind, t)
    places, known = coordinate_transformation_mode, InterpolateCoordinateTransformationType
    need_one_of(kind, "mode", mode, get_args(InterpolateType))
    need_one_of(kind, "nearest_mode", nearest_mode, get_args(InterpolateNearestType))
    need_one_of(kind, "coordinate_transformation_mode", places, get_args(known))
    if places == "tf_crop_and_resize":
        raise ValueError(
            f"{kind}: coordinate_transformation_mode 'tf_crop_and_resize' needs a region, which "
            f"the op does not take; use another mode, after ops.slice"
        )
    if mode != "nearest":
        need_float(kind, t)
    scales = tuple(float(s) for s in scale_factor or ())
    spec = TensorSpec(_resized(kind, t, scales), t.dtype)
    modes = {"mode": mode, "nearest_mode": nearest_mode, "places": places}
    return emit_one(kind, [t], spec, scales=scales, **modes)


def _resized(kind: str, t: Tensor, scales: tuple[float, ...]) -> tuple[int, ...]:
    if len(scales) != t.rank:
        raise ValueError(
            f"{kind}: scale_factor must be {t.rank} numbers for {t.name} {t.shape}, got {scales}"
        )
    # In float32, as PopXL does: 10 * 0.3 is 3 there, but less in float64.
    shape = tuple(
        int(np.floor(np.float32(n) * np.float32(s))) for n, s in zip(t.shape, scales, strict=True)
    )
    if min(shape, default=1) < 1:
        raise ValueError(f"{kind}: {t.name} {t.shape} by {scales} would be of shape {shape}")
    return shape
