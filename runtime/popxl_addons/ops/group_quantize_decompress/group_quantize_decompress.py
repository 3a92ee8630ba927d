"""Tensors of 4 bits an element, quantised in groups (FlexGen, arXiv 2303.06865, section 5).

A group of neighbouring elements is stored as its minimum (the bias), a sixteenth part of its range
(the scale) and a number 0 to 15 for each element. Four numbers make a 16-bit word, the first in its
highest bits. The dimension that groups lie along is the last one of the stored tensors.
"""

from __future__ import annotations

import numpy as np
import popxl
from popxl import ops

from ..composite import composite

NIBBLES = 4
"""Numbers in a word."""
_LEVELS = 15  # the largest number
_SHIFTS = np.arange(NIBBLES)[::-1] * 4


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
    groups = tuple(t.shape[:-1])
    if t.dtype != popxl.uint16 or len(t.shape) != 3:
        raise ValueError(f"t must be uint16 of 3 dimensions, got {t.dtype} {tuple(t.shape)}")
    for name, value in (("group_scale", group_scale), ("group_bias", group_bias)):
        if tuple(value.shape) not in (groups, (*groups, 1)) or value.dtype != group_scale.dtype:
            raise ValueError(
                f"{name} must be {group_scale.dtype} {(*groups, 1)}, "
                f"got {value.dtype} {tuple(value.shape)}"
            )
    if dim not in (-1, 0, 1):
        raise ValueError(f"dim is 0, 1 or -1, got {dim}")
    scale, bias = (v.reshape((*groups, 1)) for v in (group_scale, group_bias))
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
    nibbles = (t[..., np.newaxis] >> _SHIFTS.astype(np.uint16)) & np.uint16(_LEVELS)
    numbers = nibbles.reshape(*t.shape[:-1], -1).astype(group_scale.dtype)
    values = numbers * group_scale + group_bias  # [*rows, groups, words * 4]
    return np.moveaxis(values.reshape(*t.shape[:-2], -1), -1, dim)


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
    if group_size < NIBBLES or group_size % NIBBLES or size % group_size:
        raise ValueError(
            f"group_size must be a multiple of {NIBBLES} that divides dimension {dim} of "
            f"{t.shape}, got {group_size}"
        )
    grouped = np.moveaxis(t, dim, -1).astype(np.float32)
    grouped = grouped.reshape(*grouped.shape[:-1], size // group_size, group_size)
    low, high = grouped.min(-1, keepdims=True), grouped.max(-1, keepdims=True)
    with np.errstate(over="ignore", invalid="ignore"):  # reported below
        bias = low.astype(np.float16)
        scale = ((high - low) / _LEVELS).astype(np.float16)
    if not (np.isfinite(bias).all() and np.isfinite(scale).all()):
        raise ValueError("t has values that are not finite or too large for float16")
    return _pack(grouped, scale.astype(np.float32), bias.astype(np.float32)), scale, bias


def _pack(grouped: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    # a group of equal elements has scale 0, and number 0 for all of them
    numbers = np.rint((grouped - bias) / np.where(scale == 0, 1, scale))
    numbers = numbers.clip(0, _LEVELS).astype(np.uint16)
    words = numbers.reshape(*numbers.shape[:-1], -1, NIBBLES) << _SHIFTS.astype(np.uint16)
    return np.bitwise_or.reduce(words, axis=-1)


def _build(
    t: popxl.Tensor, group_scale: popxl.Tensor, group_bias: popxl.Tensor, dim: int
) -> popxl.Tensor:
    rows, groups, words = t.shape
    rest = ops.cast(t, popxl.float32)  # a float32 holds 16 bits exactly, and PopXL has no shifts
    numbers: list[popxl.Tensor] = []
    for _ in range(NIBBLES):  # from the lowest bits, which are the last number
        higher = ops.floor(rest / 16)
        numbers.insert(0, (rest - higher * 16).reshape((rows, groups, words, 1)))
        rest = higher
    group = ops.concat(numbers, -1).reshape((rows, groups, words * NIBBLES))
    values = ops.cast(group, group_scale.dtype) * group_scale + group_bias
    result = values.reshape((rows, groups * words * NIBBLES))
    return result.transpose((1, 0)) if dim == 0 else result


_composite = composite("group_quantize_decompress", _build)
