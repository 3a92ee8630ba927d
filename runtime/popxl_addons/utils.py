"""Small containers and a timer."""

from __future__ import annotations

import collections
import logging
import sys
import time
import typing
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import popxl

logger = logging.getLogger(__name__)

_KT = typing.TypeVar("_KT")
_VT = typing.TypeVar("_VT")
T = typing.TypeVar("T")


class OrderedDict(collections.OrderedDict, typing.MutableMapping[_KT, _VT]):
    """A dictionary whose values can also be had by position."""

    def idx(self, idx: int) -> _VT:
        """The value at position `idx`."""
        return list(self.values())[idx]


class WeightsDict(MutableMapping[popxl.Variable, np.ndarray]):
    """From variables to their values; an entry that does not fit its variable is refused."""

    def __init__(self, *args: Any, **kwargs: Any):
        self._data: dict[popxl.Variable, np.ndarray] = {}
        self.update(*args, **kwargs)

    def __getitem__(self, key: popxl.Variable) -> np.ndarray:
        return self._data[key]

    def __setitem__(self, key: popxl.Variable, value: np.ndarray) -> None:
        """Keep a value in the variable's host shape.

        Raises:
            ValueError: where the dtype or the host shape differs from the variable's; for one
                replica group the value may have a first axis of 1.
        """
        dtype = popxl.dtypes.dtype.as_dtype(value.dtype)
        if dtype != key.dtype:
            raise ValueError(f"variable {key.name} is {key.dtype}, its value is {dtype}")
        if value.shape == (1, *key.shape_on_host) and key.replica_grouping.num_groups == 1:
            value = value[0]
        if tuple(value.shape) != tuple(key.shape_on_host):
            raise ValueError(
                f"variable {key.name} has shape {tuple(key.shape_on_host)} on the host, "
                f"its value has {tuple(value.shape)}"
            )
        self._data[key] = value

    def __delitem__(self, key: popxl.Variable) -> None:
        del self._data[key]

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[popxl.Variable]:
        return iter(self._data)

    def __repr__(self) -> str:
        shapes = {variable.name: value.shape for variable, value in self._data.items()}
        return f"WeightsDict({shapes})"


@contextmanager
def null_context() -> Iterator[None]:
    """A context that does nothing."""
    yield


def io_tiles_where(wanted: bool) -> AbstractContextManager:
    """`popxl.io_tiles()`, or a context that does nothing."""
    return popxl.io_tiles() if wanted else null_context()


def suffix_graph_name(name: str, suffix: str) -> str:
    """`name_suffix`."""
    return f"{name}_{suffix}"


def overrides(cls: type, base_cls: type, method: str) -> bool:
    """Whether a class has another method of that name than its base."""
    return getattr(cls, method) is not getattr(base_cls, method)


def duplicate_items(iterable: Iterable[T]) -> list[T]:
    """The items that are there more than once, in the order of their first places."""
    return [item for item, count in collections.Counter(iterable).items() if count > 1]


@contextmanager
def timer(title: str | None = None, log_to_wandb: bool = True) -> Iterator[None]:
    """Log how long the block took: in seconds up to two minutes, then in minutes.

    Args:
        title: names the block in the log.
        log_to_wandb: also add the time to the summary of the Weights & Biases run, where the
            program has started one.
    """
    logger.info("Starting %s", title or "")
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    minutes = seconds / 60
    taken = f"{seconds:.1f} s" if seconds < 120 else f"{minutes:.1f} min"
    logger.info("%s: %s", f"{title} duration" if title else "Duration", taken)
    run = getattr(sys.modules.get("wandb"), "run", None)  # a run exists only if it was imported
    if log_to_wandb and title and run is not None:
        run.summary[f"{title.lower().replace(' ', '_')}_mins"] = minutes
