"""Splitting, joining, repeating and padding of host arrays, as sharding a model needs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def shard(x: np.ndarray, n: int, axis: int) -> np.ndarray:
    """Split `axis` into `n` equal parts and stack them on a new first axis.

    Returns:
        Shape `(n, *x.shape)` with `axis` divided by `n`. The order of strides in memory is that
        of `x`; for `n` = 1 it is a view of `x`, so that a memory map stays a map.

    Raises:
        ValueError: where `n` does not divide the axis.
    """
    if n == 1:
        return x[np.newaxis]
    return np.stack(_split(x, n, axis))


def unshard_arrays(xs: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Join arrays of shape `(1, *shape)` along `axis` of `shape`; the first axis goes.

    Raises:
        ValueError: for arrays of different ranks, or whose first axis is not 1.
    """
    if len({x.ndim for x in xs}) != 1 or any(x.shape[0] != 1 for x in xs):
        shapes = ", ".join(str(x.shape) for x in xs)
        raise ValueError(f"arrays to join need one rank and a first axis of 1, got: {shapes}")
    return np.concatenate([x[0] for x in xs], axis=axis)


def unshard(x: np.ndarray, axis: int) -> np.ndarray:
    """Undo `shard`: join the entries of the first axis along `axis` (counted without it)."""
    return np.concatenate(list(x), axis=axis)


def repeat(x: np.ndarray, n: int, axis: int = 0) -> np.ndarray:
    """`n` copies of `x` along a new axis at position `axis`."""
    return np.stack([x] * n, axis=axis)


def repeat_axis(x: np.ndarray, n: int, axis: int = 0) -> np.ndarray:
    """`n` copies of `x` one after the other along the existing `axis`."""
    return np.concatenate([x] * n, axis=handle_negative_axis(x, axis))


def split2D(  # noqa: N802 - PopXL's own name
    x: np.ndarray, n_1: int, n_2: int, axis_1: int, axis_2: int
) -> list[list[np.ndarray]]:
    """`n_1` lists of `n_2` views: `axis_1` split first, then each part along `axis_2`.

    Raises:
        ValueError: where an axis cannot be split into equal parts.
    """
    return [_split(part, n_2, axis_2) for part in _split(x, n_1, axis_1)]


def shard2D(  # noqa: N802
    x: np.ndarray, n_1: int, n_2: int, axis_1: int, axis_2: int
) -> np.ndarray:
    """Split two axes and stack the parts on a new first axis, those of `axis_1` outermost.

    Returns:
        Shape `(n_1 * n_2, *part)`: entry `i_1 * n_2 + i_2` is part `i_1` of `axis_1` and part
        `i_2` of `axis_2`. A view of `x` where both counts are 1.
    """
    if n_1 == n_2 == 1:
        return x[np.newaxis]
    return np.stack([part for row in split2D(x, n_1, n_2, axis_1, axis_2) for part in row])


def unshard2D(  # noqa: N802
    x: np.ndarray, n_1: int, n_2: int, axis_1: int, axis_2: int
) -> np.ndarray:
    """Undo `shard2D`; the axes are counted without the first one.

    Raises:
        ValueError: where the first axis is not `n_1 * n_2` long.
    """
    if x.shape[0] != n_1 * n_2:
        raise ValueError(f"{n_1} x {n_2} shards need a first axis of {n_1 * n_2}, got {x.shape}")
    rows = [unshard(x[i * n_2 : (i + 1) * n_2], axis_2) for i in range(n_1)]
    return np.concatenate(rows, axis=axis_1)


def repeat_shard(
    x: np.ndarray,
    n_repeats: int,
    n_shards: int,
    shard_axis: int,
    sharded_tensor: str = "contiguous",
) -> np.ndarray:
    """Shard `x`, and repeat the shards, on one new first axis of `n_repeats * n_shards`.

    Args:
        sharded_tensor: "contiguous" puts the shards next to each other (0 1 0 1), "strided" the
            copies of a shard (0 0 1 1).

    Raises:
        ValueError: for another `sharded_tensor`.
    """
    shards = shard(x, n_shards, shard_axis)
    if sharded_tensor == "contiguous":
        return repeat_axis(shards, n_repeats, 0)
    if sharded_tensor == "strided":
        return np.repeat(shards, n_repeats, axis=0)
    raise ValueError(f"sharded_tensor is 'contiguous' or 'strided', got {sharded_tensor!r}")


