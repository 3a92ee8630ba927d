"""Between numpy and torch, sharing memory."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import ml_dtypes
import numpy as np
import torch
from popxl.utils import torch_to_numpy

_BITS = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


def to_torch(array: np.ndarray) -> torch.Tensor:
    """A tensor on the array's memory, strides kept (a copy where torch has no such strides)."""
    if any(stride < 0 or stride % array.itemsize for stride in array.strides):
        array = array.copy()
    if array.flags.writeable:
        return _shared(array)
    with warnings.catch_warnings():
        # A read-only map is never written to: cells copy shared memory before they write.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return _shared(array)


def _shared(array: np.ndarray) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """An array on the tensor's memory, where that is on the host."""
    return torch_to_numpy(tensor)


def repeated(values: torch.Tensor, shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """A tensor filled with `values` over and over, as `np.resize` does, made where it is."""
    result = torch.empty(tuple(shape), dtype=values.dtype, device=device)
    bits = _BITS.get(values.dtype, values.dtype)  # few operations of CUDA know unsigned types
    flat, once = result.view(-1).view(bits), values.view(bits).to(device)
    whole = flat.numel() // once.numel() * once.numel()
    flat[:whole].view(-1, once.numel()).copy_(once)
    flat[whole:].copy_(once[: flat.numel() - whole])
    return result


def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that all of them broadcast to.

    torch's own function imports a computer algebra system first, which takes 0.4 s of a start.
    """
    return np.broadcast_shapes(*shapes)
