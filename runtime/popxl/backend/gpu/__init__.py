"""Kernels of our own for CUDA devices, written in Triton."""

from __future__ import annotations

import functools
import logging
import os
from types import ModuleType

import torch

from popxl.backend import cache

GPU_KERNELS = "POPXL_GPU_KERNELS"
"""Environment variable: 0 lets PyTorch do what the kernels would."""


def kernels_for(device: torch.device) -> ModuleType | None:
    """The functions of `kernels.py`; None where they are not wanted or the device is no GPU."""
    if device.type != "cuda" or os.environ.get(GPU_KERNELS, "1") == "0":
        return None
    return checked(device)


@functools.cache
def checked(device: torch.device) -> ModuleType | None:
    """The functions; None, with one line that says why, where Triton is missing or they are wrong.

    The first session on a device takes some seconds more: kernels are compiled. They are kept.
    """
    kept = cache.folder()
    if kept is not None:
        os.environ.setdefault("TRITON_CACHE_DIR", str(kept / "triton"))
    try:
        from popxl.backend.gpu import kernels
        from popxl.backend.gpu.check import fault
    except ImportError as error:
        reason: str | None = str(error)
    else:
        reason = fault(kernels, device)
        if reason is None:
            return kernels
    line = "no GPU kernels, PyTorch computes what they would (slower): %s"
    logging.getLogger(__name__).warning(line, reason)
    return None
