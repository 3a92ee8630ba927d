"""Matmuls with quantised weights, each form a graph of its own.

Each is declared as a composite, so a runtime may compute it by a kernel; what it means is what
stands here: the weight is what its numbers stand for, in the activations' type.
"""

from __future__ import annotations

import popxl
from popxl import ops
from popxl_addons.ops.group_quantize_decompress import group_quantize_decompress
from popxl_torch import composite


@composite("channel_quantized_matmul", version=1)
def channel_quantized_matmul(
    x: popxl.Tensor, weight: popxl.Tensor, scale: popxl.Tensor
) -> popxl.Tensor:
    """`x @ (weight * scale)`, with a scale for every column of the weight.

    Args:
        x: `(rows, in)`.
        weight: int8 `(in, out)`.
        scale: float32 `(out,)`.

    Returns:
        `(rows, out)` of the type of x; sums and their products with the scale are float32, as
        sums of whole numbers may be beyond float16.
    """
    sums = ops.matmul(x, ops.cast(weight, x.dtype), output_type=popxl.float32)
    return ops.cast(sums * scale, x.dtype)


@composite("group_quantized_matmul", version=1)
def group_quantized_matmul(
    x: popxl.Tensor, words: popxl.Tensor, scale: popxl.Tensor, bias: popxl.Tensor
) -> popxl.Tensor:
    """`x @ weight`, with the weight of 4 bits an element in groups along `in`.

    Args:
        x: `(rows, in)`.
        words: uint16 `(out, groups, group_size / 4)`, as of `group_quantize_compress_numpy`.
        scale, bias: float16 `(out, groups, 1)`.

    Returns:
        `(rows, out)` of the type of x.
    """
    return x @ group_decompressed(words, scale, bias, x.dtype, dim=0)


def group_decompressed(
    words: popxl.Tensor,
    scale: popxl.Tensor,
    bias: popxl.Tensor,
    dtype: popxl.dtypes.dtype,
    dim: int = -1,
) -> popxl.Tensor:
    """The elements of `(n, groups, group_size / 4)` words, computed in float32, as `dtype`.

    Returns:
        `(n, groups * group_size)`, or the transpose of that for `dim` 0.
    """
    wide_scale, wide_bias = (ops.cast(t, popxl.float32) for t in (scale, bias))
    return ops.cast(group_quantize_decompress(words, wide_scale, wide_bias, dim), dtype)
