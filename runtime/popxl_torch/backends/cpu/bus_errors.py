"""A line where a mapped file has been cut short, which would otherwise end the process silently."""

from __future__ import annotations

import ctypes
import functools
import logging

from popxl_torch.backends.cpu.build import CannotBuildError, built_handler

_log = logging.getLogger(__name__)


@functools.cache
def tell_bus_errors() -> bool:
    """Have this process name the file, and end with status 2; whether it will.

    A handler that is already there stays. Without a compiler there is none: one of Python's would
    not run before the instruction that failed is repeated, for ever.
    """
    try:
        return bool(ctypes.CDLL(str(built_handler())).popxl_tell_bus_errors())
    except (CannotBuildError, OSError, AttributeError) as error:
        _log.info("a mapped file that is cut short will end this process without a line: %s", error)
        return False
