"""The safetensors file of one part: its header, and its tensors as views of the mapped file.

The format: the header's length (8 bytes, little-endian), the header (JSON, filled up with spaces)
and the tensors without gaps. Ours begin on a page, the tensors of whole pages first. A matrix whose
bytes lie in the order of its swapped axes is stored so, and named in the metadata; reading swaps
its axes back. Neither way is anything transposed.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from popxl_shared.limits import LINE

from utils.escaping import cell
from utils.outside import Fields, open_regular, parse_json
from utils.setup import UserError

PAGE = 1 << 12
"""Bytes of a page of memory."""

LARGEST_HEADER = 100_000_000
SWAPPED = "swapped"
DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype(np.int32),
    "U16": np.dtype(np.uint16),
    "I8": np.dtype(np.int8),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class PartFile:
    """The contents of a part's file: the header's bytes, then every array's, in order."""

    header: bytes
    arrays: dict[str, np.ndarray]


def part_file(arrays: dict[str, np.ndarray], about: dict[str, str]) -> PartFile:
    """The file of a part's arrays.

    Args:
        about: what the header says of the part.

    Returns:
        with C-contiguous arrays, which are views of those given unless these are neither
        contiguous nor so with their last two axes swapped.
    """
    stored: dict[str, np.ndarray] = {}
    swapped = []
    for name in sorted(arrays, key=lambda name: _order(arrays[name])):
        array = arrays[name]
        if not array.flags.c_contiguous and array.ndim >= 2:
            exchanged = array.swapaxes(-1, -2)
            if exchanged.flags.c_contiguous:
                array = exchanged
                swapped.append(name)
        stored[name] = array if array.flags.c_contiguous else array.copy(order="C")
    return PartFile(_header(stored, about | {SWAPPED: ",".join(swapped)}), stored)


def _order(array: np.ndarray) -> tuple[bool, bool, int]:
    """Whole pages, then whole lines, then the rest by falling size of their elements: each tensor
    begins where a processor likes it, with no gaps, which the format does not have."""
    return array.nbytes % PAGE != 0, array.nbytes % LINE != 0, -array.dtype.itemsize


def _header(arrays: dict[str, np.ndarray], about: dict[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": about}
    offset = 0
    for name, array in arrays.items():
        end = offset + array.nbytes
        entries[name] = {
            "dtype": NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    length = math.ceil((8 + len(text)) / PAGE) * PAGE - 8
    return length.to_bytes(8, "little") + text.ljust(length)


def read_header(path: Path) -> bytes:
    """The first bytes of a file, up to its first tensor.

    Raises:
        UserError: where it cannot be read, or cannot be a safetensors file.
    """
    with open_regular(path, UserError) as file:
        return _read_header(file, path)


def _read_header(file: BinaryIO, path: Path) -> bytes:
    try:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > LARGEST_HEADER:
            raise UserError(f"{path} is damaged: it does not begin as a safetensors file")
        return start + file.read(length)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def map_tensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a part, views of the file, which is mapped for reading and not read.

    Raises:
        UserError: where it cannot be mapped, or is no file of `part_file`.
    """
    with open_regular(path, UserError) as file:
        header = _read_header(file, path)
        entries = Fields(parse_json(header[8:], path, UserError), str(path), UserError)
        about = Fields(entries.mapping("__metadata__"), f"{path}, __metadata__", UserError)
        swapped = about.text(SWAPPED).split(",")
        try:
            data = np.asarray(np.memmap(file, np.uint8, "r"))[len(header) :]
        except (OSError, ValueError) as error:
            raise UserError(f"cannot map {path}: {error}") from None
    arrays = {
        name: _view(data, Fields(entry, f"{path}, {cell(name)}", UserError))
        for name, entry in entries.values.items()
        if name != "__metadata__"
    }
    return {
        name: array.swapaxes(-1, -2) if name in swapped and array.ndim >= 2 else array
        for name, array in arrays.items()
    }


def _view(data: np.ndarray, entry: Fields) -> np.ndarray:
    offsets, shape, dtype = entry.counts("data_offsets"), entry.counts("shape"), entry.text("dtype")
    size = math.prod(shape) * DTYPES[dtype].itemsize if dtype in DTYPES else -1
    if len(offsets) != 2 or offsets[1] - offsets[0] != size or offsets[1] > len(data):
        raise UserError(f"{entry.place} is damaged: its type, shape and place do not fit")
    try:
        return data[slice(*offsets)].view(DTYPES[dtype]).reshape(shape)
    except ValueError as error:  # more axes than numpy has
        raise UserError(f"{entry.place} is damaged: {error}") from None
