"""Pools over regions of interest."""

from __future__ import annotations

from collections.abc import Iterable

from popxl.ops._build import emit_one, need_float, need_int, same_dtype, tensor_operand
from popxl.ops.windows import integers
from popxl.tensor import Tensor, TensorSpec


def roi_align(
    t: Tensor,
    rois: Tensor,
    batch_index: Tensor,
    output_size: Iterable[int],
    spatial_scale: float,
    sampling_ratio: int,
) -> Tensor:
    """RoIAlign (arXiv 1703.06870) with averages, without the shift by half an element.

    A region, at least one element long and wide, is cut into bins; the result is the average of
    `sampling_ratio` x `sampling_ratio` samples of a bin, each a bilinear interpolation.

    Args:
        t: `(batch, channels, height, width)`.
        rois: `(regions, 4)` of x1, y1, x2, y2, in elements of the image that `t` stands for.
        batch_index: `(regions,)` integers, the sample that a region is of.
        output_size: height and width of the result, in bins.
        spatial_scale: elements of `t` for an element of the image.

    Returns:
        `(regions, channels, *output_size)`.

    Raises:
        TypeError: where dtypes do not fit.
        ValueError: where shapes do not fit, or a setting is below 1.
    """
    kind = "roi_align"
    same_dtype(kind, tensor_operand(kind, t), tensor_operand(kind, rois))
    need_float(kind, t)
    need_int(kind, tensor_operand(kind, batch_index), "batch_index")
    if t.rank != 4:
        raise ValueError(f"{kind}: {t.name} must be (batch, channels, height, width), is {t.shape}")
    if rois.rank != 2 or rois.shape[1] != 4 or batch_index.shape != rois.shape[:1]:
        raise ValueError(
            f"{kind}: rois must be (regions, 4) and batch_index (regions,), "
            f"{rois.name} is {rois.shape}, {batch_index.name} {batch_index.shape}"
        )
    size = integers(kind, "output_size", output_size, 2, 1)
    if sampling_ratio < 1:
        raise ValueError(f"{kind}: sampling_ratio must be at least 1, got {sampling_ratio}")
    return emit_one(
        kind,
        [t, rois, batch_index],
        TensorSpec((rois.shape[0], t.shape[1], *size), t.dtype),
        scale=float(spatial_scale),
        samples=int(sampling_ratio),
        size=size,
    )
