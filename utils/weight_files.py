"""The weight files of a checkpoint folder, read one tensor at a time.

The folder holds `model.safetensors` or `pytorch_model.bin`, or shards of either and the index that
says which shard holds which tensor. Names are as they are stored.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from utils.setup import UserError

# In order of preference: safetensors before pickles, one file before shards.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
ZIP_MAGIC = b"PK\x03\x04"


class CheckpointError(UserError):
    """A checkpoint that cannot be found, read or used with the configuration."""


class WeightFiles:
    """The tensors of a folder by stored name. One file is open at a time, mapped and not read.

    Raises:
        CheckpointError: for a folder without weights, an index that does not fit, a missing shard.
    """

    def __init__(self, folder: Path):
        present = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
        if not present:
            raise CheckpointError(
                f"no weights in {folder}: expected one of {', '.join(WEIGHT_FILES)}"
            )
        self._opened: tuple[Path, _Shard] | None = None
        if present[0].suffix == ".json":
            self._places = _read_index(present[0])
        else:
            self._places = dict.fromkeys(self._open(present[0]).keys(), present[0])

    def names(self) -> list[str]:
        return list(self._places)

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor as stored, mapped from its file wherever the format allows it.

        Raises:
            CheckpointError: when its file cannot be read or does not hold it.
        """
        path = self._places[name]
        shard = self._open(path)
        if name not in shard.keys():  # noqa: SIM118 (a safetensors file is no dict)
            raise CheckpointError(f"no tensor {name} in {path}, where the index places it")
        try:
            tensor = shard.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise _unreadable(path, error) from error
        if not isinstance(tensor, torch.Tensor):
            raise CheckpointError(f"{name} in {path} is a {type(tensor).__name__}, not a tensor")
        return tensor

    def _open(self, path: Path) -> _Shard:
        if self._opened is None or self._opened[0] != path:
            self._opened = None  # lets the last file go before the next one is mapped
            opener = _open_safetensors if path.suffix == ".safetensors" else _PickledShard
            self._opened = (path, opener(path))
        return self._opened[1]


class _Shard(Protocol):
    def keys(self) -> Iterable[str]: ...

    def get_tensor(self, name: str) -> Any: ...


class _PickledShard:
    """A `.bin` file: a pickled dict of tensors, of which only plain data is unpickled."""

    def __init__(self, path: Path):
        try:
            with path.open("rb") as file:
                mappable = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC  # older files are one pickle
            content = torch.load(path, mmap=mappable, weights_only=True, map_location="cpu")
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{path} is damaged, or holds more than tensors and was refused, since loading it "
                "could run code; use a safetensors copy"
            ) from error
        except (RuntimeError, OSError, EOFError, ValueError) as error:
            raise _unreadable(path, error) from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} holds a {type(content).__name__}, not named tensors")
        self._tensors = content

    def keys(self) -> Iterable[str]:
        return self._tensors.keys()

    def get_tensor(self, name: str) -> Any:
        return self._tensors[name]


def _open_safetensors(path: Path) -> _Shard:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def _read_index(path: Path) -> dict[str, Path]:
    """Tensor name -> the shard that holds it. Every shard is known to be there."""
    try:
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        shards = {str(shard) for shard in places.values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f'{path} is no index: expected {{"weight_map": {{name: file}}}} ({error!r})'
        ) from error
    for shard in sorted(shards):
        # Only names of files beside the index: a downloaded index points to nothing else.
        if Path(shard).name != shard or not (path.parent / shard).is_file():
            raise CheckpointError(f"shard {shard} that {path.name} names is not in {path.parent}")
    return {name: path.parent / shard for name, shard in places.items()}


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]
    return CheckpointError(f"cannot read {path}, which may be cut short or damaged: {reason}")
