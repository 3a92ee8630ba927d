"""Quantising a checkpoint's matrices on the host, in blocks of rows, straight into their shards.

A whole row is quantised before anything is cut, so that the numbers are the same for every
sharding. They come from the checkpoint's own values, whatever the precision of the arithmetic.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

import numpy as np
from popxl.utils import to_numpy

from config import BloomConfig
from modelling.aligned import aligned
from modelling.sharding import Axis, axis_size

BLOCK = 1 << 20
"""Elements, about, that a thread quantises at once."""

LARGEST = 127
"""The largest number of 8 bits in use; -128 has no counterpart."""

MOST = 15
"""The largest number of 4 bits."""

ROUNDS = 4
"""Of fitting groups' scale and bias: another one lessens the error by less than a hundredth."""


class QuantizationError(ValueError):
    """A matrix that cannot be quantised."""


Quantize = Callable[[np.ndarray], tuple[np.ndarray, ...]]
"""From float32 `(rows, columns)` to arrays whose first axis is the rows.

Those with a second one have it in proportion to the columns.
"""

Quantized = Callable[[int, int], tuple[np.ndarray, ...]]
"""From the first row and the one after the last to such arrays, of a matrix that has them."""


def channel_quantized(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 `(rows, columns)` and the float32 scale of each row: its largest magnitude / 127.

    Raises:
        QuantizationError: where values are not finite.
    """
    largest = np.maximum(rows.max(-1), -rows.min(-1))
    if not np.isfinite(largest).all():
        raise QuantizationError("weights are not finite")
    scale = largest / np.float32(LARGEST)
    inverse = np.divide(LARGEST, largest, out=np.zeros_like(largest), where=largest > 0)
    numbers = rows * inverse[:, np.newaxis]
    return np.rint(numbers, out=numbers).astype(np.int8), scale


def group_quantized(rows: np.ndarray, group_size: int) -> tuple[np.ndarray, ...]:
    """What `group_quantize_decompress` takes, with less error than from the groups' extremes.

    From scale and bias of the extremes on, numbers are rounded and a line is laid through the
    elements over their numbers by least squares, `ROUNDS` times: the error falls with each.

    Args:
        rows: `(rows, columns)`.

    Returns:
        uint16 words `(rows, groups, group_size / 4)`; float16 scale and bias `(rows, groups, 1)`.

    Raises:
        QuantizationError: where values are not finite, or too large for float16.
    """
    groups = rows.reshape(len(rows), -1, group_size)
    low = groups.min(-1, keepdims=True)
    scale, bias = _halves((groups.max(-1, keepdims=True) - low) / MOST, low)
    numbers = _numbers(groups, scale, bias)
    for _ in range(ROUNDS):
        scale, bias = _halves(*_line(groups, numbers, low))
        numbers = _numbers(groups, scale, bias)
    return packed(numbers), scale, bias


def _halves(scale: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(over="ignore", invalid="ignore"):  # reported below
        halves = scale.astype(np.float16), bias.astype(np.float16)
    if not all(np.isfinite(half).all() for half in halves):
        raise QuantizationError("weights are not finite, or too large for float16")
    return halves


def _numbers(groups: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The nearest numbers 0 to 15, as floats."""
    wide = scale.astype(np.float32)
    inverse = np.divide(1, wide, out=np.zeros_like(wide), where=wide != 0)
    numbers = groups - bias.astype(np.float32)
    numbers *= inverse
    np.rint(numbers, out=numbers)
    return np.clip(numbers, 0, MOST, out=numbers)


def _line(
    groups: np.ndarray, numbers: np.ndarray, low: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Slope and offset of the line through elements over numbers, by least squares."""
    elements, size = groups - low, groups.shape[-1]  # from 0 on: the sums below lose no digits
    number, element = (t.mean(-1, keepdims=True) for t in (numbers, elements))
    spread = _dot(numbers, numbers) - size * number * number
    slope = _dot(numbers, elements) - size * number * element
    slope = np.divide(slope, spread, out=np.zeros_like(slope), where=spread > 0)
    return slope, element - slope * number + low


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("rgi,rgi->rg", a, b)[..., np.newaxis]


def packed(numbers: np.ndarray) -> np.ndarray:
    """Four numbers a uint16 word, the first in its highest bits: a quarter of the last axis."""
    four = numbers.astype(np.uint8).view("<u4")
    words = (four & 0xF) << 12
    words |= four & 0xF00
    words |= (four >> 12) & 0xF0
    words |= four >> 24
    return words.astype(np.uint16)


def quantize_matrix(
    config: BloomConfig,
    weight: Any,
    rows: Axis,
    height: int,
    quantize: Quantize,
    quantized: Quantized | None = None,
) -> list[np.ndarray]:
    """The arrays of a checkpoint's `(n, m)`, rows over one axis and columns over the other.

    Args:
        height: of the whole; zeros are added up to it.
        quantized: gives them where the checkpoint has them, and `quantize` only their shapes.

    Returns:
        Each as a variable's host data: with two axes or more `(replicas, *shard)`, those of rows
        alone `(parts, height / parts)`; without the first axis where that is 1.
    """
    count, width = weight.shape
    height //= axis_size(config, rows)
    like = quantize(np.zeros((1, width), np.float32))
    shards = [_Shards(config, rows, height, one) for one in like]
    step, reading = max(1, BLOCK // width), Lock()

    def convert(top: int) -> None:
        part, begin = divmod(top, height)
        end = min(top - begin + min(begin + step, height), count)
        if quantized is not None:
            arrays = quantized(top, end)
        else:
            with reading:  # in order: what was read leaves memory
                block = to_numpy(weight[top:end].detach(), copy=False).astype(np.float32)
            arrays = quantize(block)
        for of_array, array in zip(shards, arrays, strict=True):
            of_array.put(part, begin, array)

    tops = [
        top
        for first in range(0, count, height)
        for top in range(first, min(first + height, count), step)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(convert, tops))
    return [of_array.host_data() for of_array in shards]


class _Shards:
    """An array of a quantised matrix, cut for the replicas; zeros where nothing is put."""

    def __init__(self, config: BloomConfig, rows: Axis, height: int, one: np.ndarray):
        """
        Args:
            height: rows of a shard.
            one: the array of one row.
        """
        tp1, tp2 = axis_size(config, "tp1"), axis_size(config, "tp2")
        down, self._across = (tp1, tp2) if rows == "tp1" else (tp2, tp1)
        if one.ndim == 1:
            self._array = aligned(np.zeros, (down, height), one.dtype)
            return
        shard = (height, one.shape[1] // self._across, *one.shape[2:])
        self._array = aligned(np.zeros, (tp1, tp2, *shard), one.dtype)
        self._by_row = self._array if rows == "tp1" else self._array.swapaxes(0, 1)

    def put(self, part: int, begin: int, values: np.ndarray) -> None:
        """What rows of a part are from its `begin`th on."""
        count = len(values)
        if values.ndim == 1:
            self._array[part, begin : begin + count] = values
            return
        pieces = values.reshape(count, self._across, -1, *values.shape[2:]).swapaxes(0, 1)
        self._by_row[part, :, begin : begin + count] = pieces

    def host_data(self) -> np.ndarray:
        """All shards behind each other, without an axis for one alone."""
        array = self._array
        if array.ndim > 2:
            array = array.reshape(-1, *array.shape[2:])
        return array if len(array) > 1 else array[0]
