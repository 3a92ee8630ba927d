"""A stream and the op that uses it, in one call."""

from __future__ import annotations

from typing import Any

import numpy as np
import popxl
from popxl import ops
from popxl.utils import to_numpy


def host_load(
    t: Any, dtype: popxl.dtypes.dtype, name: str
) -> tuple[np.ndarray, popxl.HostToDeviceStream, popxl.Tensor]:
    """Load tensors like the host array `t`.

    Returns:
        `t` in `dtype`, as the session wants it; the stream, called `name_stream`; the tensor.
    """
    array = to_numpy(t, dtype)
    stream = popxl.h2d_stream(array.shape, dtype, f"{name}_stream")
    return array, stream, ops.host_load(stream, name)


def host_store(t: popxl.Tensor) -> popxl.DeviceToHostStream:
    """Store `t` to the host; returns its stream."""
    stream = popxl.d2h_stream(t.shape, t.dtype, f"{t.name}_stream")
    ops.host_store(stream, t)
    return stream
