"""Host arrays: from whatever a program is given to numpy."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from popxl import dtypes
from popxl.fp8_utils import host_pow2scale_cast_to_fp8  # noqa: F401 - PopXL has it here, too


def to_numpy(
    x: Any,
    dtype: dtypes.dtype | None = None,
    downcast: bool = True,
    copy: bool = True,
    log2_scale: int | None = None,
    nan_on_overflow: bool | None = None,
) -> np.ndarray:
    """`x` (numbers, a list, a numpy array or a torch tensor) as a numpy array.

    Args:
        dtype: the element type wanted; that of `x` where None.
        downcast: narrow 64-bit elements to 32 bits (where `dtype` is None or says so itself).
        copy: give an array of its own; otherwise the memory of `x` where it can be used.
        log2_scale, nan_on_overflow: of 8-bit floats, which this runtime does not have.

    Raises:
        TypeError: for text and other things that hold no numbers.
        ValueError: for a scale, or where rows differ in length.
    """
    if log2_scale is not None or nan_on_overflow is not None:
        raise ValueError(
            "log2_scale and nan_on_overflow belong to 8-bit floats, not supported here"
        )
    array = torch_to_numpy(x) if is_torch(x) else np.asarray(x)
    if array.dtype.kind in "SU":
        raise TypeError(f"a tensor holds numbers, not text, got {x!r}")
    if array.dtype == object and not array.ndim:
        raise TypeError(f"a tensor holds numbers, got {type(x).__name__} {x!r}")
    if array.dtype == object:
        raise ValueError(f"cannot make an array of {type(x).__name__}: rows of different lengths?")
    wanted = dtypes.dtype.as_dtype(dtype if dtype is not None else array.dtype)
    if downcast:
        wanted = dtypes.DOWNCAST.get(wanted, wanted)
    return array.astype(wanted.as_numpy(), copy=copy)


def table_to_string(rows: list[list[Any]]) -> str:
    """Rows as lines of columns, the first row the heads."""
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True)]
    lines = [" | ".join(str(c).ljust(w) for c, w in zip(r, widths, strict=True)) for r in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


downcast_np_dtypes = {wide.as_numpy(): to.as_numpy() for wide, to in dtypes.DOWNCAST.items()}
"""From 64-bit types of numpy to what they are narrowed to."""


def is_torch(x: Any) -> bool:
    """Whether `x` is torch's, which may be asked without importing torch."""
    return type(x).__module__.split(".")[0] == "torch"


def torch_to_numpy(x: Any) -> np.ndarray:
    """An array on the memory of a torch tensor, where that is on the host."""
    import torch

    x = x.detach().cpu()
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return x.numpy()
