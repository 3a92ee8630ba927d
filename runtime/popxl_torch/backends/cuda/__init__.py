"""Kernels of our own for CUDA devices, written in Triton."""

from __future__ import annotations

import functools
import logging
import os
from types import ModuleType

import torch

from popxl_torch import cache

GPU_KERNELS = "POPXL_GPU_KERNELS"
"""Environment variable: 0 lets PyTorch do what the kernels would."""

LEAST_CAPABILITY = 8, 0
"""Of the GPUs that Triton compiles for, the oldest: Ampere, from which on they know bfloat16."""


def kernels_for(device: torch.device) -> ModuleType | None:
    """The functions of `kernels.py`; None where they are not wanted or the device is no GPU."""
    if device.type != "cuda" or os.environ.get(GPU_KERNELS, "1") == "0":
        return None
    return checked(device)


@functools.cache
def checked(device: torch.device) -> ModuleType | None:
    """The functions; None, with one line that says why, where Triton is missing or they are wrong.

    The first session on a device takes some seconds more: kernels are compiled. They are kept.

    Raises:
        RuntimeError: where a kernel has gone so wrong that this process can no longer use the GPU.
    """
    if "TRITON_CACHE_DIR" not in os.environ and cache.folder() is not None:
        os.environ["TRITON_CACHE_DIR"] = str(cache.subfolder("triton"))
    reason = _too_old(device)
    if reason is None:
        try:
            from popxl_torch.backends.cuda import kernels
            from popxl_torch.backends.cuda.check import fault
        except ImportError as error:
            reason = str(error)
        else:
            reason = fault(kernels, device)
            if reason is None:
                return kernels
            _need(device, reason)
    line = "no GPU kernels, PyTorch computes what they would (slower): %s"
    logging.getLogger(__name__).warning(line, reason)
    return None


def _too_old(device: torch.device) -> str | None:
    """Why Triton's compiler is not asked: on a GPU that it does not know it may end the process."""
    if device.type != "cuda":
        return None
    found = torch.cuda.get_device_capability(device)
    if found >= LEAST_CAPABILITY:
        return None
    return "compute capability {}.{} is less than {}.{}".format(*found, *LEAST_CAPABILITY)


def _need(device: torch.device, reason: str) -> None:
    """Raises a `RuntimeError` where the device does nothing any more, for the reason given."""
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        raise RuntimeError(
            f"{device} cannot be used after {reason}: start again with {GPU_KERNELS}=0, which does "
            "without the kernels"
        ) from None
