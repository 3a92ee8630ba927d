"""The device that a session asks for, and its errors in one line each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import popdist
import torch

DEVICES = ("auto", "cpu", "cuda", "ipu_model", "ipu_hw")


def torch_device(device_desc: str) -> torch.device:
    """The device; of several processes on a machine each has a GPU of its own, as far as there are.

    Raises:
        ValueError: for another device.
        RuntimeError: where the device is not there.
    """
    if device_desc not in DEVICES:
        raise ValueError(f"device {device_desc!r}: allowed are {', '.join(DEVICES)}")
    if device_desc == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("device 'cuda': PyTorch sees no CUDA device here; use 'cpu'")
    if device_desc == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    number = int(os.environ.get("LOCAL_RANK", popdist.getInstanceIndex()))
    device = torch.device("cuda", number % torch.cuda.device_count())
    torch.cuda.set_device(device)  # kernels and collectives go by it
    return device


@contextmanager
def memory_told() -> Iterator[None]:
    """Let it be one line that a device's memory does not suffice."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        # PyTorch goes on with what may help a program that it is the only runtime of.
        wanted, there, *_ = [*str(error).split(". ")[1:3], "", ""]
        raise MemoryError(
            f"the device is out of memory: {wanted}; {there}. Weights and caches beyond the bytes "
            "that POPXL_DEVICE_MEMORY is set to stay on the host"
        ) from None


@contextmanager
def without_torch_traces() -> Iterator[None]:
    """Let what goes wrong inside torch be one line of ours."""
    try:
        with memory_told():
            yield
    except RuntimeError as error:
        if type(error) is RuntimeError and "\n" not in str(error):
            raise
        raise RuntimeError(f"the program failed: {str(error).splitlines()[0]}") from None
