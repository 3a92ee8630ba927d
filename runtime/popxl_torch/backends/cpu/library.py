"""The native library in this process, and the instructions it is given."""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path

import torch  # its OpenMP is loaded before ours: the two share their threads

from popxl_torch.backends.cpu.build import CannotBuildError, built_library, missing_instructions
from popxl_torch.backends.cpu.constants import FLOATS, TYPES
from popxl_torch.backends.cpu.crowd import Crowd
from popxl_torch.backends.cpu.structs import Instruction

Observer = Callable[[Instruction, bytes, torch.Tensor], None]
observer: ContextVar[Observer | None] = ContextVar("instruction_observer", default=None)
"""Is given each instruction that is done: the instruction, its fields and its result."""

Run = Callable[..., None]
"""`Cpu.run`, which does an instruction."""

_log = logging.getLogger(__name__)


class Library:
    """The kernels, for torch's threads, or fewer beside other programs.

    Args:
        path: of the compiled library.
        crowd: what says how many threads.

    Attributes:
        many_rows: of the types of which products take any number of rows, the bytes that the
            weight may have.
        tiles: whether products of bfloat16 are done in tile registers (AMX).
    """

    def __init__(self, path: Path, crowd: Crowd | None = None):
        loaded = ctypes.CDLL(str(path))
        self._crowd = crowd or Crowd()
        self.run_one = loaded.popxl_run_one
        self.run_one.argtypes = [ctypes.c_int64, ctypes.c_char_p, ctypes.c_int64]
        self.run_one.restype = None
        self.run_list = loaded.popxl_run
        self.run_list.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
        self.run_list.restype = None
        self.read = loaded.popxl_read
        self.read.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
        self.read.restype = ctypes.c_double
        many_rows = loaded.popxl_many_rows
        many_rows.argtypes, many_rows.restype = [ctypes.c_int64], ctypes.c_int64
        self.many_rows = {t: most for t in FLOATS if (most := many_rows(TYPES[t]))}
        loaded.popxl_tiles.argtypes, loaded.popxl_tiles.restype = [], ctypes.c_int64
        self.tiles = bool(loaded.popxl_tiles())

    def threads(self) -> int:
        """How many compute what is done next."""
        return self._crowd.threads(torch.get_num_threads())


class Program:
    """Instructions that are done one after another by one call."""

    def __init__(self, native: Library):
        self._native = native
        self._kinds: list[int] = []
        self._fields: list[ctypes.Array] = []
        self._packed: ctypes.Array | None = None

    def add(self, instruction: Instruction, fields: bytes) -> None:
        """Append an instruction."""
        self._kinds.append(instruction.number)
        self._fields.append(ctypes.create_string_buffer(fields, len(fields)))
        self._packed = None

    def run(self) -> bool:
        """Do them all; True."""
        if self._packed is None:
            pairs = zip(self._kinds, map(ctypes.addressof, self._fields), strict=True)
            flat = [number for pair in pairs for number in pair]
            self._packed = (ctypes.c_int64 * len(flat))(*flat)
        self._native.run_list(self._packed, len(self._kinds), self._native.threads())
        return True


@functools.cache
def library() -> Library | None:
    """The library, compiled where need be; None, with one line that says so, where it cannot be."""
    try:
        loaded = Library(built_library())
    except (CannotBuildError, OSError) as error:
        _log.warning("no native kernels, torch computes what they would (slower): %s", error)
        return None
    if missing := missing_instructions():
        _log.warning("this processor is without %s: slower", " and ".join(missing))
    return loaded
