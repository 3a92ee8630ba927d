"""The values that variables start with, one for each replica group of each variable."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import popxl
from popxl.utils import to_numpy

DataIter = Callable[[], Any] | Iterable[Any]
"""A function that gives a host array each time, or something to iterate over that has them."""


class DataSource:
    """An endless or finite row of host arrays of one shape.

    A function that has the attributes `shape` and `dtype` is believed and called only when a
    value is needed; any other is called once to see what it gives.
    """

    def __init__(self, data_iter: DataIter, name: str | None):
        """
        Args:
            name: of the variable, for messages.

        Raises:
            ValueError: where `data_iter` is neither a function nor iterable, is empty or fails.
        """
        self._name = name
        self._values, sample = self._open(data_iter)
        self.shape: tuple[int, ...] = tuple(sample.shape)
        self.dtype = _narrowed(sample.dtype)

    def next(self, dtype: popxl.dtypes.dtype) -> np.ndarray:
        """The next value, in `dtype`.

        Raises:
            ValueError: where there is none left, or it has another shape than those before.
        """
        try:
            value = to_numpy(next(self._values), dtype, copy=False)
        except StopIteration:
            raise ValueError(
                f"variable {self._name}: its data ran out; each variable made takes a value for "
                "each of its replica groups"
            ) from None
        if value.shape != self.shape:
            raise ValueError(
                f"variable {self._name}: its data had shape {self.shape}, now it has {value.shape}"
            )
        return value

    def _open(self, data_iter: DataIter) -> tuple[Iterator[Any], Any]:
        """The values, and something that has the shape and dtype of each."""
        if callable(data_iter):
            calls = (data_iter() for _ in itertools.repeat(None))
            return calls, data_iter if _has_spec(data_iter) else self._call(data_iter)
        if not isinstance(data_iter, Iterable):
            raise ValueError(
                f"variable {self._name}: data_iter is a function or an iterable, got "
                f"{type(data_iter).__name__}; for one value write `lambda: value`"
            )
        values = iter(data_iter)
        try:
            first = next(values)
        except StopIteration:
            raise ValueError(f"variable {self._name}: its data_iter is empty") from None
        return itertools.chain([first], values), _array(first)

    def _call(self, data_iter: Callable[[], Any]) -> Any:
        try:
            return _array(data_iter())
        except Exception as error:
            raise ValueError(f"variable {self._name}: its data_iter failed: {error}") from error


def _has_spec(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _array(value: Any) -> Any:
    return value if _has_spec(value) else np.asarray(value)


def _narrowed(dtype: Any) -> popxl.dtypes.dtype:
    """What a variable of host data of this dtype has: 64 bits become 32."""
    host = popxl.dtypes.dtype.as_dtype(dtype).as_numpy()
    return popxl.dtypes.dtype.as_dtype(to_numpy(np.empty(0, host)).dtype)
