"""What kinds of steps mean, in numpy: arrays are `(samples, replicas, *shape)`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

LEAD = 2
"""Axes in front of every array: samples and replicas."""


def aligned(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """numpy's broadcasting of the shapes behind the leading axes."""

    def run(*arrays: np.ndarray, **settings: Any) -> np.ndarray:
        rank = max(a.ndim for a in arrays)
        return function(*(of_rank(a, rank) for a in arrays), **settings)

    return run


def of_rank(a: np.ndarray, rank: int) -> np.ndarray:
    return a.reshape(a.shape[:LEAD] + (1,) * (rank - a.ndim) + a.shape[LEAD:])


def place_of(a: np.ndarray, axis: int) -> int:
    return axis if axis < 0 else axis + LEAD


def transposed(a: np.ndarray, permutation: tuple[int, ...]) -> np.ndarray:
    return a.transpose(0, 1, *(p + LEAD for p in permutation))


def sliced_from(a: np.ndarray, start: int, stop: int, axis: int) -> np.ndarray:
    return a.take(range(start, stop), axis=place_of(a, axis))


def softmax(a: np.ndarray) -> np.ndarray:
    powers = np.exp(a - a.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def gelu(a: np.ndarray) -> np.ndarray:
    return 0.5 * a * (1 + np.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))


def layer_norm(a: np.ndarray, w: np.ndarray, b: np.ndarray, eps: float) -> np.ndarray:
    centred = a - a.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    return normed * of_rank(w, a.ndim) + of_rank(b, a.ndim)


def by_replica(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """What a collective does, on replicas in front; `group` is the number of each one's group."""

    def run(a: np.ndarray, group: list[int], **settings: Any) -> np.ndarray:
        return np.stack([function(sample, group, **settings) for sample in a])

    return run


def parts(a: np.ndarray, index: np.ndarray, axes: tuple[int, ...], sizes: tuple[int, ...]) -> list:
    """Where the part of each sample and replica lies."""
    places = []
    for sample, replica in np.ndindex(a.shape[:LEAD]):
        place: list[Any] = [slice(None)] * (a.ndim - LEAD)
        at = np.broadcast_to(index, (*a.shape[:LEAD], index.shape[-1]))[sample, replica]
        for axis, size, begin in zip(axes, sizes, at.astype(int), strict=True):
            begin = min(max(begin, 0), a.shape[LEAD + axis] - size)
            place[axis] = slice(begin, begin + size)
        places.append((sample, replica, *place))
    return places


def updated(a, index, part, axes, sizes) -> np.ndarray:
    changed = a.copy()
    for place in parts(a, index, axes, sizes):
        changed[place] = np.broadcast_to(part, (*a.shape[:LEAD], *part.shape[LEAD:]))[place[:LEAD]]
    return changed


def sliced(a, index, axes, sizes) -> np.ndarray:
    taken = [a[place] for place in parts(a, index, axes, sizes)]
    return np.stack(taken).reshape(a.shape[:LEAD] + taken[0].shape)


def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    rank = max(a.ndim, b.ndim)
    return of_rank(a, rank) @ of_rank(b, rank)


def magnitudes(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda *arrays, **settings: function(*map(np.abs, arrays), **settings)


def gathered(a: np.ndarray, indices: np.ndarray) -> np.ndarray:
    samples, replicas = np.indices((*a.shape[:LEAD], *indices.shape[LEAD:]))[:LEAD]
    return a[samples, replicas, indices.astype(int)]


erf = np.vectorize(math.erf, otypes=[float])


def distributed_norm(a: np.ndarray, w, b, eps: float, group: list[int]) -> np.ndarray:
    """Layer norm of rows whose parts the members of a group hold."""
    numbers = np.array(group)
    normed = np.empty_like(a)
    for g in set(group):
        whole = np.concatenate(list(a[:, numbers == g].swapaxes(0, 1)), axis=-1)
        mean, variance = whole.mean(-1, keepdims=True), whole.var(-1, keepdims=True)
        normed[:, numbers == g] = (a[:, numbers == g] - mean[:, None]) / np.sqrt(
            variance[:, None] + eps
        )
    return normed * of_rank(w, a.ndim) + of_rank(b, a.ndim)


def decompressed(words: np.ndarray, scale: np.ndarray, offset: np.ndarray, dim: int) -> np.ndarray:
    numbers = (words.astype(int)[..., None] >> np.arange(12, -4, -4)) & 15
    values = numbers.reshape(*words.shape[:-1], -1) * scale + offset
    values = values.reshape(*words.shape[:-2], -1)
    return values.swapaxes(-1, -2) if dim == 0 else values
