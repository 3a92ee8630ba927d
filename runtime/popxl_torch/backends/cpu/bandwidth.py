"""The rate at which the machine reads memory: the limit of a pass that reads every weight once."""

from __future__ import annotations

import functools
import time

import torch

from popxl_torch.backends.cpu.library import library

LINE = 256
"""Bytes that the loop reads at a time."""


@functools.lru_cache(maxsize=1)
def _buffer(size: int) -> torch.Tensor:
    return torch.ones(size, dtype=torch.uint8)


def read_bandwidth(bytes_count: int = 1 << 28) -> float:
    """Bytes a second that torch's threads read together, taken over one pass.

    Args:
        bytes_count: bytes to read; the buffer is kept for the next call of the same size. It must
            be well above the caches' size for the rate to be that of memory.

    Raises:
        ValueError: for less than 256 bytes.
    """
    if bytes_count < LINE:
        raise ValueError(f"bytes_count must be {LINE} or more, not {bytes_count}")
    size = bytes_count // LINE * LINE
    data, native = _buffer(size), library()
    if native is not None:
        return size / native.read(data.data_ptr(), size, torch.get_num_threads())
    words = data.view(torch.float32)
    begin = time.perf_counter()
    words.sum()
    return size / (time.perf_counter() - begin)
