"""The choice of a session's back end."""

from __future__ import annotations

import torch

from popxl_torch.backends import cuda
from popxl_torch.backends.back_end import BackEnd
from popxl_torch.backends.cpu import library
from popxl_torch.backends.cpu.back_end import Cpu
from popxl_torch.backends.cuda import graphs
from popxl_torch.backends.cuda.back_end import Cuda
from popxl_torch.backends.reference.back_end import Reference


def chosen(device: torch.device, kernels: bool, captured: bool) -> BackEnd:
    """The back end of a device.

    Args:
        kernels: whether kernels may be used; without, the reference does everything.
        captured: whether graphs on a GPU may be captured.
    """
    of_gpu = cuda.kernels_for(device) if kernels else None
    if device.type != "cpu" or of_gpu is not None:
        captures = captured and graphs.enabled(device)
        return Cuda(of_gpu, graphs.CudaGraphs(device, graphs.CudaCapture()) if captures else None)
    native = library() if kernels else None
    return Reference() if native is None else Cpu(native)
