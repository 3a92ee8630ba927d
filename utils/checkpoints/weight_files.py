"""The weight files of a checkpoint folder, read one tensor at a time.

The folder holds `model.safetensors` or `pytorch_model.bin`, or shards of either and the index that
says which shard holds which tensor. Names are as they are stored.

Files are opened here, once, and known to be regular ones; the libraries that read them are given
the open file.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from safetensors import SafetensorError, safe_open

from utils.escaping import shown
from utils.our_runtime import tell_bus_errors
from utils.outside import (
    INDEX_BYTES,
    Fields,
    is_file_name,
    is_plain_name,
    is_regular,
    open_regular,
    read_json,
)
from utils.setup import UserError

# In order of preference: safetensors before pickles, one file before shards.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
ZIP_MAGIC = b"PK\x03\x04"
LFS_POINTER = b"version https://git-lfs"
WRAPPERS = ("state_dict", "model", "module")
"""Names under which a `.bin` file may hold the tensors, one in another."""

FLOATS = ("float64", "float32", "float16", "bfloat16")
"""Types that weights may have."""

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "BOOL": "bool",
} | {
    f"{sign}{bits}": f"{kind}int{bits}"
    for sign, kind in (("I", ""), ("U", "u"))
    for bits in (8, 16, 32, 64)
}
"""Safetensors' names of types -> torch's."""


class CheckpointError(UserError):
    """A checkpoint that cannot be found, read or used with the configuration."""


@dataclass(frozen=True)
class Stored:
    """What is known of a tensor without reading it; `dtype` as torch names it, without `torch.`."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name} in {self.file}"


class Tensors(Protocol):
    """Named tensors; `tensor` gives one as it is meant, whichever way it is stored."""

    def names(self) -> list[str]: ...

    def stored(self, name: str) -> Stored: ...

    def tensor(self, name: str) -> torch.Tensor: ...