def tensor_parallel_input(
    input_data: np.ndarray,
    tp: int,
    rf: int,
    repeat_fn: Callable[[np.ndarray, int], np.ndarray] | None = None,
) -> np.ndarray:
    """Lay out samples for an input stream: every `tp` replicas in a row get the same one.

    Args:
        input_data: `(n, *data_shape)`.
        tp: replicas that work on one sample.
        rf: all replicas; a multiple of `tp`.
        repeat_fn: called with a copy of `(n, 1, *data_shape)` and its number in 0 .. tp - 1,
            gives what that replica gets instead.

    Returns:
        `(n * tp / rf, rf, *data_shape)`, each of the first two axes left out where it is 1.

    Raises:
        ValueError: where `tp` does not divide `rf`, or the samples do not fill every replica.
    """
    data_parallel = _data_parallel(tp, rf)
    if len(input_data) % data_parallel:
        raise ValueError(
            f"{len(input_data)} samples cannot be dealt to {data_parallel} groups of {tp} replicas"
        )
    samples = input_data[:, np.newaxis]  # [n, 1, *data_shape]
    copies = [repeat_fn(samples.copy(), i) if repeat_fn else samples for i in range(tp)]
    data = np.concatenate(copies, axis=1)  # [n, tp, *data_shape]
    return squeeze_safe(data.reshape(-1, rf, *input_data.shape[1:]), [0, 1])


def tensor_parallel_output(
    output_data: np.ndarray,
    num_host_transfers: int,
    tp: int,
    rf: int,
    data_shape: tuple[int, ...],
    tp_identical: bool = True,
    true_num_host_transfers: int | None = None,
) -> np.ndarray:
    """The samples in an output stream's array, in the order that `tensor_parallel_input` took.

    Args:
        output_data: any shape with `num_host_transfers * rf` entries of `data_shape`.
        tp_identical: the `tp` replicas of a sample gave the same value, so one of them is kept.
        true_num_host_transfers: how many transfers hold data, where not all do.

    Returns:
        `(samples, *data_shape)`, or `(samples, tp, *data_shape)` where not `tp_identical`.

    Raises:
        ValueError: where `tp` does not divide `rf`.
    """
    _data_parallel(tp, rf)
    transfers = output_data.reshape(num_host_transfers, -1, tp, *data_shape)
    samples = transfers[:true_num_host_transfers].reshape(-1, tp, *data_shape)
    return samples[:, 0] if tp_identical else samples


def pad_axis(x: np.ndarray, n: int, axis: int, value: float = 0) -> np.ndarray:
    """`x` with `axis` made `n` long by entries of `value` at its end; `x` itself where it is.

    Raises:
        ValueError: where the axis is longer than `n`.
    """
    axis = handle_negative_axis(x, axis)
    missing = n - x.shape[axis]
    if missing < 0:
        raise ValueError(f"axis {axis} of {x.shape} is longer than {n}, it cannot be padded to it")
    if missing == 0:
        return x
    widths = [(0, missing if i == axis else 0) for i in range(x.ndim)]
    return np.pad(x, widths, constant_values=value)


def squeeze_safe(x: np.ndarray, axis: int | Sequence[int] | None = None) -> np.ndarray:
    """`numpy.squeeze` that leaves an axis which is not 1 as it is."""
    if axis is None:
        return np.squeeze(x)
    axes = {handle_negative_axis(x, a) for a in ([axis] if isinstance(axis, int) else axis)}
    return np.squeeze(x, axis=tuple(a for a in axes if x.shape[a] == 1))


def handle_negative_axis(x: np.ndarray, axis: int) -> int:
    """`axis` counted from the front.

    Raises:
        IndexError: where `x` has no such axis.
    """
    if not -x.ndim <= axis < x.ndim:
        raise IndexError(f"axis {axis} is out of range for an array of {x.ndim} dimensions")
    return axis % x.ndim


def _split(x: np.ndarray, n: int, axis: int) -> list[np.ndarray]:
    axis = handle_negative_axis(x, axis)
    if n < 1 or x.shape[axis] % n:
        raise ValueError(f"axis {axis} of {x.shape} cannot be split into {n} equal parts")
    return np.split(x, n, axis=axis)


def _data_parallel(tp: int, rf: int) -> int:
    if tp < 1 or rf % tp:
        raise ValueError(f"tp = {tp} must divide the number of replicas, rf = {rf}")
    return rf // tp
