"""What exists only with our runtime: costs and limits, what is kept, pages of mapped files, extras.

Nothing else in the application imports it. Under another `popxl` the names that are None are not
there: nothing is predicted or kept, and no page is let go early.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
from pathlib import Path
from typing import Any

import numpy as np
import popxl

try:
    from popxl_torch import cache, machine
    from popxl_torch.analysis.cost import Collective, Cost
    from popxl_torch.analysis.cost import cost_of as cost
    from popxl_torch.analysis.cost import memory_of as program_bytes
    from popxl_torch.cache.private_folder import NotPrivateError, PrivateFolder
    from popxl_torch.memory import system as memory
    from popxl_torch.traffic import Traffic
except ImportError:
    cache = cost = machine = memory = program_bytes = None  # type: ignore[assignment]
    Collective = Cost = PrivateFolder = Traffic = Any  # type: ignore[assignment,misc]
    NotPrivateError = OSError  # type: ignore[assignment,misc]

__all__ = [
    *("Collective", "Cost", "NotPrivateError", "PrivateFolder", "Traffic"),
    *("cache", "cost", "machine", "program_bytes"),
]

WILLNEED, PAGEOUT, POPULATE_READ = 3, 21, 22
"""Advice of madvise(2): begin to read; drop from memory; read now, and no more page by page."""

SMALL = 1 << 18
"""Bytes from which on it is worth finding out whether a range is a file's."""


def device_of(session: popxl.Session) -> str:
    """The kind of device that a session is on, "cpu" or "cuda"."""
    return session.device


def exchanged(session: popxl.Session) -> Traffic:
    """The collectives that this process took part in with others so far."""
    return session.traffic


def fill(session: popxl.Session, variable: Any, values: np.ndarray, swapped: bool) -> None:
    """Set a variable to `values` over and over, where it lies; see `Session.fill_variable_data`."""
    session.fill_variable_data(variable, values, swapped)


class MappedPages:
    """A range of memory, if it is that of a mapped file and not small.

    Otherwise there is nothing to let go.

    Args:
        address, size: of the range, in bytes.
    """

    def __init__(self, address: int, size: int):
        self._address, self._size = address, size
        self._mapped = (
            memory is not None
            and size >= SMALL
            and memory.mapped_files().hold(memory.Region(address, size))
        )

    @classmethod
    def of(cls, array: np.ndarray) -> MappedPages:
        """Those of an array without gaps."""
        return cls(array.__array_interface__["data"][0], array.nbytes)

    @property
    def mapped(self) -> bool:
        """Whether it is a mapped file's."""
        return self._mapped

    def bring(self, begin: int, end: int) -> None:
        """Read bytes `begin:end` at once, which is faster than page by page."""
        self._advise(begin, end, POPULATE_READ)

    def expect(self, begin: int, end: int) -> None:
        """Begin to read bytes `begin:end`, without waiting for them."""
        self._advise(begin, end, WILLNEED)

    def release(self, begin: int, end: int) -> None:
        """Let the pages of bytes `begin:end` go; they are read again where they are used again."""
        self._advise(begin, end, PAGEOUT)

    def _advise(self, begin: int, end: int, advice: int) -> None:
        if self._mapped and begin < min(end, self._size):
            start = (self._address + begin) // memory.PAGE * memory.PAGE
            stop = self._address + min(end, self._size)
            memory.advise(memory.Region(start, stop - start), advice)


def tell_bus_errors() -> None:
    """Have a mapped file that is cut short end this process with a line that names it."""
    if memory is not None:
        from popxl_torch.backends.cpu import bus_errors  # late: it takes torch

        bus_errors.tell_bus_errors()


def available_memory() -> int:
    """Bytes that this process may still use."""
    if memory is not None:
        return memory.available_memory()
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def peak_memory() -> int:
    """The most bytes that this process has held, mapped pages included."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    kilobytes = int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * 1024


def restart_peak_memory() -> None:
    """Let `peak_memory` be that from now on, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
