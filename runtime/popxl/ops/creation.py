"""Tensors from nothing."""

from __future__ import annotations

from collections.abc import Iterable

from popxl import dtypes
from popxl.ops._build import emit_one
from popxl.tensor import Tensor, TensorSpec


def init(
    shape: Iterable[int],
    dtype: dtypes.dtype,
    name: str | None = None,
    init_type: str = "zero",
    meta_shape: Iterable[int] | None = None,
) -> Tensor:
    """A new tensor of zeros ("zero") or of anything ("undef").

    Raises:
        ValueError: for another `init_type`.
    """
    if init_type not in ("zero", "undef"):
        raise ValueError(f"init: init_type must be 'zero' or 'undef', got {init_type!r}")
    return emit_one("init", [], TensorSpec(shape, dtype, meta_shape or ()), name=name)
