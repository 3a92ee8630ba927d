"""Kernels of our own for CUDA devices, written in Triton."""

from __future__ import annotations

import functools
import logging
import os
from types import ModuleType

import torch

GPU_KERNELS = "POPXL_GPU_KERNELS"
"""Environment variable: 0 lets PyTorch do what the kernels would."""


def kernels_for(device: torch.device) -> ModuleType | None:
    """The functions of `kernels.py`; None where they are not wanted or the device is no GPU."""
    if device.type != "cuda" or os.environ.get(GPU_KERNELS, "1") == "0":
        return None
    return _loaded()


@functools.cache
def _loaded() -> ModuleType | None:
    """None, with one line that says so, where Triton is not installed."""
    try:
        from popxl.backend.gpu import kernels
    except ImportError as error:
        reason = "no GPU kernels, PyTorch computes what they would (slower): %s"
        logging.getLogger(__name__).warning(reason, error)
        return None
    return kernels
