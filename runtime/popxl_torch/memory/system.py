"""The machine's memory: how much there is, what is mapped into it, and advice about pages."""

from __future__ import annotations

import bisect
import ctypes
import math
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

WILLNEED, NOHUGEPAGE, PAGEOUT = 3, 15, 21
"""Advice of madvise(2): read ahead; give small pages; drop from memory."""

PAGE = mmap.PAGESIZE
CGROUPS = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60

STEP = 1 << 20
"""Bytes to ask for at once: the kernel reads no more than its read-ahead limit a request."""


@dataclass(frozen=True)
class Region:
    """Whole pages; sizes in bytes."""

    start: int
    size: int

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Region:
        """The pages that a tensor touches."""
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        span = (sum((n - 1) * step for n, step in steps) + 1) * tensor.element_size()
        start = tensor.data_ptr() // PAGE * PAGE
        end = tensor.data_ptr() + span
        return cls(start, -(-(end - start) // PAGE) * PAGE)


class MappedFiles:
    """The address ranges of this process that are files."""

    def __init__(self, ranges: list[tuple[int, int]]):
        self._ranges = sorted(ranges)

    def hold(self, region: Region) -> bool:
        """Whether a region begins in a mapped file."""
        place = bisect.bisect_right(self._ranges, (region.start, UNLIMITED << 8)) - 1
        return place >= 0 and region.start < self._ranges[place][1]


def mapped_files() -> MappedFiles:
    """What is mapped now; nothing where the system does not tell."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return MappedFiles([])
    ranges = []
    for line in lines:
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].startswith("/"):
            low, high = fields[0].split("-")
            ranges.append((int(low, 16), int(high, 16)))
    return MappedFiles(ranges)


def advise(region: Region, advice: int) -> bool:
    """madvise(2); False where the system does not take the advice."""
    if _libc is None:
        return False
    step = STEP if advice == WILLNEED else region.size
    for offset in range(0, region.size, step):
        size = ctypes.c_size_t(min(step, region.size - offset))
        if _libc.madvise(ctypes.c_void_p(region.start + offset), size, advice) != 0:
            return False
    return True


def resident_share(region: Region) -> float:
    """The share of a region's pages that are in memory; 1 where the system does not tell."""
    pages = np.zeros(region.size // PAGE, np.uint8)
    if _libc is None or not pages.size:
        return 1.0
    address, size = ctypes.c_void_p(region.start), ctypes.c_size_t(region.size)
    if _libc.mincore(address, size, ctypes.c_void_p(pages.ctypes.data)) != 0:
        return 1.0
    return float(np.count_nonzero(pages & 1)) / pages.size


def untouched_zeros(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Zeros on the host that take memory page by page, as they are first written to.

    `torch.zeros` writes to all of them, and a huge page is taken whole for one of its bytes.

    Raises:
        MemoryError: where the system does not promise so much.
    """
    count, size = math.prod(shape), math.prod(shape) * dtype.itemsize
    if size < STEP:
        return torch.zeros(tuple(shape), dtype=dtype)
    try:
        pages = mmap.mmap(-1, size)
    except OSError as error:
        raise MemoryError(
            f"there is no memory for a buffer of {size:,} bytes ({error.strerror})"
        ) from None
    flat = torch.frombuffer(pages, dtype=dtype, count=count)  # which keeps the pages
    advise(Region(flat.data_ptr(), -(-size // PAGE) * PAGE), NOHUGEPAGE)
    return flat.reshape(tuple(shape))


def available_memory() -> int:
    """Bytes that this process may still use: of the machine, or of its control group if less."""
    return min(_machine_available(), _group_available())


def _machine_available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return UNLIMITED


def _group_available() -> int:
    """The tightest limit of the control groups above this process, less what is not file pages."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return UNLIMITED
    rooms = [UNLIMITED]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = CGROUPS / "memory" if controllers else CGROUPS
        group = root / path.lstrip("/")
        while group != root.parent:
            rooms.append(_room(group))
            group = group.parent
    return min(rooms)


def _room(group: Path) -> int:
    """Limit less anonymous memory of one control group, version 1 or 2."""
    for limit_file, used_key in (("memory.max", "anon"), ("memory.limit_in_bytes", "total_rss")):
        try:
            limit = int((group / limit_file).read_text())
            stats = (group / "memory.stat").read_text().splitlines()
        except (OSError, ValueError):  # no such file, or the limit is "max"
            continue
        used = dict(line.split(maxsplit=1) for line in stats)
        return max(limit - int(used.get(used_key, 0)), 0)
    return UNLIMITED


def _load_libc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        return libc if hasattr(libc, "madvise") and hasattr(libc, "mincore") else None
    except OSError:
        return None


_libc = _load_libc()


def given_bytes(variable: str) -> int | None:
    """The bytes that an environment variable sets; None where it is not there.

    Raises:
        ValueError: where it is no number of bytes.
    """
    given = os.environ.get(variable)
    if given is not None and not given.isdigit():
        raise ValueError(f"{variable} must be a number of bytes, not {given!r}")
    return None if given is None else int(given)
