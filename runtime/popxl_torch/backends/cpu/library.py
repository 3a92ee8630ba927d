"""The native library in this process, and the instructions it is given."""

from __future__ import annotations

import ctypes
import functools
import logging
import struct
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from pathlib import Path

import torch  # its OpenMP is loaded before ours: the two share their threads

from popxl_torch.backends.cpu.build import CannotBuildError, built_library, missing_instructions
from popxl_torch.backends.cpu.crowd import Crowd

LINEAR, NORM, ATTENTION, FINISH, DECOMPRESS, CHUNK, KEEP, PUT, ELEMENTWISE = range(9)
FIELDS = {
    kind: struct.Struct(form)
    for kind, form in {
        LINEAR: "49q",
        NORM: "9qd17q",
        ATTENTION: "53q",
        FINISH: "29q",
        DECOMPRESS: "8q",
        CHUNK: "53q",
        KEEP: "53q",
        PUT: "55q",
        ELEMENTWISE: "9q" + 9 * "10q" + 24 * "8Bd",
    }.items()
}
"""Of each kind of instruction: how its fields are packed, in the order of the C++ side."""

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 3, torch.uint16: 4}
"""The numbers of the types; 16-bit words hold four numbers of 4 bits each."""

FLOATS = (torch.float32, torch.float16, torch.bfloat16)

Observer = Callable[[int, bytes, torch.Tensor], None]
observer: ContextVar[Observer | None] = ContextVar("instruction_observer", default=None)
"""Is given each instruction that is done: its kind, its fields and its result."""

_log = logging.getLogger(__name__)


class Library:
    """The kernels; `run` gives them to torch's threads, or to fewer beside other programs.

    Args:
        path: of the compiled library.
        crowd: what says how many threads.

    Attributes:
        many_rows: of the types of which products take any number of rows, the bytes that the
            weight may have.
    """

    def __init__(self, path: Path, crowd: Crowd | None = None):
        loaded = ctypes.CDLL(str(path))
        self._crowd = crowd or Crowd()
        self._run_one = loaded.popxl_run_one
        self._run_one.argtypes = [ctypes.c_int64, ctypes.c_char_p, ctypes.c_int64]
        self._run_one.restype = None
        self.run_list = loaded.popxl_run
        self.run_list.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
        self.run_list.restype = None
        self.read = loaded.popxl_read
        self.read.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
        self.read.restype = ctypes.c_double
        many_rows = loaded.popxl_many_rows
        many_rows.argtypes, many_rows.restype = [ctypes.c_int64], ctypes.c_int64
        self.many_rows = {t: most for t in FLOATS if (most := many_rows(TYPES[t]))}
        loaded.popxl_size.argtypes, loaded.popxl_size.restype = [ctypes.c_int64], ctypes.c_int64
        for kind, fields in FIELDS.items():
            assert loaded.popxl_size(kind) == fields.size, kind

    def run(self, kind: int, result: torch.Tensor, *fields: float) -> None:
        """Do one instruction, which makes `result`."""
        packed = FIELDS[kind].pack(*fields)
        self._run_one(kind, packed, self.threads())
        observe = observer.get()
        if observe is not None:
            observe(kind, packed, result)

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

    def add(self, kind: int, fields: bytes) -> None:
        """Append an instruction."""
        self._kinds.append(kind)
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


def mesh_strides(tensor: torch.Tensor, lead: int) -> list[int]:
    """The strides of the mesh axes, filled up to three in front; 0 where a value is held once."""
    strides = [0] * (3 - lead)
    for axis in range(lead):
        strides.append(tensor.stride(axis) if tensor.shape[axis] > 1 else 0)
    return strides


def mesh_sizes(sizes: Iterable[int]) -> list[int]:
    """The sizes of the mesh axes, filled up to three in front."""
    given = list(sizes)
    return [1] * (3 - len(given)) + given


def is_packed(tensor: torch.Tensor) -> bool:
    """Whether the elements of the last axis lie side by side."""
    return tensor.ndim == 0 or tensor.stride(-1) == 1 or tensor.shape[-1] == 1


def joint_mesh(lead: int, *tensors: torch.Tensor) -> tuple[int, ...]:
    """The sizes of the mesh axes that tensors broadcast to."""
    return tuple(max(t.shape[axis] for t in tensors) for axis in range(lead))
