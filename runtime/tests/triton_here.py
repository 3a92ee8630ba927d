"""The GPU kernels as tests run them: on a GPU, or without one in Triton's interpreter, in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

pytest.importorskip("triton", reason="triton is not installed: it is in requirements-dev.txt")

import triton.language as tl  # noqa: E402
from popxl.backend.gpu import kernels, matrix_kernels  # noqa: E402
from triton.runtime import interpreter  # noqa: E402

__all__ = ["DEVICE", "kernels", "matrix_kernels"]


def _widened(handle: Any) -> Any:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    bits = handle.data.astype(np.uint32) << 16
    return interpreter.TensorHandle(bits.view(np.float32), tl.float32)


def _dot_of_bfloat16(dot: Any) -> Any:
    """The interpreter multiplies bfloat16 as the whole numbers that it keeps it in."""
    return lambda self, a, b, *others: dot(self, _widened(a), _widened(b), *others)


if DEVICE.type == "cpu":
    builder = interpreter.InterpreterBuilder
    builder.create_dot = _dot_of_bfloat16(builder.create_dot)
