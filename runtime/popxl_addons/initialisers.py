"""First values of variables, described before they are made.

A factory that knows shape and dtype beforehand need not make the data to find them out, so a
program of any size is built without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Initialiser:
    """Calling it gives an array of `shape` and `dtype`."""

    shape: tuple[int, ...]
    make: Callable[[tuple[int, ...]], np.ndarray]
    dtype: np.dtype = np.dtype(np.float32)

    def __call__(self) -> np.ndarray:
        return self.make(self.shape)


def full(shape: Iterable[int], value: float, dtype: type = np.float32) -> Initialiser:
    """Every element `value`."""
    return Initialiser(tuple(shape), lambda s: np.full(s, value, dtype), np.dtype(dtype))


def truncated_normal(shape: Iterable[int], scale: float = 0.02) -> Initialiser:
    """A normal distribution cut at two standard deviations, of standard deviation `scale` uncut.

    `numpy.random.seed` makes the values repeat.
    """
    return Initialiser(tuple(shape), lambda s: _truncated_normal(s) * np.float32(scale))


def _truncated_normal(shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(np.random.randint(2**31))
    values = rng.standard_normal(shape, dtype=np.float32)
    flat = values.reshape(-1)
    outside = np.flatnonzero(np.abs(flat) > 2)
    while outside.size:
        flat[outside] = rng.standard_normal(outside.size, dtype=np.float32)
        outside = outside[np.abs(flat[outside]) > 2]
    return values