class WeightFiles:
    """The tensors of a folder by stored name. One file is open at a time, mapped and not read.

    Raises:
        CheckpointError: for a folder without weights, an index that does not fit, a missing shard.
    """

    def __init__(self, folder: Path, files: Sequence[str] = WEIGHT_FILES):
        present = [folder / name for name in files if os.path.lexists(folder / name)]
        if not present:
            raise CheckpointError(f"no weights in {folder}: expected one of {', '.join(files)}")
        self._opened: tuple[Path, _Shard] | None = None
        tell_bus_errors()
        if present[0].suffix == ".json":
            self._places = _read_index(present[0])
        else:
            names = list(self._open(present[0]).keys())
            _check_names(names, present[0])
            self._places = dict.fromkeys(names, present[0])

    @property
    def files(self) -> list[Path]:
        """Those that hold tensors."""
        return list(dict.fromkeys(self._places.values()))

    @property
    def mapped(self) -> bool:
        """Whether tensors are parts of mapped files; older `.bin` files are read whole."""
        return all(path.suffix == ".safetensors" or _is_zip(path) for path in self.files)

    def names(self) -> list[str]:
        return list(self._places)

    def place(self, name: str) -> Path:
        """The file of a tensor, or of the one that stands for it in another form."""
        return self._places.get(name) or next(iter(self._places.values()))

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor as stored, mapped from its file wherever the format allows it.

        Raises:
            CheckpointError: when its file cannot be read or does not hold it.
        """
        path, shard = self._shard_of(name)
        try:
            tensor = shard.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise _unreadable(path, error) from error
        if fault := _fault(tensor):
            raise CheckpointError(f"{name} in {path} is {fault}")
        return tensor

    def stored(self, name: str) -> Stored:
        """What the file says of a tensor.

        Raises:
            CheckpointError: when its file cannot be read or does not hold it.
        """
        path, shard = self._shard_of(name)
        try:
            return Stored(name, path, *shard.described(name))
        except (SafetensorError, OSError) as error:
            raise _unreadable(path, error) from error

    def _shard_of(self, name: str) -> tuple[Path, _Shard]:
        path = self._places[name]
        shard = self._open(path)
        if name not in shard.keys():  # noqa: SIM118 (a safetensors file is no dict)
            raise CheckpointError(f"no tensor {name} in {path}, where the index places it")
        return path, shard

    def _open(self, path: Path) -> _Shard:
        if self._opened is None or self._opened[0] != path:
            self._opened = None  # lets the last file go before the next one is mapped
            opener = _SafetensorsShard if path.suffix == ".safetensors" else _PickledShard
            with open_regular(path, CheckpointError) as file:
                _refuse_pointer(path, file)
                self._opened = (path, opener(path, file))
        return self._opened[1]


class _Shard(Protocol):
    def keys(self) -> Iterable[str]: ...

    def get_tensor(self, name: str) -> Any: ...

    def described(self, name: str) -> tuple[tuple[int, ...], str]: ...


class _PickledShard:
    """A `.bin` file: a pickled dict of tensors, of which only plain data is unpickled."""

    def __init__(self, path: Path, file: BinaryIO):
        try:
            mappable = _is_zip(path)  # older files are one pickle
            content = torch.load(
                _opened_path(path, file), mmap=mappable, weights_only=True, map_location="cpu"
            )
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{path} is damaged, or holds more than tensors and was refused, since loading it "
                "could run code; use a safetensors copy"
            ) from error
        except Exception as error:  # whatever the unpickler trips over in what is no pickle
            raise _unreadable(path, error) from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} holds a {type(content).__name__}, not named tensors")
        for name in WRAPPERS:  # what training frameworks keep beside other things
            inner = content.get(name)
            if isinstance(inner, dict) and any(isinstance(v, torch.Tensor) for v in inner.values()):
                content = inner
        self._tensors = content

    def keys(self) -> Iterable[str]:
        return self._tensors.keys()

    def get_tensor(self, name: str) -> Any:
        return self._tensors[name]

    def described(self, name: str) -> tuple[tuple[int, ...], str]:
        found = self._tensors[name]
        if not isinstance(found, torch.Tensor):
            return (), type(found).__name__
        return tuple(found.shape), str(found.dtype).removeprefix("torch.")


class _SafetensorsShard:
    def __init__(self, path: Path, file: BinaryIO):
        try:
            self._file = safe_open(_opened_path(path, file), framework="pt")
        except Exception as error:  # its own, torch's and the system's
            raise _unreadable(path, error) from error
        self._names = set(self._file.keys())

    def keys(self) -> Iterable[str]:
        return self._names

    def get_tensor(self, name: str) -> Any:
        return self._file.get_tensor(name)

    def described(self, name: str) -> tuple[tuple[int, ...], str]:
        found = self._file.get_slice(name)
        dtype = found.get_dtype()
        return tuple(found.get_shape()), DTYPES.get(dtype, dtype.lower())


def _is_zip(path: Path) -> bool:
    with open_regular(path, CheckpointError) as file:
        return file.read(len(ZIP_MAGIC)) == ZIP_MAGIC


def _refuse_pointer(path: Path, file: BinaryIO) -> None:
    begin = file.read(len(LFS_POINTER))
    file.seek(0)
    if begin == LFS_POINTER:
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"
        )


def _opened_path(path: Path, file: BinaryIO) -> str:
    """A name of the open file for a library that opens it itself: of this file, whatever has been
    put in its place since."""
    opened = f"/proc/self/fd/{file.fileno()}"
    return opened if os.path.exists(opened) else str(path)


def _fault(tensor: Any) -> str | None:
    """Why it is no tensor of weights, or None."""
    if not isinstance(tensor, torch.Tensor):
        return f"a {type(tensor).__name__}, not a tensor"
    if tensor.layout != torch.strided or tensor.is_nested:
        return f"a sparse tensor ({str(tensor.layout).removeprefix('torch.')}), not a dense one"
    if tensor.device.type != "cpu":
        return f"a tensor without values (of device {tensor.device.type})"
    if tensor.is_quantized:
        return "quantised by torch: store it as floats"
    if tensor.is_complex():
        return "of complex numbers"
    if tensor.nbytes > tensor.untyped_storage().nbytes():
        return f"of shape {shown(tuple(tensor.shape))}, more than the file holds"
    return None


def _check_names(names: Iterable[Any], path: Path) -> None:
    for name in names:
        if not is_plain_name(name):
            raise CheckpointError(f"{path} has a tensor with an impossible name: {shown(name)}")


def _read_index(path: Path) -> dict[str, Path]:
    """Tensor name -> the shard that holds it. Every shard is known to be there."""
    content = Fields(read_json(path, CheckpointError, INDEX_BYTES), str(path), CheckpointError)
    places = content.mapping("weight_map")
    _check_names(places, path)
    shards = {shard if isinstance(shard, str) else shown(shard) for shard in places.values()}
    for shard in sorted(shards):
        # Only names of files beside the index: a downloaded index points to nothing else.
        if not is_file_name(shard) or not is_regular(path.parent / shard):
            raise CheckpointError(
                f"shard {shown(shard)} that {path.name} names is not in {path.parent}"
            )
    return {name: path.parent / shard for name, shard in places.items()}


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    text = re.sub(r"/proc/self/fd/\d+", path.name, str(error)) or type(error).__name__
    reason = text.splitlines()[0].split(". ")[0][:200]
    return CheckpointError(f"cannot read {path}, which may be cut short or damaged: {reason}")
