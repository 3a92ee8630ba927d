"""Quantising a checkpoint's matrices on the host, in blocks of rows, straight into their shards.

A whole row is quantised before anything is cut, so that the numbers are the same for every
sharding. They come from the checkpoint's own values, whatever the precision of the arithmetic.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
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

Quantize = Callable[[np.ndarray], tuple[np.ndarray, ...]]
"""From float32 `(rows, columns)` to arrays whose first axis is the rows.

Those with a second one have it in proportion to the columns.
"""

Quantized = Callable[[int, int], tuple[np.ndarray, ...]]
"""From the first row and the one after the last to such arrays, of a matrix that has them."""


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

    def convert(block: tuple[int, int]) -> None:
        top, end = block
        part, begin = divmod(top, height)
        if quantized is not None:
            arrays = quantized(top, end)
        else:
            with reading:  # in order: what was read leaves memory
                read = to_numpy(weight[top:end].detach(), copy=False).astype(np.float32)
            arrays = quantize(read)
        for of_array, array in zip(shards, arrays, strict=True):
            of_array.put(part, begin, array)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(convert, _blocks(count, height, step)))
    return [of_array.host_data() for of_array in shards]


def _blocks(count: int, height: int, step: int) -> Iterator[tuple[int, int]]:
    """From which row to before which, `step` of them at most, and none of two shards."""
    for first in range(0, count, height):
        last = min(first + height, count)
        for top in range(first, last, step):
            yield top, min(top + step, last)


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
