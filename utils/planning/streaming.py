"""What a token costs where the weights are larger than memory: bytes from disk, and seconds."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.memory import available_memory

BLOCK = 1 << 24
MEASURED = 1 << 28
"""Bytes that are read to measure the disk's rate."""


@dataclass(frozen=True)
class Streaming:
    """An estimate; sizes in bytes.

    Attributes:
        memory_bytes: what there is for weights and cache.
        disk_bytes_per_token: what a decode pass reads from disk, as it does not fit in memory.
        disk_bytes_per_second: the disk's rate; None where nothing is read or it cannot be measured.
        disk_seconds_per_token: the least that reading takes.
    """

    memory_bytes: int
    disk_bytes_per_token: int
    disk_bytes_per_second: float | None = None
    disk_seconds_per_token: float | None = None


def estimate(
    weight_bytes: int,
    read_per_token: int,
    cache_bytes: int,
    memory_bytes: int | None = None,
    disk_rate: float | None = None,
    folder: Path | None = None,
) -> Streaming:
    """The estimate for a program.

    Args:
        weight_bytes, cache_bytes: of all replicas.
        read_per_token: bytes of weights that a decode pass reads, in all replicas.
        memory_bytes: what is available now where None.
        disk_rate: bytes a second; measured in `folder`, or the current one, where None.
    """
    memory_bytes = available_memory() if memory_bytes is None else memory_bytes
    held, read = weight_bytes + cache_bytes, read_per_token + min(cache_bytes, memory_bytes)
    from_disk = spilled(held, read, memory_bytes)
    if not from_disk:
        return Streaming(memory_bytes, 0)
    rate = disk_rate or measured_rate(folder or Path())
    return Streaming(memory_bytes, from_disk, rate, from_disk / rate if rate else None)


def spilled(held: int, read: int, room: int) -> int:
    """How many of the `read` bytes of a token do not stay in a memory of `room` bytes.

    What is `held` and not read is the first to leave memory.
    """
    return 0 if held <= room else max(0, read - room)


def measured_rate(folder: Path) -> float | None:
    """Bytes a second that are read one after the other from the disk of a folder, past the cache.

    A large file of the folder is read, or a temporary one. None where neither can be.
    """
    try:
        with _large_file(folder) as file:
            return _read_rate(file)
    except OSError:
        return None


@contextlib.contextmanager
def _large_file(folder: Path) -> Iterator[int]:
    large = [f for f in folder.iterdir() if f.is_file() and f.stat().st_size >= MEASURED]
    if large:
        with large[0].open("rb") as file:
            yield file.fileno()
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(MEASURED // BLOCK):
            file.write(os.urandom(BLOCK))
        file.flush()
        os.fsync(file.fileno())
        yield file.fileno()


def _read_rate(file: int) -> float:
    buffer = mmap.mmap(-1, BLOCK)  # begins on a page, as reading past the cache wants it
    direct = _opened_directly(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    begin = time.perf_counter()
    for offset in range(0, MEASURED, BLOCK):
        os.preadv(file if direct is None else direct, [buffer], offset)
    seconds = time.perf_counter() - begin
    if direct is not None:
        os.close(direct)
    return MEASURED / seconds


def _opened_directly(file: int) -> int | None:
    """The file opened to be read past the cache; None where its file system does not do that."""
    with contextlib.suppress(OSError, AttributeError):
        return os.open(f"/proc/self/fd/{file}", os.O_RDONLY | os.O_DIRECT)
    return None
