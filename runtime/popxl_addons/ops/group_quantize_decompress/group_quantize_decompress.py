"""Tensors of 4 bits an element, quantised in groups; `popxl_shared.groups` has their layout."""

from __future__ import annotations

import numpy as np
import popxl
from popxl import ops
from popxl_shared import groups

from ..composite import composite


def group_quantize_decompress(
    t: popxl.Tensor, group_scale: popxl.Tensor, group_bias: popxl.Tensor, dim: int = -1
) -> popxl.Tensor:
    """The elements that the words `t` stand for.

    Args:
        t: uint16 `(rows, groups, words)`.
        group_scale, group_bias: one dtype, `(rows, groups, 1)` or `(rows, groups)`.
        dim: where the dimension of the groups goes in the result.

    Returns:
        `(rows, groups * words * 4)` for `dim` -1 or 1, the transpose of that for 0, in the dtype
        of `group_scale`.

    Raises:
        ValueError: where the tensors do not fit each other.
    """
    of_groups = tuple(t.shape[:-1])
    if t.dtype != popxl.uint16 or len(t.shape) != 3:
        raise ValueError(f"t must be uint16 of 3 dimensions, got {t.dtype} {tuple(t.shape)}")
    for name, value in (("group_scale", group_scale), ("group_bias", group_bias)):
        fits = tuple(value.shape) in (of_groups, (*of_groups, 1))
        if not fits or value.dtype != group_scale.dtype:
            raise ValueError(
                f"{name} must be {group_scale.dtype} {(*of_groups, 1)}, "
                f"got {value.dtype} {tuple(value.shape)}"
            )
    if dim not in (-1, 0, 1):
        raise ValueError(f"dim is 0, 1 or -1, got {dim}")
    scale, bias = (v.reshape((*of_groups, 1)) for v in (group_scale, group_bias))
    return _composite(t, scale, bias, dim)


def group_quantize_decompress_numpy(
    t: np.ndarray, group_scale: np.ndarray, group_bias: np.ndarray, dim: int = -1
) -> np.ndarray:
    """`group_quantize_decompress` in numpy, for any number of dimensions.

    Args:
        t: uint16 `(*rows, groups, words)`.
        group_scale, group_bias: `(*rows, groups, 1)`.

    Returns:
        `(*rows, groups * words * 4)` with its last dimension moved to `dim`.
    """
    return np.moveaxis(groups.dequantised(t, group_scale, group_bias), -1, dim)


def group_quantize_compress_numpy(
    t: np.ndarray, group_size: int, dim: int = -1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quantise `t` in groups of `group_size` along `dim`.

    Returns:
        Words: uint16 `(*rows, groups, group_size / 4)`, where rows are the other dimensions.
        Scale and bias: float16 `(*rows, groups, 1)`.

    Raises:
        ValueError: where `group_size` is no multiple of 4 or does not divide the dimension, or
            `t` has values that are not finite or beyond float16.
    """
    size = t.shape[dim]
    if group_size < groups.PER_WORD or group_size % groups.PER_WORD or size % group_size:
        raise ValueError(
            f"group_size must be a multiple of {groups.PER_WORD} that divides dimension {dim} of "
            f"{t.shape}, got {group_size}"
        )
    return groups.quantised(np.moveaxis(t, dim, -1).astype(np.float32), group_size, rounds=0)


def _build(
    t: popxl.Tensor, group_scale: popxl.Tensor, group_bias: popxl.Tensor, dim: int
) -> popxl.Tensor:
    rows, count, words = t.shape
    whole = ops.cast(t, popxl.float32)  # a float32 holds 16 bits exactly, and PopXL has no shifts
    numbers: list[popxl.Tensor] = []
    above: popxl.Tensor | None = None
    for shift in groups.SHIFTS:
        upper = ops.floor(whole / 2**shift) if shift else whole  # the number, and those above it
        number = upper if above is None else upper - above * 2**groups.BITS
        numbers.append(number.reshape((rows, count, words, 1)))
        above = upper
    group = ops.concat(numbers, -1).reshape((rows, count, words * groups.PER_WORD))
    values = ops.cast(group, group_scale.dtype) * group_scale + group_bias
    result = values.reshape((rows, count * words * groups.PER_WORD))
    return result.transpose((1, 0)) if dim == 0 else result


_composite = composite("group_quantize_decompress", _build)
