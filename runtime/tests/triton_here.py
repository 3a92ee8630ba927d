"""The GPU kernels as tests run them: on a GPU, or without one in Triton's interpreter, in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

pytest.importorskip("triton", reason="triton is not installed: it is in requirements-dev.txt")

import triton.language as tl  # noqa: E402
from popxl_torch.backends.cuda import kernels, matrix_kernels  # noqa: E402
from triton.runtime import interpreter  # noqa: E402

__all__ = ["DEVICE", "TOLERANCE", "dtypes", "held_once", "kernels", "matrix_kernels", "random"]

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape).to(dtype).to(DEVICE)


def held_once(tensor: torch.Tensor, once: bool, replicas: int) -> torch.Tensor:
    """The first replica's for all of them, if so."""
    return tensor[:1].expand(replicas, *tensor.shape[1:]) if once else tensor


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
