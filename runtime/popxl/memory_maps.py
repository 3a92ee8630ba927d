"""Variables whose host value is a file: numpy's memory maps."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from popxl import dtypes
from popxl.replica_grouping import ReplicaGrouping


def is_writable(array: np.memmap) -> bool:
    """Whether what is written to the array is written to its file."""
    return array.mode in ("r+", "w+") and array.flags.writeable


def memory_map(
    name: str | None, data: Any, dtype: dtypes.dtype | None, grouping: ReplicaGrouping | None
) -> np.memmap | None:
    """The memory map that a variable's data is; None where it is none.

    Raises:
        ValueError: where the map is writable, and the variable cannot use it as it is: what the
            program writes could not come back to the file.
    """
    if not isinstance(data, np.memmap) or getattr(data, "mode", None) not in ("r", "r+", "w+"):
        return None
    if not is_writable(data):
        return data
    wanted = dtypes.dtype.as_dtype(data.dtype if dtype is None else dtype)
    wanted = dtypes.DOWNCAST.get(wanted, wanted)
    if wanted.as_numpy() != data.dtype:
        raise ValueError(
            f"variable {name or ''}: its memory map is {data.dtype.name}, it would be "
            f"{wanted}; map the file in the variable's dtype"
        )
    if not (data.flags.c_contiguous and data.flags.aligned):
        raise ValueError(f"variable {name or ''}: its memory map must be C-ordered and aligned")
    if grouping is not None and not grouping.is_const:
        warnings.warn(
            f"variable {name or ''}: no single stride and size describe its groups, so its memory "
            "map is copied and not written back to",
            stacklevel=4,
        )
        return None
    return data
