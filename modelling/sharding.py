"""Two-dimensional tensor parallelism: who holds which part of what.

Replica r = i1 * tp2 + i2. The hidden dimension of activations is split over tp2; heads, the
feed-forward's inner dimension and the vocabulary over tp1. Of what is split over an axis of
parallelism, part i belongs to the replicas whose index on it is i.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import numpy as np
import popxl
from popxl.utils import to_numpy

from config import BloomConfig
from modelling.aligned import aligned

Axis = Literal["tp1", "tp2"]

STRIP = 1 << 19
"""Elements of a checkpoint's matrix, about, that are cut up at once: a cache holds them."""

_wanted: ContextVar[Sequence[int] | None] = ContextVar("wanted", default=None)


@contextmanager
def only_replicas(replicas: Sequence[int]) -> Iterator[None]:
    """Inside, `shard_matrix` fills the shards of these replicas alone: another process has others.

    The other shards are not touched, so that they take no memory, and nothing is read for them.
    """
    token = _wanted.set(replicas)
    try:
        yield
    finally:
        _wanted.reset(token)


def axis_size(config: BloomConfig, axis: Axis) -> int:
    """The number of parts along an axis of parallelism."""
    execution = config.execution
    return execution.tensor_parallel_1 if axis == "tp1" else execution.tensor_parallel_2


def other(axis: Axis) -> Axis:
    """The axis that `axis` is not."""
    return "tp2" if axis == "tp1" else "tp1"


def split_over(config: BloomConfig, axis: Axis) -> popxl.ReplicaGrouping:
    """The grouping of a variable that is split over one axis: along the other it is the same."""
    return along(config, other(axis))


def split_over_both() -> popxl.ReplicaGrouping:
    """The grouping of a variable that is split over both axes: every replica has its own part."""
    return popxl.gir().replica_grouping(group_size=1)


def along(config: BloomConfig, axis: Axis) -> popxl.ReplicaGrouping:
    """The replicas that lie along an axis, a group each line: those that sum over it together."""
    stride = config.execution.tensor_parallel_2 if axis == "tp1" else 1
    return popxl.gir().replica_grouping(stride=stride, group_size=axis_size(config, axis))


def all_reduce(config: BloomConfig, x: popxl.Tensor, axis: Axis) -> popxl.Tensor:
    """The sum of `x` over an axis of parallelism."""
    if axis_size(config, axis) == 1:
        return x
    return popxl.ops.collectives.replicated_all_reduce(x, group=along(config, axis))


def blank(shape: tuple[int, ...], dtype: popxl.dtypes.dtype) -> Callable[[], np.ndarray]:
    """A source of zeros for a variable's data that takes no memory; weights are written later."""
    return lambda: np.broadcast_to(np.zeros((), dtype.as_numpy()), shape)


def host_array(config: BloomConfig, weight: Any) -> np.ndarray:
    """A checkpoint's tensor in numpy and the model's precision; its own memory where that fits."""
    converted = weight.detach().to(config.model.dtype.as_torch())
    return to_numpy(converted, copy=False)


def shard_vector(config: BloomConfig, vector: np.ndarray, over: Axis) -> np.ndarray:
    """`(size,)` as a variable's host data: `(parts, size / parts)`, or as it is for one part."""
    parts = axis_size(config, over)
    return vector if parts == 1 else vector.reshape(parts, -1)


def shard_matrix(
    config: BloomConfig, weight: Any, rows: Axis, height: int | None = None
) -> np.ndarray:
    """A checkpoint's `(n, m)`, rows over one axis and columns over the other, for every replica.

    Args:
        height: of the whole; rows of zeros are added up to it.

    Returns:
        `(replicas, height / ., m / .)`; for one replica `(height, m)`, the checkpoint's own memory
        where nothing has to be added or converted. Otherwise it is the only copy that is made.
    """
    height = height or weight.shape[0]
    if config.execution.replicas == 1 and height == weight.shape[0]:
        return host_array(config, weight)
    tp1, tp2 = axis_size(config, "tp1"), axis_size(config, "tp2")
    across, down = (tp2, tp1) if rows == "tp1" else (tp1, tp2)
    tile = (height // down, weight.shape[1] // across)
    shards = aligned(np.empty, (tp1, tp2, *tile), config.model.dtype.as_numpy())
    by_row = shards if rows == "tp1" else shards.swapaxes(0, 1)  # (down, across, *tile)
    wanted = _wanted_tiles(rows, tp1, tp2)  # (down, across)
    step = max(1, STRIP // weight.shape[1])
    for top, parts, taken in zip(range(0, height, tile[0]), by_row, wanted, strict=True):
        columns = np.flatnonzero(taken)
        if not columns.size:
            continue
        first, last = columns[0], columns[-1] + 1
        for begin in range(0, tile[0], step):  # of whole rows: each is read but once
            target = parts[first:last, begin : begin + step]
            here = weight[top + begin : top + begin + target.shape[1]]
            strip = host_array(config, here[:, first * tile[1] : last * tile[1]])
            by_tile = strip.reshape(-1, last - first, tile[1]).swapaxes(0, 1)
            target[:, : len(strip)] = by_tile
            target[:, len(strip) :] = 0
    return shards.reshape(-1, *tile) if config.execution.replicas > 1 else shards[0, 0]


def _wanted_tiles(rows: Axis, tp1: int, tp2: int) -> np.ndarray:
    """Which tiles of a matrix are filled, `(down, across)`."""
    replicas = _wanted.get()
    wanted = np.full(tp1 * tp2, replicas is None)
    wanted[list(replicas or ())] = True
    by_axis = wanted.reshape(tp1, tp2)
    return by_axis if rows == "tp1" else by_axis.T
