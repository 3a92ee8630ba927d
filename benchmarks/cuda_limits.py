"""What limits a device: how fast its memory is copied, and how fast it is filled from the host."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable

COPIES = 8  # that are waited for together


def copy_bandwidth(device: str, repeats: int = 5) -> float:
    """Bytes a second read and written by copies of a block of the device's memory; the median."""
    import torch

    size = 1 << (30 if device == "cuda" else 26)
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    seconds = median_seconds(lambda: target.copy_(source), device, repeats)
    return 2 * size / seconds


def link_bandwidth(device: str, repeats: int = 5) -> float:
    """Bytes a second from pinned memory of the host to the device; the median."""
    import torch

    size = 1 << (28 if device == "cuda" else 26)
    source = torch.zeros(size, dtype=torch.uint8, pin_memory=device == "cuda")
    target = torch.zeros(size, dtype=torch.uint8, device=device)
    seconds = median_seconds(lambda: target.copy_(source, non_blocking=True), device, repeats)
    return size / seconds


def median_seconds(run: Callable[[], object], device: str, repeats: int) -> float:
    """Of a run, of which several are given to the device at a time."""
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    times = []
    for _ in range(repeats + 1):  # the first one warms up
        wait()
        begin = time.perf_counter()
        for _ in range(COPIES):
            run()
        wait()
        times.append((time.perf_counter() - begin) / COPIES)
    return statistics.median(times[1:])


def give_back(device: str) -> None:
    """Let the cases have the memory of what was deleted."""
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
